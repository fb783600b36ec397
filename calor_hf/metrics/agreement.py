"""Agreement of two evaluation models, which exposes adversarial images that fool only one of them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.report import Measure
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import METRICS, Evidence, Metric, View, check_rows, mean_over_images, private_images_of


def mean_cosines(features: Tensor, private_features: Tensor, private_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each image to the mean direction of each identity's private images: a classifier from features alone.

    Returns:
        (n, identities) float64 in [-1, 1] from (n, d) and (m, d) features and (m,) int64 labels of two identities or
        more; and the (identities,) labels in ascending order.

    Raises:
        ValueError: there is a single identity, or features are not finite.
    """
    check_rows(private_labels, private_features=private_features)
    identities = private_labels.unique()
    if len(identities) < 2:
        raise ValueError(
            "a second evaluation model without scores chooses among the people of the private images, which show one "
            "alone; attack two classes or more, or pass a classifier"
        )
    # Directions are averaged, so that an image with long features does not outweigh the others.
    unit = F.normalize(private_features.double())
    means = torch.stack([unit[private_labels == label].mean(dim=0) for label in identities])
    return F.normalize(features.double()) @ F.normalize(means).T, identities


def nearest_mean_correct(
    features: Tensor, labels: Tensor, private_features: Tensor, private_labels: Tensor
) -> tuple[Tensor, int]:
    """Whether the nearest of the mean private images is that of the label.

    Args:
        features: (n, d).
        labels: (n,) int64, each with a private image.
        private_features: (m, d).
        private_labels: (m,) int64 of two identities or more.

    Returns:
        (n,) float64, 0 or 1; and the number of identities.

    Raises:
        ValueError: as :func:`mean_cosines`, or a label without a private image.
    """
    check_rows(labels, features=features)
    scores, identities = mean_cosines(features, private_features, private_labels)
    for label in labels.unique().tolist():
        private_images_of(label, private_labels)
    return topk_correct(scores, torch.searchsorted(identities, labels)), len(identities)


def cohen_kappa(first: Tensor, second: Tensor) -> float:
    """Agreement of two binary ratings, (n,) bool with n >= 1, beyond chance: 1 for always, 0 for chance.

    Returns:
        In [-1, 1]; NaN if both ratings are constant and equal, so that chance always agrees.

    Source:
        Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 1960.
    """
    # Counts as whole numbers: they stay exact up to the division.
    yes, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second, no = int((~first & second).sum()), int((~first & ~second).sum())
    beyond = (yes + only_first) * (only_first + no) + (yes + only_second) * (only_second + no)
    return 2 * (yes * no - only_first * only_second) / beyond if beyond else math.nan


@METRICS.register("agreement")
class Agreement(Metric):
    """Success that two evaluation models of different kinds agree on.

    An evaluation model trained on the same images for the same task as the target shares many of its adversarial
    examples; the second one should share as little as possible with both. If it does not classify identities, the
    nearest mean private image in its features decides, among the identities with private images.

    Source:
        "Revisiting Model Inversion Evaluation", 2025, arXiv:2505.03519.
    """

    needs = ("evaluation_model", "second_evaluation_model")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """Accuracy of the second evaluation model and of both, ``false_discovery`` of the first, and their kappa.

        ``false_discovery`` is NaN if the evaluation model recognizes no image, ``evaluation_models_kappa`` if it is
        undefined.
        """
        labels, one = evidence.labels, topk_correct(self.scores(evidence), evidence.labels) > 0
        first, second = self.require(evidence)
        two, how = _recognized(second, evidence)
        both = f"{first.name} and {second.name} both name the right person"
        found = [
            mean_over_images("second_evaluation_model@1", "share", "leakage", two.double(), labels, how),
            mean_over_images("both_evaluation_models@1", "share", "leakage", (one & two).double(), labels, both),
        ]

        if one.any():
            note = f"of what {first.name} recognizes, {second.name} does not; more is adversarial, not alike"
            wrong = (~two[one]).double()
            found.append(mean_over_images("false_discovery", "share", "neither", wrong, labels[one], note, slots=False))
        else:
            empty = Measure("false_discovery", math.nan, "share", "neither", 0, 0)
            found.append(empty.failed("the evaluation model recognized no one"))

        kappa = cohen_kappa(one, two)
        undefined = "undefined: both evaluation models give every image one same verdict"
        note = undefined if math.isnan(kappa) else "1 always agree, 0 as by chance"
        identities = len(labels.unique())
        found.append(Measure("evaluation_models_kappa", kappa, "kappa", "neither", len(labels), identities, note=note))
        return found


def _recognized(view: View, evidence: Evidence) -> tuple[Tensor, str]:
    """(n,) bool whether the second evaluation model's first choice is right, and how it chooses."""
    if view.logits is not None:
        return topk_correct(view.logits, evidence.labels) > 0, f"{view.name}'s first choice is the right person"
    right, count = nearest_mean_correct(view.features, evidence.labels, *evidence.enrolled(view))
    return right > 0, f"the nearest of {count} mean private images in {view.name} is the right person's"
