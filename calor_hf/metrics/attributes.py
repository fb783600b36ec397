"""Attributes of a person that all images rebuilt of the class reveal together, one by one."""

import torch
from torch import Tensor

from calor_hf.core.report_text import percent
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_identities


def guessed_right(identity: Tensor, true_identity: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Guess on which side of 0 each identity number lies, by the mean over all images of a class.

    Args:
        identity: (n, attributes) identity numbers of the reconstructions.
        true_identity: (n, attributes) those of the private person.
        labels: (n,) int64.

    Returns:
        For each label (attributes,) float64: 1 for a right guess, 0 for a wrong one, 0.5 for a mean of 0.
    """
    check_rows(labels, identity=identity, true_identity=true_identity)
    found = {}
    for label in labels.unique().tolist():
        rows = labels == label
        # The mean is the best guess of an attacker who cannot tell which of the k rebuilt people is the private one.
        sides = identity[rows].double().mean(dim=0).sign() * true_identity[rows][0].double().sign()
        found[label] = (1 + sides) / 2
    return found


def base_rates(people: Tensor) -> Tensor:
    """(attributes,) share of the more frequent side of 0 among (people, attributes) identity numbers."""
    above = (people > 0).double().mean(dim=0)
    return torch.maximum(above, 1 - above)


@METRICS.register("attributes")
class Attributes(Metric):
    """Accuracy of guessing each attribute of a person from all images rebuilt of the class; drawn faces only.

    Decoys bound to which of k faces a person is attributed. What the k have in common is disclosed all the same:
    completely if they were drawn from one stratum, and in part by their mean.
    """

    needs = ("identity", "true_identity", "enrolled_identities")
    by_image = False

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``attribute_accuracy`` over all attributes, and one number per attribute, with its base rate."""
        identity, truth, enrolled = self.require(evidence)
        check_rows(torch.arange(len(enrolled)), enrolled_identities=enrolled)
        labels, rates = evidence.labels, base_rates(enrolled)
        right = guessed_right(identity, truth, labels)

        def mean(name: str, values: dict[int, float], rate: float) -> Measure:
            note = f"which side of the middle, by the mean over the images of a class; base rate {percent(rate, 0)}"
            return mean_over_identities(name, "share", "leakage", values, len(labels), note)

        overall = {label: float(of.mean()) for label, of in right.items()}
        found = [mean("attribute_accuracy", overall, float(rates.mean()))]
        names = evidence.identity_names or tuple(str(index) for index in range(len(rates)))
        for place, name in enumerate(names):
            values = {label: float(of[place]) for label, of in right.items()}
            found.append(mean(f"attribute_accuracy[{name}]", values, float(rates[place])))
        return found
