"""Agreement of two judges: the guard against pictures that fool one network and look like nobody."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics._base import METRICS, Evidence, Measure, Metric, View, check_rows
from calor_hf.metrics.attack_accuracy import hits


def nearest_mean(features: Tensor, private_features: Tensor, private_labels: Tensor) -> Tensor:
    """Class whose mean private picture is nearest by cosine.

    Args:
        features: (n, d) of pictures.
        private_features: (m, d) of private training pictures.
        private_labels: (m,) int64.

    Returns:
        (n,) int64 labels, of those in ``private_labels``.
    """
    check_rows(private_labels, private_features=private_features)
    people = private_labels.unique()
    unit = F.normalize(private_features.double())
    means = F.normalize(torch.stack([unit[private_labels == label].mean(dim=0) for label in people]))
    return people[(F.normalize(features.double()) @ means.T).argmax(dim=1)]


def cohen_kappa(first: Tensor, second: Tensor) -> float:
    """Agreement of two yes-or-no verdicts beyond chance: 1 for always, 0 for chance.

    Args:
        first: (n,) bool.
        second: (n,) bool.

    Returns:
        In [-1, 1]; NaN where chance alone agrees always, since both judges say the same of everything.

    Source:
        Cohen, "A Coefficient of Agreement for Nominal Scales", 1960.
    """
    a, b = first.double(), second.double()
    agreed = float((a == b).double().mean())
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return math.nan if chance == 1 else (agreed - chance) / (1 - chance)


@METRICS.register("agreement")
class Agreement(Metric):
    """Success that two judges of different kinds agree on.

    A judge trained on the same pictures for the same task as the target is fooled by much that fools the target; the
    second one should share as little as possible with both. Where it classifies nobody, the nearest mean private
    picture in its features decides.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519.
    """

    needs = ("judge", "second_judge")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``second_judge@1``, ``both_judges@1``, ``false_discovery`` of the first judge, ``judges_kappa``."""
        self.require(evidence)
        labels = evidence.labels
        assert evidence.judge is not None  # as just required
        assert evidence.second_judge is not None
        one, two = (_verdicts(view, evidence) for view in (evidence.judge, evidence.second_judge))
        found = [
            Measure.of_images("second_judge@1", "share", "leakage", two.double(), labels, evidence.second_judge.name),
            Measure.of_images(
                "both_judges@1", "share", "leakage", (one & two).double(), labels, "both name the right person"
            ),
        ]
        rejected = Measure("false_discovery", math.nan, "share", "neither", 0, 0)
        if one.any():
            values = (~two[one]).double()
            note = "of what the judge recognises, the second one does not"
            found.append(Measure.of_images(rejected.name, "share", "neither", values, labels[one], note))
        else:
            found.append(rejected.failed("the judge recognised nobody"))
        kappa = cohen_kappa(one, two)
        note = "both judges say the same of every picture" if math.isnan(kappa) else "1 always agree, 0 by chance"
        people = len(labels.unique())
        found.append(Measure("judges_kappa", kappa, "", "neither", len(labels), people, note=note))
        return found


def _verdicts(view: View, evidence: Evidence) -> Tensor:
    if view.logits is not None:
        return hits(view.logits, evidence.labels) > 0
    check_rows(evidence.labels, features=view.features)
    return nearest_mean(view.features, view.private_features, evidence.private_labels) == evidence.labels
