"""Shared by several recipes: settings as ``name=value``, public images, log messages."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from calor_hf.core.config import MethodConfig
from calor_hf.data.loading import Splits
from calor_hf.data.public_images import PublicImages
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.targets.hf_target import HFTarget

PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH = 500, 20

PREDICTIONS = "test_predictions.json"
"""File of a training run with the labels and predicted classes of its test images."""


def settings_of(kind: type[MethodConfig], settings: Sequence[str], flag: str) -> dict[str, Any]:
    """Parse and check settings of a method, each as ``name=value``.

    Raises:
        ValueError: the method does not have a setting, or refuses its value, or lacks one (the message names ``flag``).
    """
    values = kind.parse(settings)
    try:
        kind.from_dict(values)
    except TypeError as error:
        raise ValueError(f"{flag}: {error}") from error
    return values


def load_public_images(source: str | None, image_size: int, crop: int | None = None) -> PublicImages:
    """Load the public images of an attacker.

    Args:
        source: Image folder, parquet file or folder, or Hub id; None for drawn faces of identities that are disjoint
            from the private ones.
        image_size: Side in pixels.
        crop: Side of the central square that is kept, in pixels of the original.

    Raises:
        FileNotFoundError: ``source`` looks like a path that does not exist.
        ValueError: it holds no images.
    """
    if source is None:
        identities = load_synthetic_faces(PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH, image_size, stream="public")
        return PublicImages(identities, image_size)
    from calor_hf.data.loading import load_images

    return PublicImages(load_images(source), image_size, crop)


def is_embedded(target: HFTarget) -> bool:
    """Return whether the target's classes are the drawn faces."""
    names = getattr(target.module.config, "id2label", {})
    return bool(names) and all(name == f"identity_{int(index):03d}" for index, name in names.items())


def check_classes(splits: Splits, target: HFTarget) -> None:
    """Refuse data whose classes are not those of the target.

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
    """Return ``source`` if it is a Hub id; None for folders and files, whose paths are private."""
    return None if source is None or Path(source).expanduser().exists() else source


def log_to_terminal(main_process: bool = True) -> None:
    """Show log messages of this library on the terminal; other processes than the main one show errors only."""
    ours = logging.getLogger("calor_hf")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO if main_process else logging.ERROR)
    transformers.utils.logging.disable_progress_bar()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join(lines)
