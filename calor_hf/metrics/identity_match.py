"""Identity match: whether the face drawn in a reconstruction is nearest to the right person among all enrolled."""

import torch
from torch import Tensor

from calor_hf.core.report import MATCH, MATCHED
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_identities, mean_over_images


def distances(identity: Tensor, enrolled: Tensor) -> Tensor:
    """(n, identities) Euclidean distances, in float64."""
    # The faster form by a matrix product loses small distances to cancellation.
    return torch.cdist(identity.double(), enrolled.double(), compute_mode="donot_use_mm_for_euclid_dist")


def matched(identity: Tensor, labels: Tensor, enrolled: Tensor) -> Tensor:
    """Return whether the nearest identity is the right one.

    Args:
        identity: (n, k) identity numbers of the reconstructions.
        labels: (n,) int64 in [0, classes).
        enrolled: (classes, k) true identity numbers of every class.

    Returns:
        (n,) float64, 0 or 1, by Euclidean distance; a tie is wrong.

    Raises:
        ValueError: wrong shapes, or numbers that are not finite.
    """
    check_rows(labels, identity=identity)
    if enrolled.ndim != 2 or identity.shape[1:] != enrolled.shape[1:] or not enrolled.isfinite().all():
        raise ValueError(
            f"expected finite identity numbers (n, k) and (classes, k), got {tuple(identity.shape)} and "
            f"{tuple(enrolled.shape)}"
        )
    apart = distances(identity, enrolled)
    return ((apart <= apart.gather(1, labels[:, None])).sum(dim=1) == 1).double()


@METRICS.register("identity_match")
class IdentityMatch(Metric):
    """Share of reconstructed drawn faces whose true identity is nearest to the right person: exact, without a network.

    An evaluation model can take an adversarial image for a person; here the prior itself says who it drew.
    """

    needs = ("identity", "enrolled_identities")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``identity_match@1``, and ``identities_matched``, the share of people with at least one such image."""
        identity, enrolled = self.require(evidence)
        labels = evidence.labels
        right = matched(identity, labels, enrolled)
        note = f"the person drawn is nearest to the right one of {len(enrolled)}"
        people = {int(label): float(right[labels == label].max()) for label in labels.unique()}
        tries = "at least one of all tries at a person"
        return [
            mean_over_images(MATCH, "share", "leakage", right, labels, note),
            mean_over_identities(MATCHED, "share", "leakage", people, len(labels), tries),
        ]
