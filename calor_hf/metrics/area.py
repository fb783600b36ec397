"""Area under the curve of scores of two groups of images, with an interval over people."""

import math

import numpy as np
from torch import Tensor

from calor_hf.core.seeding import named_rng
from calor_hf.metrics.statistics import RESAMPLES, percentile_interval


def area_under_curve(
    mine: dict[int, Tensor], theirs: dict[int, Tensor], stream: str, same_people: bool = False
) -> tuple[float, float, float, dict[int, float]]:
    """Chance that a score of one group is above one of the other; a tie counts half.

    Args:
        mine: (images,) scores of each person of the first group.
        theirs: The same of the second group.
        stream: Name of the random stream of the interval.
        same_people: Whether both groups are images of the same people, in the same order, who are resampled together.

    Returns:
        The area, both ends of its 95 % interval over people (NaN if a group has one person), and the area for each
        person of the first group.
    """
    # Pairs per person × person, so that resampling people is a matrix product.
    wins = np.array([[_wins(a, b) for b in theirs.values()] for a in mine.values()])
    own, other = (np.array([len(rows) for rows in side.values()], dtype=np.float64) for side in (mine, theirs))
    value = float(wins.sum() / (own.sum() * other.sum()))
    low = high = math.nan
    if min(len(own), len(other)) > 1:
        rng = named_rng(0, stream)
        first = _drawn(rng, len(own))
        second = first if same_people else _drawn(rng, len(other))
        # The number of pairs is resampled too, as people have different numbers of images.
        areas = ((first @ wins) * second).sum(axis=1) / ((first @ own) * (second @ other))
        low, high = percentile_interval(areas)
    by_person = wins.sum(axis=1) / (own * other.sum())
    return value, low, high, dict(zip(mine, map(float, by_person), strict=True))


def _drawn(rng: np.random.Generator, people: int) -> np.ndarray:
    return rng.multinomial(people, np.full(people, 1 / people), RESAMPLES).astype(np.float64)


def _wins(first: Tensor, second: Tensor) -> float:
    # A tie counts half, so that scores without information have an area of 1/2.
    return float((first[:, None] > second).sum()) + 0.5 * float((first[:, None] == second).sum())
