"""Exchangeability of private identities and decoys in merged data: the test, its verdict, and what it refuses."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.core.decoy_sentences import SENTENCES
from calor_hf.core.files import read_json
from calor_hf.data.decoys import ABOUT, IDENTITIES, SPLITS, VERDICT, read_assignment, write_secret
from calor_hf.data.exchangeability import (
    REFUSED,
    Exchangeability,
    describe_people,
    image_statistics,
    two_sample_test,
)
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import dealt_identities
from calor_hf.recipes.common import hub_id, log_to_terminal
from calor_hf.recipes.data_options import DataOptions
from calor_hf.targets.hf_target import target_of

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("calor_hf.decoys")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Options of :func:`check_decoys`."""

    data: Path = setting(help="Folder that decoys deal wrote, with its secret next to it.", positional=True)
    model: str | None = setting(None, "Base model, a folder or Hub id, whose features are tested too.")
    accept_distinguishable_decoys: bool = setting(False, "End without an error, even if decoys can be told.")


def check_decoys(options: CheckOptions) -> Exchangeability:
    """Test whether private identities and decoys are exchangeable, and keep the verdict, as `decoys check` does.

    Raises:
        FileNotFoundError: no data, or no assignment.
        ValueError: decoys can be distinguished from private identities.
    """
    log_to_terminal()
    secret = read_assignment(options.data)
    about = read_json(options.data / ABOUT, {"exchangeable_by_construction": bool})
    splits = DataOptions(dataset=str(options.data), allow_duplicates_across_splits=True).load(0)
    merged = {split: getattr(splits, split) for split in SPLITS}
    images = some_images(merged)
    features = features_of(images, options.model) if options.model else None
    private = np.array(secret.private) % secret.k
    names = [name for members in secret.names for name in members]
    by_construction = about["exchangeable_by_construction"]
    if by_construction and dealt_identities(merged["train"], names, range(len(names))) is None:
        logger.warning("%s: not all images are drawn faces, so nothing is exchangeable by construction", options.data)
        by_construction = False
    found = exchangeability(images, private, secret.k, by_construction, features, options.model)
    logger.info("%s\n%s", found, "\n".join(SENTENCES))
    write_secret(options.data, VERDICT, found.to_dict())
    check_exchangeable(found, options.accept_distinguishable_decoys)
    return found


def exchangeability(
    images: "Dataset", private: NDArray[np.int64], k: int, by_construction: bool,
    features: Tensor | None = None, model: str | None = None,
) -> Exchangeability:  # fmt: skip
    """Test merged images on their statistics and, if given, on features.

    Args:
        images: As :func:`some_images`.
        private: (classes,) position of the private member in its class.
        k: Identities per class.
        by_construction: Whether all identities were drawn from one population.
        features: (images, features), as :func:`features_of`.
        model: Folder or Hub id of the model that they are of; a folder is not named.
    """
    rows = {"image statistics": image_statistics(images["image"])}
    if features is not None:
        rows[f"features of {hub_id(model) or 'a local model'}"] = features.double().numpy()
    identities = np.asarray(images[IDENTITIES])
    tests = (two_sample_test(name, describe_people(of, identities), private, k) for name, of in rows.items())
    return Exchangeability(k, len(private), by_construction, tuple(tests))


def check_exchangeable(found: Exchangeability, accepted: bool) -> None:
    """Refuse decoys that can be distinguished from private identities, unless ``accepted``.

    Raises:
        ValueError: the lower end of an AUC is above 0.75.
    """
    if found.distinguishable and not accepted:
        raise ValueError(
            f"{found.statement} (the lower end of an AUC is above {REFUSED}); take decoys of the same source, camera "
            "and processing as the private images, or pass --accept-distinguishable-decoys"
        )


def some_images(merged: "dict[str, Dataset]", most: int = 12) -> "Dataset":
    """At most so many images of each identity, training images first; which ones is as random as their order."""
    from datasets import concatenate_datasets

    images = concatenate_datasets([merged[split] for split in SPLITS])
    identities = np.asarray(images[IDENTITIES])
    order = np.argsort(identities, kind="stable")
    starts = np.searchsorted(identities[order], identities[order])
    return images.select(np.sort(order[np.arange(len(order)) - starts < most]))


@torch.no_grad()
def features_of(images: "Dataset", model: str) -> Tensor:
    """(images, features) that enter the classifier of a model, a folder or Hub id."""
    target = target_of(model)
    pixels, _ = labeled_pixels(images, images[0]["image"].width)
    return torch.cat([target.features(some / 255) for some in pixels.split(64)])
