"""Verification: would a face lock open? At a stated rate of opening for strangers."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics.base import METRICS, Direction, Evidence, Measure, Metric, check_rows, mean_over_images

RATES = {"1e-2": 100, "1e-3": 1_000, "1e-4": 10_000}  # a stranger passes in one of so many tries


def best_cosine(probes: Tensor, gallery: Tensor) -> Tensor:
    """Cosine of each probe to the image of a gallery that is most like it.

    Args:
        probes: (n, d) features; a row of zeros has cosine 0 to all.
        gallery: (m, d) features, m >= 1.

    Returns:
        (n,) float64 in [-1, 1].
    """
    return (F.normalize(probes.double()) @ F.normalize(gallery.double()).T).amax(dim=1)


def threshold_at(impostors: Tensor, one_in: int) -> float:
    """Score above which at most one of ``one_in`` impostors lies.

    Args:
        impostors: (n,) scores.
        one_in: Tries in which a stranger may pass once, >= 2.

    Returns:
        A score, to be exceeded; NaN with fewer than ``one_in`` impostors, who cannot tell such a rate.
    """
    if len(impostors) < one_in:
        return math.nan
    return float(impostors.sort(descending=True).values[len(impostors) // one_in])


@METRICS.register("verification")
class Verification(Metric):
    """Share of reconstructions that verification takes for the person, where strangers pass at 1 %, 0.1 %, 0.01 %.

    A image's score is its highest cosine to a gallery, the private training images of one person. Impostors are
    held-out images of other people, each against every gallery. A larger gallery is easier to enter; as impostors,
    genuine images and reconstructions all meet the same whole ones, the rate holds on average over the attacked
    people even where they have unequal numbers of images. The intervals take the threshold as known.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519, for the reason; ISO/IEC 19795-1 for the rates.
    """

    needs = ("embedding", "held_labels")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``verified@FAR=…``, and ``genuine_accepted@FAR=…`` of the person's own held-out images: the ceiling.

        NaN where strangers tried less often than the rate needs.
        """
        self.require(evidence)
        view, labels, held_labels = evidence.embedding, evidence.labels, evidence.held_labels
        assert view is not None  # as just required
        assert held_labels is not None
        if view.held_features is None:
            raise ValueError("verification needs held-out private images; pass held_images to the audit")
        check_rows(labels, features=view.features)
        check_rows(evidence.private_labels, private_features=view.private_features)
        check_rows(held_labels, held_features=view.held_features)

        scores = torch.empty(len(labels), dtype=torch.float64)
        genuine, owners, impostors = [], [], []
        for label in labels.unique():
            gallery = view.private_features[evidence.private_labels == label]
            if len(gallery) == 0:
                raise ValueError(f"no private image of class {int(label)}; pass the data the target was trained on")
            scores[labels == label] = best_cosine(view.features[labels == label], gallery)
            known, own = best_cosine(view.held_features, gallery), held_labels == label
            genuine.append(known[own])
            owners.append(held_labels[own])
            impostors.append(known[~own])

        strangers, found = torch.cat(impostors), []
        for name, one_in in RATES.items():
            threshold = threshold_at(strangers, one_in)
            note = f"at a rate of 1 in {one_in:,} strangers, who tried {len(strangers):,} times; by {view.name}"
            found.append(_accepted(f"verified@FAR={name}", "leakage", scores, labels, threshold, note))
            ceiling = _accepted(
                f"genuine_accepted@FAR={name}", "neither", torch.cat(genuine), torch.cat(owners), threshold,
                f"held-out images of the person {note}",
            )  # fmt: skip
            found.append(dataclasses.replace(ceiling, std=math.nan))  # they have no restarts
        return found


def _accepted(name: str, direction: Direction, scores: Tensor, labels: Tensor, threshold: float, note: str) -> Measure:
    """Share of scores above the threshold; NaN where it is unknown or there are no scores."""
    if math.isnan(threshold):
        reason = f"too few tries: {note}"
    elif len(scores) == 0:
        reason = "no held-out images of the attacked people"
    else:
        return mean_over_images(name, "share", direction, (scores > threshold).double(), labels, note)
    return Measure(name, math.nan, "share", direction, len(scores), len(labels.unique()), note=reason)
