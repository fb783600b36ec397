"""Face verification: share of reconstructions accepted at a given false acceptance rate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.report import Direction, Measure
from calor_hf.metrics.base import METRICS, Evidence, Metric, check_rows, mean_over_images, private_images_of

RATES = {"1e-2": 100, "1e-3": 1_000, "1e-4": 10_000}  # one false acceptance in so many impostor trials


def best_cosine(probes: Tensor, gallery: Tensor) -> Tensor:
    """(n,) float64 cosines of (n, d) probes to the most similar of (m, d) gallery features; 0 for a row of zeros."""
    return (F.normalize(probes.double()) @ F.normalize(gallery.double()).T).amax(dim=1)


def threshold_at(impostors: Tensor, one_in: int) -> float:
    """Threshold that at most one in ``one_in`` (>= 2) of (n,) impostor scores exceeds.

    NaN with fewer than ``one_in`` impostors, too few to estimate the rate.
    """
    if len(impostors) < one_in:
        return math.nan
    # At most len // one_in scores are above the one at that place, ties or not.
    return float(impostors.sort(descending=True).values[len(impostors) // one_in])


@METRICS.register("verification")
class Verification(Metric):
    """Share of reconstructions that face verification accepts, at false acceptance rates of 1 %, 0.1 % and 0.01 %.

    The score of an image is its highest cosine to a gallery, the private training images of one identity. Impostors are
    held-out images of other identities, each against every gallery. The intervals treat the threshold as known.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519, for the reason; ISO/IEC 19795-1 for the rates.
    """

    needs = ("embedding", "held_labels")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``verified@FAR=…``, and ``genuine_accepted@FAR=…`` of held-out images of the identity, the upper bound.

        NaN if there are too few impostors for the rate.
        """
        view, labels = self.view(evidence, "embedding"), evidence.labels
        _, held_labels = self.require(evidence)
        if view.held_features is None:
            raise ValueError("verification needs held-out private images; pass held_images to the audit")
        check_rows(held_labels, held_features=view.held_features)

        scores = torch.empty(len(labels), dtype=torch.float64)
        genuine, owners, impostors = [], [], []
        for label in labels.unique().tolist():
            # A larger gallery is easier to match. Impostors, genuine images and reconstructions all meet the same whole
            # galleries, so the rate holds on average over the attacked identities, even with unequal numbers of images.
            gallery = view.private_features[private_images_of(label, evidence.private_labels)]
            scores[labels == label] = best_cosine(view.features[labels == label], gallery)
            known, own = best_cosine(view.held_features, gallery), held_labels == label
            genuine.append(known[own])
            owners.append(held_labels[own])
            impostors.append(known[~own])

        others, found = torch.cat(impostors), []
        for name, one_in in RATES.items():
            threshold = threshold_at(others, one_in)
            note = f"at a rate of 1 in {one_in:,} strangers, who tried {len(others):,} times; by {view.name}"
            found += [
                _accepted(f"verified@FAR={name}", "leakage", scores, labels, threshold, note),
                _accepted(
                    f"genuine_accepted@FAR={name}", "neither", torch.cat(genuine), torch.cat(owners), threshold,
                    f"held-out images of the person {note}", slots=False,
                ),
            ]  # fmt: skip
        return found


def _accepted(
    name: str, direction: Direction, scores: Tensor, labels: Tensor, threshold: float, note: str, slots: bool = True
) -> Measure:
    """Share of scores above the threshold; NaN if the threshold is unknown or there are no scores."""
    if math.isnan(threshold):
        reason = f"too few tries: {note}"
    elif len(scores) == 0:
        reason = "no held-out images of the attacked people"
    else:
        return mean_over_images(name, "share", direction, (scores > threshold).double(), labels, note, slots)
    return Measure(name, math.nan, "share", direction, len(scores), len(labels.unique()), note=reason)
