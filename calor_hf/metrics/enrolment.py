"""Enrolment: what a model tells an attacker who holds a photograph of a suspect.

Not a registered metric, since it needs real images instead of reconstructions.
"""

import math

from torch import Tensor

from calor_hf.metrics.area import area_under_curve
from calor_hf.metrics.base import Measure, check_rows


def enrolment(private: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], name: str, note: str) -> Measure:
    """Chance that the model is surer of a photograph of a private person than of one of another person.

    Args:
        private: (n,) confidence in each image of a private person, whichever class it predicts, and (n,) int64 people;
            the model was not trained on these images.
        others: The same for images of other people.
        name: Name of the other people, such as ``decoys``.
        note: Remark for the reader.

    Returns:
        ``enrolment_auc/NAME``: 0.5 if the model reveals nothing, with its interval over people of both groups.
    """
    first, second = (_by_person(*side) for side in (private, others))
    value, low, high, by_person = area_under_curve(first, second, "metrics/enrolment")
    return Measure(
        f"enrolment_auc/{name}", value, "share", "leakage", len(private[0]), len(first), low, high, math.nan,
        by_person, note,
    )  # fmt: skip


def _by_person(scores: Tensor, people: Tensor) -> dict[int, Tensor]:
    check_rows(people, scores=scores)
    return {person: scores[people == person] for person in people.unique().tolist()}
