"""Files that are whole or not there, and what is in them."""

import hashlib
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # as transformers names them, whole or in parts
_PART = re.compile(r".+\.\d+\.part")  # as write_whole names them


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees all of it or none, whatever happens meanwhile.

    Raises:
        OSError: no room or no permission; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_figure(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib as PNG, as :func:`write_whole` does."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())


def remove_parts(folder: Path) -> None:
    """Delete what :func:`write_whole` left in a folder, and in those inside it, when its process was killed.

    For the begin of a run, when nobody else writes there.
    """
    for path in folder.rglob("*.part"):
        if _PART.fullmatch(path.name):
            path.unlink(missing_ok=True)


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
    """SHA-256 of a saved model's weights, by which a measurement is known to belong to them; None: there are none."""
    files = sorted(file for file in folder.glob("model*.safetensors") if WEIGHTS.fullmatch(file.name))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
