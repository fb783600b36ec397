"""Sets of images in tables: parquet, Arrow, CSV, JSON and webdataset files, saved `datasets`, and the Hub."""

import glob
import re
import tarfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from calor_hf.data.folders import METADATA, SPLIT_NAMES

_READERS = {
    ".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".json": "json", ".jsonl": "json", ".tar": "webdataset",
}  # fmt: skip
_ALONE = (".parquet", ".arrow")  # a folder with one of these is a table; others may lie next to image folders
_SHARD = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


def is_table(path: Path) -> bool:
    """Return whether a file, or a folder with its sub-folders, holds a table instead of image files."""
    if path.is_dir():
        return _is_saved(path) or any(
            file.suffix.lower() in _ALONE and not _hidden(file.relative_to(path)) for file in path.rglob("*")
        )
    return path.suffix.lower() in _READERS and (path.suffix.lower() != ".tar" or is_webdataset(path))


def is_webdataset(path: Path) -> bool:
    """Return whether a tar file holds samples of several files with the same key, such as 0.jpg and 0.cls."""
    try:
        with tarfile.open(path) as archive:
            names = [member.name for member in islice(archive, 100) if member.isfile()]
    except (tarfile.TarError, OSError):
        return False
    keys = [name.removesuffix("".join(PurePosixPath(name).suffixes)) for name in names]
    return any(keys[i] == keys[i + 1] for i in range(len(keys) - 1))


def load_table(path: Path) -> dict[str, Any]:
    """Load a file, or a folder of files named after their splits, as data sets by the names of the splits.

    The name of a split is that of the folder that a file is in, if that names a split, or that of the file without the
    number of a shard (``train-00000-of-00002.parquet``). A single file is the training split.

    Raises:
        ValueError: files of several formats, tables among image files, or a damaged file.
    """
    from datasets import Dataset, load_dataset, load_from_disk

    if path.is_dir() and _is_saved(path):
        saved = _reading(path, load_from_disk, str(path))
        return {"train": saved} if isinstance(saved, Dataset) else dict(saved)
    files = [path]
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if not _hidden(file.relative_to(path))]
        files = [file for file in inside if file.suffix.lower() in _ALONE]
        if images := [file for file in inside if file.suffix.lower() in Image.registered_extensions()]:
            raise ValueError(
                f"{path} holds tables ({files[0].relative_to(path)}) and {len(images)} image files "
                f"({images[0].relative_to(path)}), so which of them to use is not clear; pass one table, or a folder "
                "without tables"
            )
    kinds = sorted({_READERS[file.suffix.lower()] for file in files})
    if len(kinds) > 1:
        raise ValueError(f"{path} holds tables of several formats ({', '.join(kinds)}); pass a folder or file of one")
    # Each split alone: together, all would get the class names of the first. Escaped: a path is not a pattern.
    return {
        name: _reading(
            path, load_dataset, kinds[0], data_files=[glob.escape(str(file.absolute())) for file in some], split="train"
        )
        for name, some in _by_split(path, files).items()
    }


def load_hub(source: str, revision: str | None = None) -> dict[str, Any]:
    """Load a data set of the Hub.

    Raises:
        ValueError: the Hub gave none.
    """
    from datasets import load_dataset

    try:
        return dict(load_dataset(source, revision=revision))
    except Exception as error:  # of the network, the Hub, or the set's own files
        raise ValueError(
            f"{source} is no folder here, and the Hub gave no data set of this name ({_first_line(error)}); pass the "
            "path of an image folder or parquet file, or check the id and the connection; for a set with several "
            "configurations, save the one you want with save_to_disk and pass that folder"
        ) from error


def _is_saved(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _hidden(path: Path) -> bool:
    return path.name in METADATA or any(part.startswith(".") for part in path.parts)


def _by_split(path: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = {}
    for file in files:
        folders = file.relative_to(path).parts[:-1] if path.is_dir() else ()
        named = [part for part in folders if part.lower() in SPLIT_NAMES]
        name = named[-1] if named else _SHARD.sub("", file.stem) or "train"
        groups.setdefault(name, []).append(file)
    alone = len(groups) == 1 and (path.is_file() or next(iter(groups)).lower() not in SPLIT_NAMES)
    return {"train": groups.popitem()[1]} if alone else groups


def _reading(path: Path, read: Any, *args: Any, **options: Any) -> Any:
    try:
        return read(*args, **options)
    except Exception as error:  # pyarrow, pandas and datasets have errors of their own
        reason = _first_line(error.__cause__ or error)
        raise ValueError(f"the table {path} cannot be read ({reason}); write it again, or pass another file") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
