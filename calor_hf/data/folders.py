"""Image sets in folders: every file is an image of one split and class, or is skipped for a stated reason."""

import csv
import json
import mimetypes
import os
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "val": "validation", "dev": "validation",
    "valid": "validation", "test": "test", "testing": "test",
}  # fmt: skip
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")
_TYPES = mimetypes.MimeTypes()  # Python's own table, the same on every machine
# Formats of images that Pillow may need a plugin for.
_MORE_IMAGES = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw")


@dataclass(frozen=True)
class File:
    """A file below a folder.

    Attributes:
        path: Path of the file.
        parts: Names of the folders on the way, and of the file.
        reason: Why it is not an image; empty for images.
    """

    path: Path
    parts: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class ImageFolder:
    """Images of a folder.

    Attributes:
        parts: Data set of each split, with columns ``image`` and ``label`` (or the label column of metadata files), and
            the further columns asked for.
        not_taken: Number of files that are not images, by split (empty for files outside the splits) and reason.
        notes: Facts about the layout that are worth a line.
    """

    parts: "dict[str, Dataset]"
    not_taken: dict[str, dict[str, int]]
    notes: tuple[str, ...] = ()


def load_labeled_folder(root: Path, label_column: str | None = None, keep: Sequence[str] = ()) -> ImageFolder:
    """Load images whose classes are sub-folders, or a column of metadata files.

    If every first-level folder is called train, validation or test (training, val, dev, valid, testing; in any case),
    these are splits; otherwise everything is the training split. The first level below a split is the class, and deeper
    folders belong to it.

    Args:
        root: Folder; links in it are followed.
        label_column: Column of ``metadata.csv``, ``.jsonl`` or ``.parquet`` with the classes; None means ``label``.
        keep: Further columns of these files that the result has, as words.

    Raises:
        ValueError: images without a class or with contradicting ones, images without a value in a column to keep,
            classes without images, fewer than two classes, two folders of one split, or links that are broken or lead
            in a circle.
    """
    files, splits = _files_to_read(root), _split_folders(root)
    notes, parts = [], {}
    tables = [_Metadata(file, label_column) for file in files if file.reason == "metadata"]
    if label_column and tables and not any(table.label for table in tables):
        raise ValueError(f"no column {label_column!r} in {tables[0].path}; columns: {', '.join(tables[0].columns)}")
    labels = {key: value for table in tables if table.label for key, value in table.labels(files).items()}
    kept = {column: _column(root, files, tables, column) for column in keep}
    for table in tables:
        if not table.label and not set(keep) & set(table.columns):
            notes.append(f"{table.path} has no column of labels (columns: {', '.join(table.columns)}): not used")
    for split, name in (splits or {"train": ""}).items():
        base, depth = root / name, 1 if name else 0
        images = [file for file in files if not file.reason and (not name or file.parts[0] == name)]
        data = _labeled(base, depth, images, labels, label_column, notes)
        for column, values in kept.items():
            if missing := [file for file in images if not values.get(file.parts)]:
                raise ValueError(
                    f"{len(missing)} of {len(images)} images in {base} have no {column} in a metadata file "
                    f"({_named(missing)}); add it"
                )
            data = data.add_column(column, [values[file.parts] for file in images])
        parts[split] = data
    if not splits and (mistaken := [name for name in _folders(root) if name.lower() in SPLIT_NAMES]):
        notes.append(f"{', '.join(mistaken)}: taken as classes, because other folders next to them are not splits")
    return ImageFolder(parts, _not_taken(files, splits), tuple(notes))


def load_plain_folder(root: Path) -> ImageFolder:
    """Load all images below a folder, without labels, as one split ``train``.

    Of a folder of splits (see :func:`load_labeled_folder`), it has those of the training split.

    Raises:
        ValueError: no images, no training split, or links that are broken or lead in a circle.
    """
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    files, splits = _files_to_read(root), _split_folders(root)
    if splits and "train" not in splits:
        raise ValueError(f"{root} has no train split, only {', '.join(splits.values())}; pass one of these folders")
    images = [file for file in files if not file.reason and (not splits or file.parts[0] == splits["train"])]
    kept = {file.parts for file in images}
    others = [
        file if file.reason or file.parts in kept else File(file.path, file.parts, "another split") for file in files
    ]
    data = Dataset.from_dict({"image": _paths(images)}, features=Features({"image": ImageFeature()}))
    return ImageFolder({"train": data}, _not_taken(others, splits))


