"""Conversion of images to upright 8-bit RGB, and detection of unreadable ones."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

ON_BAD_IMAGE = ("raise", "skip")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB, rotated by its EXIF orientation.

    Transparent parts become white; 16-bit gray keeps its upper eight bits (32-bit and floating-point gray is taken as
    [0, 1], [0, 255] or [0, 65535] by its largest value); for an animation, the first frame is used.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def without_bad_images(data: Any, image_column: str, on_bad_image: str = "raise") -> tuple[Any, list[str]]:
    """Decode every image once; raise an error for unreadable ones, or leave them out.

    Args:
        data: ``datasets.Dataset``; the result is cached like any ``map``.
        image_column: Column of the images.
        on_bad_image: ``"raise"`` or ``"skip"``, which logs the images it leaves out.

    Returns:
        The images that can be read, and a digest of the encoded bytes of each: the same for identical files.

    Raises:
        ValueError: unreadable images with ``"raise"`` (the message names files), or an unknown ``on_bad_image``.
    """
    from datasets import Image as ImageFeature

    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"unknown on_bad_image {on_bad_image!r}; pass {' or '.join(ON_BAD_IMAGE)}")
    raw = data.select_columns([image_column]).cast_column(image_column, ImageFeature(decode=False))
    checked = raw.map(_check, input_columns=[image_column], remove_columns=[image_column], desc="Checking images")
    problems, digests = list(checked["problem"]), list(checked["digest"])
    bad = [index for index, problem in enumerate(problems) if problem]
    if not bad:
        return data, digests
    listed = "; ".join(f"{raw[i][image_column]['path'] or f'row {i}'}: {problems[i]}" for i in bad[:5])
    more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
    summary = f"{len(bad)} of {len(data)} images cannot be read ({listed}{more})"
    if on_bad_image == "raise":
        raise ValueError(f"{summary}; repair or remove them, or leave them out with --on-bad-image skip")
    logger.warning("%s; they are left out", summary)
    kept = [index for index, problem in enumerate(problems) if not problem]
    return data.select(kept), [digests[index] for index in kept]


def content_digests(data: Any, image_column: str = "image") -> list[str]:
    """Digest of the encoded bytes of each image, as :func:`without_bad_images` gives it, without decoding."""
    from datasets import Image as ImageFeature

    raw = data.select_columns([image_column]).cast_column(image_column, ImageFeature(decode=False))
    return [_digest(_content(row[image_column])) for row in raw]


def _content(stored: dict[str, Any]) -> bytes:
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _check(stored: dict[str, Any] | None) -> dict[str, str]:
    digest = ""
    try:
        if stored is None:
            raise ValueError("empty")
        content = _content(stored)
        digest = _digest(content)
        with Image.open(io.BytesIO(content)) as image:
            to_rgb(image)
    except Exception as error:  # Pillow's decoders raise whatever their format makes them raise
        return {"problem": f"{type(error).__name__}: {error}".replace("\n", " ")[:200], "digest": digest}
    return {"problem": "", "digest": digest}


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    highest = values.max(initial=0.0)
    if image.mode.startswith("I;16") or highest > 255:
        values = values / 257
    elif image.mode == "F" and highest <= 1:
        values = values * 255
    return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))
