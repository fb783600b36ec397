"""Keyed fingerprints of the images that a model was trained on, kept in its folder and never published."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from calor_hf.core.files import read_json, write_json

FINGERPRINTS = "training-images.json"
"""File of a model's folder; without its key the fingerprints say nothing about an image."""


def keep_fingerprints(folder: Path, digests: Iterable[str]) -> None:
    """Write the fingerprints of training images, by their digests, under a key derived from all of them."""
    known = sorted(set(digests))
    key = hashlib.sha256("".join(known).encode()).hexdigest()[:32]
    write_json(folder / FINGERPRINTS, {"key": key, "images": sorted(_keyed(key, digest) for digest in known)})


def trained_on(folder: Path, digests: Iterable[str]) -> int:
    """Return how many images, by their digests, the model in a folder was trained on; 0 if it has no record."""
    file = folder / FINGERPRINTS
    if not file.is_file():
        return 0
    kept = read_json(file, {"key": str, "images": list[str]})
    known = set(kept["images"])
    return sum(_keyed(kept["key"], digest) in known for digest in digests)


def _keyed(key: str, digest: str) -> str:
    return hmac.new(key.encode(), digest.encode(), "sha256").hexdigest()[:32]
