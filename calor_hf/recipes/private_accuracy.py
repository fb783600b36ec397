"""Test accuracy of private identities and of decoys, which is for the secret folder: a difference tells them apart."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calor_hf.core.config import setting
from calor_hf.core.exact_interval import exact_interval
from calor_hf.core.report_text import percent
from calor_hf.data.decoys import IDENTITIES, read_assignment, write_secret
from calor_hf.data.public_images import labeled_pixels
from calor_hf.recipes.common import log_to_terminal
from calor_hf.recipes.data_options import DataOptions
from calor_hf.targets.hf_target import HFTarget

logger = logging.getLogger("calor_hf.decoys")


@dataclass(frozen=True, kw_only=True)
class AccuracyOptions:
    """Options of :func:`private_accuracy`."""

    data: Path = setting(help="Folder that decoys deal wrote, with its secret next to it.", positional=True)
    model: str = setting(help="Folder of a model that was trained on these data.")


@torch.no_grad()
def private_accuracy(options: AccuracyOptions) -> dict[str, Any]:
    """Measure a model's test accuracy on private identities and on decoys, as `decoys accuracy` does.

    Returns:
        Content of the file in the secret folder; by ``private`` and ``decoys``: accuracy, its exact 95 % interval, and
        the number of images. To publish it, round it to 1 %.

    Raises:
        FileNotFoundError: no data, or no assignment.
        ValueError: the model has other classes than the data.
    """
    log_to_terminal()
    secret = read_assignment(options.data)
    target = HFTarget.from_pretrained(options.model)
    splits = DataOptions(dataset=str(options.data), allow_duplicates_across_splits=True).load(0)
    test = splits.for_classes(target.class_names).test
    pixels, labels = labeled_pixels(test, test[0]["image"].width)
    predicted = torch.cat([target(some / 255).argmax(dim=1) for some in pixels.split(64)])
    right, private = (predicted == labels).numpy(), np.isin(test[IDENTITIES], secret.private)
    found: dict[str, Any] = {"model": options.model, "weights": target.files.get("weights")}
    for name, of in (("private", private), ("decoys", ~private)):
        hits, count = int(right[of].sum()), int(of.sum())
        low, high = exact_interval(hits, count)
        found[name] = {"accuracy": hits / count, "low": low, "high": high, "images": count}
        shown = (percent(share) for share in (hits / count, low, high))
        logger.info("test accuracy of %s: %s [%s, %s], %d images", name, *shown, count)
    write_secret(options.data, f"accuracy-{Path(options.model).name}.json", found)
    return found
