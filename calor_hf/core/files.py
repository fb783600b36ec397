"""Files that are whole or not there, and what is in them."""

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
from typing import TYPE_CHECKING, Any

from calor_hf.core.own_errors import is_own
from calor_hf.core.validation import content_error, type_error

if TYPE_CHECKING:
    from torch import Tensor

MAX_TEXT = 256 * 2**20
"""Bytes of a text file that is read at most."""
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # as transformers names them, whole or in parts
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_PART = re.compile(r".+\.\d+\.part")  # as write_whole names them
# torch.save raises a RuntimeError if a disk is full or not to be written to; faults of programs are one, too.
_FAULT_OF_DISK = re.compile("PytorchStreamWriter|inline_container|iostream")


class NotSavedError(OSError):
    """Something could not be written."""


@contextmanager
def saving(place: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what libraries, and the system, raise if a disk is full into an error that says where and what to do.

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

    For the begin of a run, when no one else writes there.
    """
    for path in folder.rglob("*.part"):
        if _PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


def delete(paths: Iterable[Path]) -> None:
    """Delete files, and folders with what is in them; one that is not there is passed over."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def check_unused(folder: Path, work: str) -> None:
    """Raise ``FileExistsError`` where something lies in an output folder; ``work`` is what could be resumed there."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"the output folder {folder} is not empty; pass another --output-dir, --resume to go on with the {work} in "
            f"it, or --overwrite to delete the {work}"
        )


def check_writable(folder: Path) -> None:
    """Make a folder and try to write into it, so that long work does not end at its first file.

    Raises:
        OSError: it is a file, or not to be written to.
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


def parse_json(text: str, name: str, shape: Any = dict) -> Any:
    """As :func:`read_json`, of a text; ``name`` is what messages call it."""
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
    """Inside, whatever another library raises for damaged files becomes a ``ValueError`` that names ``what``.

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
