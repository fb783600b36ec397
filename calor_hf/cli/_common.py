"""What several commands share: settings as words, public images, messages to the terminal."""

import logging
import sys
from typing import Any

import transformers

from calor_hf.core.config import MethodConfig
from calor_hf.data.public_images import PublicImages
from calor_hf.data.synthetic_faces import load_synthetic_faces

PUBLIC_PEOPLE, PUBLIC_PICTURES = 500, 20


def settings_of(kind: type[MethodConfig], words: list[str], flag: str) -> dict[str, Any]:
    """Settings of a method from words ``name=value``.

    Raises:
        ValueError: a setting that the method does not have or take; the message names ``flag``.
    """
    values = kind.parse(words)
    try:
        kind.from_dict(values)
    except TypeError as error:
        raise ValueError(f"{flag}: {error}") from error
    return values


def load_public_images(source: str | None, image_size: int, crop: int | None = None) -> PublicImages:
    """Public images of an attacker, of any image set; None: drawn people, none of the private ones.

    Args:
        source: Image folder, parquet file or folder, or Hub id.
        image_size: Side in pixels.
        crop: Side of the middle square that is kept, in pixels of the original.

    Raises:
        FileNotFoundError: ``source`` looks like a path and is none.
        ValueError: it holds no images.
    """
    if source is None:
        people = load_synthetic_faces(PUBLIC_PEOPLE, PUBLIC_PICTURES, image_size, stream="public")
        return PublicImages(people, image_size)
    from calor_hf.data.loading import load_images

    return PublicImages(load_images(source), image_size, crop)


def log_to_terminal(main_process: bool = True) -> None:
    """Messages of this library on the terminal; those of other processes than the first only if they are errors."""
    ours = logging.getLogger("calor_hf")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO if main_process else logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
