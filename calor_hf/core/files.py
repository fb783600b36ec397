"""Files that are written completely or not at all, and how they are read."""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from calor_hf.core.own_errors import is_own
from calor_hf.core.validation import content_error, type_error

if TYPE_CHECKING:
    from torch import Tensor

MAX_TEXT = 256 * 2**20
"""Bytes of a text file that is read at most."""
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # as transformers names them, whole or in parts
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PART = re.compile(r".+\.\d+\.part")  # as write_whole names them
# torch.save raises a RuntimeError if a disk is full or not writable; faults of programs are one, too.
_FAULT_OF_DISK = re.compile("PytorchStreamWriter|inline_container|iostream")


class NotSavedError(OSError):
    """Something could not be written."""


@contextmanager
def saving(place: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager that turns errors about a full disk into one that names the place and the remedy.

    Raises:
        NotSavedError: ``place`` could not be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except NotSavedError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _FAULT_OF_DISK.search(str(error)):
            raise
        reason = str(error).partition("\n")[0]  # torch may add where in its C++ it was
        raise NotSavedError(
            f"cannot write {place} ({reason}); what was finished before is kept: make room, or allow writing there, "
            "and resume"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees all of it or none, whatever happens meanwhile.

    Raises:
        NotSavedError: no room or no permission; nothing is left behind.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def write_json(path: Path, content: Any, **options: Any) -> None:
    """Write JSON as :func:`write_whole` does; ``options`` are those of ``json.dumps``."""
    write_whole(path, (json.dumps(content, **options) + "\n").encode())


def write_figure(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib as PNG, as :func:`write_whole` does."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())


def remove_parts(folder: Path) -> None:
    """Delete what :func:`write_whole` left in a folder, and in those inside it, when its process was killed.

    For the start of a run, when no other process writes there.
    """
    for path in folder.rglob("*.part"):
        if _PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


def delete(paths: Iterable[Path]) -> None:
    """Delete files, and folders with their content; missing ones are skipped."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def check_unused(folder: Path, work: str) -> None:
    """Raise ``FileExistsError`` if an output folder is not empty; ``work`` is what could be resumed there."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"the output folder {folder} is not empty; pass another --output-dir, --resume to go on with the {work} in "
            f"it, or --overwrite to delete the {work}"
        )


def check_writable(folder: Path) -> None:
    """Make a folder and try to write into it, so that long work does not end at its first file.

    Raises:
        OSError: it is a file, or not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write to the output folder ({error.strerror}); pass another one", str(folder)
        ) from error


def weights_digest(folder: Path) -> str | None:
    """SHA-256 of a saved model's weights, by which a measurement is known to belong to them; None without weights."""
    files = sorted(file for file in folder.glob("model*.safetensors") if WEIGHTS.fullmatch(file.name))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def processor_digest(folder: Path) -> str | None:
    """Return the SHA-256 of a saved image processor's settings, or None if the folder has no processor."""
    for name in PROCESSORS:
        if (file := folder / name).is_file():
            return hashlib.sha256(json.dumps(read_json(file), sort_keys=True).encode()).hexdigest()
    return None


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than :data:`MAX_TEXT`, or no UTF-8.
    """
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise ValueError(f"{path} has {size} bytes, and at most {MAX_TEXT} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: no text in UTF-8 ({error})") from error


def read_json(path: Path, shape: Any = dict) -> Any:
    """Return the content of a JSON file, of a type that :func:`calor_hf.core.validation.type_error` takes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is cut off or something else; the message names the file and what is wrong.
    """
    return parse_json(read_text(path), str(path), shape)


class _AsWritten(yaml.SafeLoader):
    """Loader that keeps words as they are written: ``no``, ``1e-4`` and ``007`` stay texts; null is None."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is there twice, of which YAML would keep the last value."""
        keys = [key.value for key, _ in node.value]
        if doubled := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"{doubled[0]} is given twice", problem_mark=node.start_mark)
        return dict(super().construct_mapping(node, deep))


def read_yaml(path: Path, content: str) -> dict[str, Any]:
    """Return the content of a YAML file: a mapping, whose words are texts as they are written, or None for null.

    Args:
        path: The file.
        content: Keys and values that are expected, for the error, such as "names to values".

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML, no mapping, or has a key twice.
    """
    try:
        found = yaml.load(read_text(path), Loader=_AsWritten)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path} must map {content}, got {found!r:.60}")
    return found


def parse_json(text: str, name: str, shape: Any = dict) -> Any:
    """Parse JSON text as :func:`read_json` does; messages call it ``name``."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is damaged: not JSON, or cut off ({error})") from error
    if problem := content_error(content) or type_error(content, shape):
        raise ValueError(f"{name} is damaged: {problem}")
    return content


def read_tensors(path: str | Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Tensors and notes of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut off or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error})") from error


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Context manager that turns errors of other libraries about damaged files into a ``ValueError`` with ``what``.

    Errors that say themselves what to do (our own, ``OSError``, a missing package, no memory) stay as they are.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # transformers, YAML and safetensors raise errors of dozens of kinds, also for damage
        if is_own(error) or type(error).__name__ == "OutOfMemoryError":  # of torch
            raise
        text = " ".join(str(error).split())[:500]
        if isinstance(error, ValueError):
            raise ValueError(f"{what} cannot be read: {text}") from error
        raise ValueError(
            f"{what} cannot be read: damaged, or made for another version ({type(error).__name__}: {text})"
        ) from error
