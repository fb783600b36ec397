"""Shared by several recipes: settings as ``name=value``, log messages, tables."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from calor_hf.core.config import MethodConfig
from calor_hf.data.decoys import secret_folder
from calor_hf.targets.hf_target import HFTarget

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


def check_apart(folder: Path, dataset: str | None, model: str | None = None) -> None:
    """Refuse an output folder in which results would mix with the data, or replace the base model.

    Args:
        folder: The output folder.
        dataset: Folder with the data, or another source.
        model: Folder of the base model, or a Hub id.

    Raises:
        ValueError: ``folder`` is the data folder, or inside it, or the model's folder.
    """
    place = folder.expanduser().resolve()
    data, base = (None if source is None else Path(source).expanduser().resolve() for source in (dataset, model))
    if data is not None and data.is_dir() and (place == data or data in place.parents):
        raise ValueError(f"--output-dir {folder} is in the data folder {dataset}; pass one outside of it")
    secret = None if dataset is None else secret_folder(dataset)
    if secret is not None and secret.is_dir() and (secret in (place, *place.parents) or place in secret.parents):
        raise ValueError(f"--output-dir {folder} holds the secret of the decoys, {secret}; pass another one")
    if base is not None and base.is_dir() and place == base:
        raise ValueError(f"--output-dir {folder} is the folder of the model it starts from; pass another one")


def is_embedded(target: HFTarget) -> bool:
    """Return whether the target's classes are the drawn faces."""
    return target.class_names == [f"identity_{index:03d}" for index in range(target.num_classes)]


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
