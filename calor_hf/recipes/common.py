"""What several commands share: settings as words, public images, messages to the terminal."""

import logging
import sys
from pathlib import Path
from typing import Any

import transformers

from calor_hf.core.config import MethodConfig
from calor_hf.data.loading import Splits
from calor_hf.data.public_images import PublicImages
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.targets.hf_target import HFTarget

PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH = 500, 20


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
        identities = load_synthetic_faces(PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH, image_size, stream="public")
        return PublicImages(identities, image_size)
    from calor_hf.data.loading import load_images

    return PublicImages(load_images(source), image_size, crop)


def is_embedded(target: HFTarget) -> bool:
    """Whether the target's classes are the drawn faces."""
    names = getattr(target.module.config, "id2label", {})
    return bool(names) and all(name == f"identity_{int(index):03d}" for index, name in names.items())


def check_classes(splits: Splits, target: HFTarget) -> None:
    """Refuse data that the target was not trained on, as far as the classes tell.

    Raises:
        ValueError: the data have other classes than the target, or the same in another order.
    """
    config: Any = target.module.config
    names = [config.id2label[index] for index in range(target.num_classes)]
    if len(splits.label_names) != target.num_classes:
        raise ValueError(
            f"the data have {len(splits.label_names)} classes, the target {target.num_classes}; pass the data it was "
            "trained on"
        )
    if set(names) == set(splits.label_names) and names != splits.label_names:
        raise ValueError("the target has the same class names in another order; pass the data it was trained on")


def hub_id(source: str | None) -> str | None:
    """``source`` if it is an id on the Hub; None for folders and files, whose paths are no one's business."""
    return None if source is None or Path(source).expanduser().exists() else source


def log_to_terminal(main_process: bool = True) -> None:
    """Messages of this library on the terminal; those of other processes than the first only if they are errors."""
    ours = logging.getLogger("calor_hf")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO if main_process else logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
