"""A share of images, and how sure it is."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """So many of so many images.

    Attributes:
        topk_correct: Images that count.
        count: Images that could.
    """

    topk_correct: int
    count: int

    @classmethod
    def of(cls, topk_correct: Tensor, among: Tensor | None = None) -> "Share":
        """Share of ``topk_correct`` (n,) bool, among the images marked in ``among`` (n,) bool or among all."""
        kept = topk_correct if among is None else topk_correct[among]
        return cls(int(kept.sum()), len(kept))

    @property
    def value(self) -> float:
        """In [0, 1]; NaN of no image."""
        return self.topk_correct / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, see :func:`exact_interval`."""
        return exact_interval(self.topk_correct, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None instead of NaN."""
        numbers = {"value": self.value, "low": self.interval[0], "high": self.interval[1]}
        plain = {name: None if math.isnan(number) else number for name, number in numbers.items()}
        return {"hits": self.topk_correct, "count": self.count, **plain}


def exact_interval(topk_correct: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share whose every image stands for itself: it covers the truth at least as often as it says.

    Args:
        topk_correct: In [0, count].
        count: Number of images.
        level: In (0, 1).

    Returns:
        Lower and upper end; NaN of no image.

    Source:
        Clopper and Pearson, Biometrika 1934.
    """
    if count == 0:
        return math.nan, math.nan
    tail = (1 - level) / 2
    return _lower_end(topk_correct, count, tail), 1 - _lower_end(count - topk_correct, count, tail)


def _lower_end(topk_correct: int, count: int, tail: float) -> float:
    """The probability under which ``topk_correct`` or more of ``count`` have probability ``tail``."""
    # The quantile of a beta distribution, by bisection: SciPy has it, but the package does without SciPy.
    if topk_correct == 0:
        return 0.0
    k = torch.arange(topk_correct, count + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        at_least = float((ways + k * math.log(middle) + (count - k) * math.log1p(-middle)).logsumexp(0).exp())
        low, high = (middle, high) if at_least < tail else (low, middle)
    return (low + high) / 2
