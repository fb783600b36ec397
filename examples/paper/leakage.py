"""Attack accuracy in studies: per identity, with an interval over identities and trainings."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calor_hf.attacks.specs import parse_attack
from calor_hf.core.report import HEADLINE, IDENTITIES, LeakageReport
from calor_hf.metrics.statistics import pooled_interval, share_interval


def leakage(report: LeakageReport) -> dict[str, Any]:
    """Return attack accuracy and cost by attack name, as plain values with None instead of NaN."""
    found = {}
    for attack in report.attacks:
        first, five, identities = (attack.get(name) for name in (HEADLINE, "attack_accuracy@5", IDENTITIES))
        assert first is not None  # the evaluation model is a classifier
        chance_level = attack.chance_level(HEADLINE)
        found[attack.name] = {
            "accuracy": first.value,
            "accuracy_5": None if five is None else five.value,
            "identities_recognized": None if identities is None else identities.value,
            "by_identity": {str(label): value for label, value in first.by_identity.items()},
            "images": first.images,
            "chance_level": None if math.isnan(chance_level) else chance_level,
            "target_confidence": attack.target_confidence,
            "adaptive": attack.adaptive,
            "seconds": attack.cost.seconds,
        }
    return found


def by_identity(results: Sequence[dict[str, Any]]) -> NDArray[np.float64]:
    """Return the attack accuracy per identity, (trainings, identities); arguments as :func:`pooled`."""
    return np.array([[result["by_identity"][label] for label in results[0]["by_identity"]] for result in results])


def pooled(results: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Return the attack accuracy of one attack over several trainings, with its 95 % interval over identities and them.

    Args:
        results: One entry of :func:`leakage` per training.

    Returns:
        Mean, lower and upper end; all three are the mean for fewer than two identities.
    """
    values = by_identity(results)
    mean, low, high = pooled_interval(values)
    identities = values.shape[1]
    return (mean, *share_interval(low, high, identities)) if identities > 1 else (mean, mean, mean)


def bars(points: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[list[float]]]:
    """Return heights in percent, and the lengths of their intervals below and above, as matplotlib expects.

    Args:
        points: Mean, lower and upper end, each in [0, 1].
    """
    below = [100 * (mean - low) for mean, low, _ in points]
    above = [100 * (high - mean) for mean, _, high in points]
    return [100 * mean for mean, _, _ in points], [below, above]


def of_share(share: dict[str, Any]) -> tuple[float, float, float]:
    """Return value and interval of a :class:`~calor_hf.robustness.Share` dictionary; zeros if it has no image."""
    return (share["value"], share["low"], share["high"]) if share["count"] else (0.0, 0.0, 0.0)


def with_interval(value: float, low: float, high: float) -> str:
    """Format a share and its interval in percent, for a table."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def attack_names(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the attacks in the ``leakage`` of records, in order."""
    return list(dict.fromkeys(name for cell in cells for name in cell["numbers"]["leakage"]))


def attack_labels(found: dict[str, Any]) -> dict[str, str]:
    """Return labels of the attacks for figures: without their settings, unless the settings distinguish them."""
    specs = {parse_attack(spec).name: spec for spec in found["settings"]["attacks"].split()}
    short = {name: spec.partition(":")[0] for name, spec in specs.items()}
    return {name: one if list(short.values()).count(one) == 1 else specs[name] for name, one in short.items()}


def of_attack(cells: Sequence[dict[str, Any]], attack: str) -> tuple[float, float, float]:
    """:func:`pooled` over the records of several trainings."""
    return pooled([cell["numbers"]["leakage"][attack] for cell in cells])


def model_head(attacks: Sequence[str]) -> list[str]:
    """Return the headers of :func:`model_columns`."""
    return ["test accuracy (%)", "training confidence", *(f"attack accuracy (%), {attack}" for attack in attacks)]


def model_columns(cells: Sequence[dict[str, Any]], attacks: Sequence[str]) -> list[str]:
    """Format the accuracy of models and of each attack for a table, as means over records."""
    return [
        f"{100 * mean_of(cells, 'test_accuracy'):.1f}",
        f"{mean_of(cells, 'train_confidence'):.3f}",
        *(with_interval(*of_attack(cells, attack)) for attack in attacks),
    ]


def mean_of(cells: Sequence[dict[str, Any]], key: str) -> float:
    """Return the mean of a number over records."""
    return float(sum(cell["numbers"][key] for cell in cells) / len(cells))
