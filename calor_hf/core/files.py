"""Files that are whole or not there, and what is in them."""

import hashlib
import os
import re
from pathlib import Path

WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # as transformers names them, whole or in parts


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
