"""Verification: would a face lock open? At a stated rate of opening for strangers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics._base import METRICS, Evidence, Measure, Metric, check_rows

RATES = (1e-2, 1e-3, 1e-4)


def gallery_scores(probes: Tensor, gallery: Tensor, gallery_labels: Tensor, people: Tensor) -> Tensor:
    """Highest cosine of each probe to the pictures of each person.

    Args:
        probes: (n, d) features.
        gallery: (m, d) features.
        gallery_labels: (m,) int64.
        people: (p,) labels.

    Returns:
        (n, p) float64 in [-1, 1].
    """
    similarity = F.normalize(probes.double()) @ F.normalize(gallery.double()).T
    return torch.stack([similarity[:, gallery_labels == label].amax(dim=1) for label in people], dim=1)


def threshold_at(impostors: Tensor, rate: float) -> float:
    """Score that a share ``rate`` of impostors exceeds, at most; NaN with fewer than 1/rate of them."""
    if len(impostors) * rate < 1:
        return math.nan
    allowed = int(len(impostors) * rate)
    return float(impostors.sort(descending=True).values[allowed])  # strictly above it: `allowed` at most


@METRICS.register("verification")
class Verification(Metric):
    """Share of reconstructions that verification takes for the person, where strangers pass at 1 %, 0.1 %, 0.01 %.

    A picture's score is its highest cosine to the person's private training pictures. Impostors are held-out pictures
    of other people against the same galleries, so that everybody has the same number of comparisons.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519, for the reason; ISO/IEC 19795-1 for the rates.
    """

    needs = ("embedding", "held_labels")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``verified@FAR=…`` and the ceiling ``genuine_verified@FAR=…`` of held-out pictures of the person."""
        self.require(evidence)
        view, labels, held = evidence.embedding, evidence.labels, evidence.held_labels
        assert view is not None  # as just required
        assert held is not None
        if view.held_features is None:
            raise ValueError("verification needs held-out private pictures; pass held_images to the audit")
        check_rows(labels, features=view.features)
        check_rows(held, held_features=view.held_features)
        people = evidence.private_labels.unique()
        column = {int(label): index for index, label in enumerate(people)}
        known = gallery_scores(view.held_features, view.private_features, evidence.private_labels, people)
        same = held[:, None] == people[None, :]
        probes = gallery_scores(view.features, view.private_features, evidence.private_labels, people)
        own = probes.gather(1, torch.tensor([column[int(label)] for label in labels])[:, None]).squeeze(1)
        genuine, who = known[same], held[same.any(dim=1)]
        found = []
        for rate in RATES:
            limit, name = threshold_at(known[~same], rate), f"FAR={rate:.0e}".replace("e-0", "e-")
            count = int((~same).sum())
            note = f"strangers pass in {rate:.2%} of {count} tries; {view.name}"
            for what, scores, of_whom, more_is in (
                ("verified", own, labels, "leakage"),
                ("genuine_verified", genuine, who, "neither"),
            ):
                measure = Measure(f"{what}@{name}", math.nan, "share", more_is, len(scores), len(of_whom.unique()))
                if math.isnan(limit) or len(scores) == 0:
                    found.append(measure.failed(f"{count} tries of strangers are too few to know this rate"))
                else:
                    passed = (scores > limit).double()
                    found.append(Measure.of_images(measure.name, "share", more_is, passed, of_whom, note))
        return found
