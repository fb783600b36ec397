"""Agreement of two evaluation models: the guard against images that fool one network and look like no one."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, View, check_rows, mean_over_images


def mean_cosines(features: Tensor, private_features: Tensor, private_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of a classifier made of features alone: the cosine to the mean direction of each person's images.

    Args:
        features: (n, d) of images.
        private_features: (m, d) of private training images.
        private_labels: (m,) int64, of two people or more.

    Returns:
        (n, people) float64 in [-1, 1], and the people's (people,) labels in ascending order.

    Raises:
        ValueError: there is one person alone, who would always be right, or features are not finite.
    """
    check_rows(private_labels, private_features=private_features)
    identities = private_labels.unique()
    if len(identities) < 2:
        raise ValueError(
            "a second evaluation model without scores chooses among the people of the private images, which show one "
            "alone; attack two classes or more, or pass a classifier"
        )
    unit = F.normalize(private_features.double())
    means = torch.stack([unit[private_labels == label].mean(dim=0) for label in identities])
    return F.normalize(features.double()) @ F.normalize(means).T, identities


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
    """Success that two evaluation models of different kinds agree on.

    An evaluation model trained on the same images for the same task as the target is fooled by much that fools the
    target; the
    second one should share as little as possible with both. Where it classifies no one, the nearest mean private
    image in its features decides, among the people whose private images there are.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519.
    """

    needs = ("evaluation_model", "second_evaluation_model")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """Accuracy of the second evaluation model and of both, ``false_discovery`` of the first, and their kappa.

        ``false_discovery`` is NaN where the evaluation model recognizes no one, ``evaluation_models_kappa`` where it
        is undefined.
        """
        self.require(evidence)
        evaluation_model, second, labels = evidence.evaluation_model, evidence.second_evaluation_model, evidence.labels
        assert evaluation_model is not None  # as just required
        assert second is not None
        if evaluation_model.logits is None:
            raise ValueError(
                "the evaluation model gives no scores of people; pass a classifier trained on the private images"
            )
        one = topk_correct(evaluation_model.logits, labels) > 0
        two, how = _verdicts(second, evidence)
        both = f"{evaluation_model.name} and {second.name} both name the right person"
        found = [
            mean_over_images("second_evaluation_model@1", "share", "leakage", two.double(), labels, how),
            mean_over_images("both_evaluation_models@1", "share", "leakage", (one & two).double(), labels, both),
        ]

        if one.any():
            note = f"of what {evaluation_model.name} recognizes, {second.name} does not; more is adversarial, not alike"
            rejected = mean_over_images("false_discovery", "share", "neither", (~two[one]).double(), labels[one], note)
            found.append(dataclasses.replace(rejected, std=math.nan))  # what is left has no slots
        else:
            empty = Measure("false_discovery", math.nan, "share", "neither", 0, 0)
            found.append(empty.failed("the evaluation model recognized no one"))

        kappa = cohen_kappa(one, two)
        note = (
            "undefined: both evaluation models give every image one same verdict"
            if math.isnan(kappa)
            else "1 always agree, 0 as by chance"
        )
        identities = len(labels.unique())
        found.append(Measure("evaluation_models_kappa", kappa, "kappa", "neither", len(labels), identities, note=note))
        return found


def _verdicts(view: View, evidence: Evidence) -> tuple[Tensor, str]:
    """(n,) bool whether the second evaluation model's first choice is right, and how it chooses."""
    if view.logits is not None:
        return topk_correct(view.logits, evidence.labels) > 0, f"{view.name}'s first choice is the right person"
    check_rows(evidence.labels, features=view.features)
    scores, identities = mean_cosines(view.features, view.private_features, evidence.private_labels)
    unknown = evidence.labels[~torch.isin(evidence.labels, identities)]
    if len(unknown):
        raise ValueError(f"no private image of class {int(unknown[0])}; pass the data the target was trained on")
    right = topk_correct(scores, torch.searchsorted(identities, evidence.labels)) > 0
    return right, f"the nearest of {len(identities)} mean private images in {view.name} is the right person's"
