"""Agreement of two judges: the guard against pictures that fool one network and look like nobody."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics._base import METRICS, Evidence, Measure, Metric, View, check_rows
from calor_hf.metrics.attack_accuracy import hits


def mean_cosines(features: Tensor, private_features: Tensor, private_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of a classifier made of features alone: the cosine to the mean direction of each person's pictures.

    Args:
        features: (n, d) of pictures.
        private_features: (m, d) of private training pictures.
        private_labels: (m,) int64, of two people or more.

    Returns:
        (n, people) float64 in [-1, 1], and the people's (people,) labels in ascending order.

    Raises:
        ValueError: there is one person alone, who would always be right, or features are not finite.
    """
    check_rows(private_labels, private_features=private_features)
    people = private_labels.unique()
    if len(people) < 2:
        raise ValueError(
            "a second judge without scores chooses among the people of the private pictures, and they show one alone; "
            "attack two classes or more, or pass a classifier"
        )
    unit = F.normalize(private_features.double())
    means = torch.stack([unit[private_labels == label].mean(dim=0) for label in people])
    return F.normalize(features.double()) @ F.normalize(means).T, people


def cohen_kappa(first: Tensor, second: Tensor) -> float:
    """Agreement of two yes-or-no verdicts beyond chance: 1 for always, 0 for chance.

    Args:
        first: (n,) bool, n >= 1.
        second: (n,) bool.

    Returns:
        In [-1, 1]; NaN where both give one same verdict throughout, so that chance agrees always.

    Source:
        Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 1960.
    """
    yes, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second, no = int((~first & second).sum()), int((~first & ~second).sum())
    beyond = (yes + only_first) * (only_first + no) + (yes + only_second) * (only_second + no)
    return 2 * (yes * no - only_first * only_second) / beyond if beyond else math.nan


@METRICS.register("agreement")
class Agreement(Metric):
    """Success that two judges of different kinds agree on.

    A judge trained on the same pictures for the same task as the target is fooled by much that fools the target; the
    second one should share as little as possible with both. Where it classifies nobody, the nearest mean private
    picture in its features decides, among the people whose private pictures there are.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519.
    """

    needs = ("judge", "second_judge")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``second_judge@1``, ``both_judges@1``, ``false_discovery`` of the first judge, ``judges_kappa``.

        ``false_discovery`` is NaN where the judge recognises nobody, ``judges_kappa`` where it is undefined.
        """
        self.require(evidence)
        judge, second, labels = evidence.judge, evidence.second_judge, evidence.labels
        assert judge is not None  # as just required
        assert second is not None
        if judge.logits is None:
            raise ValueError("the judge gives no scores of people; pass a classifier trained on the private pictures")
        one = hits(judge.logits, labels) > 0
        two, how = _verdicts(second, evidence)
        both = f"{judge.name} and {second.name} both name the right person"
        found = [
            Measure.of_images("second_judge@1", "share", "leakage", two.double(), labels, how),
            Measure.of_images("both_judges@1", "share", "leakage", (one & two).double(), labels, both),
        ]

        if one.any():
            note = f"of what {judge.name} recognises, {second.name} does not; more is adversarial, not alike"
            rejected = Measure.of_images("false_discovery", "share", "neither", (~two[one]).double(), labels[one], note)
            found.append(dataclasses.replace(rejected, spread=math.nan))  # what is left has no slots
        else:
            empty = Measure("false_discovery", math.nan, "share", "neither", 0, 0)
            found.append(empty.failed("the judge recognised nobody"))

        kappa = cohen_kappa(one, two)
        note = (
            "undefined: both judges give every picture one same verdict"
            if math.isnan(kappa)
            else "1 always agree, 0 as by chance"
        )
        people = len(labels.unique())
        found.append(Measure("judges_kappa", kappa, "kappa", "neither", len(labels), people, note=note))
        return found


def _verdicts(view: View, evidence: Evidence) -> tuple[Tensor, str]:
    """(n,) bool whether the second judge's first choice is right, and how it chooses."""
    if view.logits is not None:
        return hits(view.logits, evidence.labels) > 0, f"{view.name}'s first choice is the right person"
    check_rows(evidence.labels, features=view.features)
    scores, people = mean_cosines(view.features, view.private_features, evidence.private_labels)
    unknown = evidence.labels[~torch.isin(evidence.labels, people)]
    if len(unknown):
        raise ValueError(f"no private picture of class {int(unknown[0])}; pass the data the target was trained on")
    right = hits(scores, torch.searchsorted(people, evidence.labels)) > 0
    return right, f"the nearest of {len(people)} mean private pictures in {view.name} is the right person's"