def list_files(root: Path) -> list[File]:
    """List every file below a folder, sorted by name; links are followed.

    Raises:
        ValueError: a link is broken, or leads back to a folder that contains it.
    """
    return list(_walk(root, (), (root.resolve(),), False))


def _walk(folder: Path, parts: tuple[str, ...], above: tuple[Path, ...], hidden: bool) -> Iterator[File]:
    for name in sorted(os.listdir(folder)):
        path, inner, unseen = folder / name, (*parts, name), hidden or _is_hidden(name)
        if path.is_dir() and not (unseen and path.is_symlink()):
            real = path.resolve()
            if real in above:
                raise ValueError(f"the link {path} leads back to {real}, a folder that it is in; remove the link")
            yield from _walk(path, inner, (*above, real), unseen)
        elif unseen:
            yield File(path, inner, "hidden")
        elif path.is_symlink() and not path.exists():
            raise ValueError(f"the link {path} leads to {os.readlink(path)}, which does not exist; repair or remove it")
        else:
            yield File(path, inner, _why_no_image(path))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _why_no_image(path: Path) -> str:
    name, suffix = path.name.lower(), path.suffix.lower()
    if not path.is_file():
        return "no regular file"
    if name in METADATA:
        return "metadata"
    if name.endswith(ARCHIVES):
        return "archive"
    kind, packed = _TYPES.guess_type(f"x{suffix}")
    kind = kind or ""
    if kind.startswith("image/") or suffix in _MORE_IMAGES or (not kind and suffix in Image.registered_extensions()):
        return ""
    # Other names than those of texts say little: downloaded photos are called photo.php, or have no suffix.
    if not packed and not kind.startswith("text/") and kind not in ("application/json", "application/postscript"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with Image.open(path):
                    return ""
            except Image.DecompressionBombError:
                return ""
            except Exception:  # Pillow's readers raise many types
                pass
    return f"no image ({suffix})" if suffix else "no image (no suffix)"


def _files_to_read(root: Path) -> list[File]:
    files = list_files(root)
    if packed := [file for file in files if file.reason == "archive"]:
        raise ValueError(
            f"{root} holds {_named(packed)}, whose images would be left out: archives are not read; unpack it, and "
            "move it away"
        )
    if all(file.reason for file in files):
        counts = Counter(file.reason for file in files)
        found = ", ".join(f"{reason}: {count}" for reason, count in counts.items()) or "it is empty"
        raise ValueError(f"no images in {root} ({found}); pass a folder of images, or of one sub-folder per class")
    return files


def _folders(base: Path) -> list[str]:
    return sorted(name for name in os.listdir(base) if not _is_hidden(name) and (base / name).is_dir())


def _split_folders(root: Path) -> dict[str, str]:
    """Name of each split's folder; empty if the first-level folders are not all splits."""
    found: dict[str, str] = {}
    folders = _folders(root)
    if any(name.lower() not in SPLIT_NAMES for name in folders):
        return {}
    for name in folders:
        split = SPLIT_NAMES[name.lower()]
        if split in found:
            raise ValueError(f"{root} has two folders of the {split} split, {found[split]} and {name}; merge them")
        found[split] = name
    return {split: found[split] for split in ("train", "validation", "test") if split in found}


def _not_taken(files: Sequence[File], splits: Mapping[str, str]) -> dict[str, dict[str, int]]:
    split_of = {name: split for split, name in splits.items()}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        if file.reason:
            counts[split_of.get(file.parts[0], "") if splits else "train"][file.reason] += 1
    return {split: dict(reasons) for split, reasons in counts.items()}


def _labeled(
    base: Path, depth: int, images: Sequence[File], listed: "Mapping[tuple[str, ...], _Label]",
    label_column: str | None, notes: list[str],
) -> "Dataset":  # fmt: skip
    """Data set of a split whose class folders are at ``depth``."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    classes = _folders(base)
    if not images:
        raise ValueError(f"no images in {base}; add some, or remove the folder")
    covered = [listed.get(file.parts) for file in images]
    column = label_column or "label"
    if any(covered):
        if missing := [file for file, label in zip(images, covered, strict=True) if label is None]:
            raise ValueError(
                f"{len(missing)} of {len(images)} images in {base} are not listed in a metadata file with labels "
                f"({_named(missing)}); add them to it, or move them away"
            )
        labels = [label for label in covered if label is not None]
        if label_column or not _same_as_folders(depth, images, labels):
            values = _values(labels)
            data = Dataset.from_dict({"image": _paths(images), column: values})
            return data.cast_column("image", ImageFeature())
        notes.append(f"{base}: class folders and {labels[0].where.split(' of ')[-1]} agree; classes are the folders")
    if not classes:
        raise ValueError(
            f"the images in {base} have no classes ({_named(images)}); put them into one sub-folder per class, or add "
            "a metadata.csv with columns file_name and label"
        )
    if loose := [file for file in images if len(file.parts) == depth + 1]:
        raise ValueError(
            f"{len(loose)} images lie next to the class folders of {base}, without a class ({_named(loose)}); move "
            "them into a class folder, or away"
        )
    filled = {file.parts[depth] for file in images}
    if empty := [name for name in classes if name not in filled]:
        raise ValueError(f"class folders without an image: {', '.join(empty[:5])}; remove or fill them ({base})")
    deep = [file for file in images if len(file.parts) > depth + 2]
    if len(classes) == 1:
        hint = f"; if {_folder_of(deep[0])} is a class, pass {base / classes[0]}" if deep else ""
        raise ValueError(f"{base} has one class only, {classes[0]}, and a classifier needs two{hint}")
    if deep:
        notes.append(
            f"{base}: {len(deep)} images lie deeper than their class folder, such as {_folder_of(deep[0])}; they "
            f"belong to the class ({deep[0].parts[depth]})"
        )
    index = {name: number for number, name in enumerate(classes)}
    features = Features({"image": ImageFeature(), column: ClassLabel(names=classes)})
    numbers = [index[file.parts[depth]] for file in images]
    return Dataset.from_dict({"image": _paths(images), column: numbers}, features=features)


def _paths(images: Sequence[File]) -> list[str]:
    paths = [str(file.path.absolute()) for file in images]
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the file name {path!r} is not valid Unicode; rename it") from error
    return paths


def _named(files: Sequence[File]) -> str:
    return ", ".join("/".join(file.parts) for file in files[:3]) + (", …" if len(files) > 3 else "")


def _folder_of(file: File) -> str:
    return "/".join(file.parts[:-1])


# Metadata


@dataclass(frozen=True)
class _Label:
    value: Any
    where: str


class _Metadata:
    """A ``metadata`` file: rows of ``file_name``, relative to its own folder, and a label if it has that column."""

    def __init__(self, file: File, label_column: str | None) -> None:
        self.path, self.base = file.path, file.parts[:-1]
        self.rows = _rows(file.path)
        self.columns = list(dict.fromkeys(key for row in self.rows for key in row))
        wanted = label_column or "label"
        self.label = wanted if wanted in self.columns else None
        if "file_name" not in self.columns:
            raise ValueError(
                f"{self.path} has no column file_name (columns: {', '.join(self.columns) or 'none'}); add it, with the "
                "path of each image relative to this file, or move the file away"
            )

    def labels(self, files: Sequence[File]) -> dict[tuple[str, ...], _Label]:
        """Label of each listed image."""
        listed = self.listed(files).items()
        return {parts: _Label(self._value(row.get(self.label or ""), where), where) for parts, (row, where) in listed}

    def listed(self, files: Sequence[File]) -> dict[tuple[str, ...], tuple[dict[str, Any], str]]:
        """Row of each listed image, and where it is."""
        there = {file.parts: file for file in files}
        normal = {_normal(parts): parts for parts in there}
        found: dict[tuple[str, ...], tuple[dict[str, Any], str]] = {}
        for number, row in enumerate(self.rows, start=1):
            where = f"row {number} of {self.path}"
            parts = self._parts(str(row.get("file_name") or ""), where)
            file = there.get(parts) or there.get(normal.get(_normal(parts), ()))
            if file is None:
                raise ValueError(
                    f"{where}: the file {row.get('file_name')!r} does not exist; correct or remove the row"
                )
            if file.reason:
                raise ValueError(f"{where}: {row['file_name']} is not an image ({file.reason}); remove the row")
            if file.parts in found:
                raise ValueError(f"{where}: {row['file_name']} is listed twice; remove a row")
            found[file.parts] = row, where
        return found

    def _parts(self, name: str, where: str) -> tuple[str, ...]:
        path = PurePosixPath(name.replace("\\", "/"))
        if not name or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{where}: file_name must be the path of a file below {self.path.parent}, got {name!r}")
        return (*self.base, *path.parts)

    def _value(self, value: Any, where: str) -> Any:
        if isinstance(value, str):
            value = value.strip()
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or value == "" or value != value:
            missing = sum(row.get(self.label or "") in (None, "") for row in self.rows)
            raise ValueError(
                f"{where} has no label in the column {self.label} ({missing} of {len(self.rows)} rows have none); add "
                "it, or remove the row and move the image away"
            )
        if not isinstance(value, str | int) or str(value).startswith("-"):
            raise ValueError(f"{where}: expected a name or whole number in {self.label}, got {value!r}; correct it")
        return value


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.name.lower().endswith(".parquet"):
            from datasets import Dataset

            return Dataset.from_parquet(str(path)).to_list()  # type: ignore[no-any-return]
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.name.lower().endswith(".csv"):
                return [{str(key): value for key, value in row.items()} for row in csv.DictReader(file)]
            rows = [json.loads(line) for line in file if line.strip()]
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are ValueError or OSError
        raise ValueError(f"the metadata file {path} cannot be read ({error}); repair it, or move it away") from error
    if wrong := [number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)]:
        raise ValueError(f"row {wrong[0]} of {path}: expected an object with file_name; correct it")
    return rows


def _column(
    root: Path, files: Sequence[File], tables: "Sequence[_Metadata]", column: str
) -> dict[tuple[str, ...], str]:
    """Values of a column of metadata files, as words; empty for none."""
    holding = [table for table in tables if column in table.columns]
    if not holding:
        columns = dict.fromkeys(name for table in tables for name in table.columns)
        raise ValueError(
            f"no metadata file in {root} has a column {column!r} (columns: {', '.join(columns) or 'no file'}); add a "
            f"metadata.csv with columns file_name and {column}"
        )
    rows = ((parts, row) for table in holding for parts, (row, _) in table.listed(files).items())
    return {parts: "" if (value := row.get(column)) is None else str(value).strip() for parts, row in rows}


def _values(labels: Sequence[_Label]) -> list[Any]:
    """Labels as whole numbers, if all are; otherwise as words."""
    words = [str(label.value) for label in labels]
    if all(word.isascii() and word.isdigit() and word == str(int(word)) for word in words):
        return [int(word) for word in words]
    return words


def _same_as_folders(depth: int, images: Sequence[File], labels: Sequence[_Label]) -> bool:
    """Return whether labels and first-level folders are the same classes; folders that are no classes are not.

    Raises:
        ValueError: several folders that contradict the labels.
    """
    folders = [file.parts[depth] if len(file.parts) > depth + 1 else "" for file in images]
    if len(set(folders)) < 2:
        return False
    label_of: dict[str, Any] = {}
    folder_of: dict[Any, str] = {}
    for folder, label, file in zip(folders, labels, images, strict=True):
        value = label.value
        if label_of.setdefault(folder, value) != value or folder_of.setdefault(value, folder) != folder:
            raise ValueError(
                f"{label.where}: {'/'.join(file.parts)} has the label {value!r}, which contradicts the folders "
                "(images of one folder must have one label of their own); correct it, remove the metadata file to "
                "train on the folders, or pass --label-column label to train on the metadata"
            )
    return True


def _normal(parts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", part) for part in parts)
