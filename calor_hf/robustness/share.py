"""Share of images, with its exact interval."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from calor_hf.core.exact_interval import exact_interval


@dataclass(frozen=True)
class Share:
    """Share of images that meet a condition: ``successes`` of ``count`` images."""

    successes: int
    count: int

    @classmethod
    def of(cls, success: Tensor, among: Tensor | None = None) -> "Share":
        """Share of ``success`` (n,) bool, among the images marked in ``among`` (n,) bool or among all."""
        kept = success if among is None else success[among]
        return cls(int(kept.sum()), len(kept))

    @property
    def value(self) -> float:
        """Share in [0, 1]; NaN without images."""
        return self.successes / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval that treats images as independent."""
        return exact_interval(self.successes, self.count)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None instead of NaN."""
        numbers = {"value": self.value, "low": self.interval[0], "high": self.interval[1]}
        plain = {name: None if math.isnan(number) else number for name, number in numbers.items()}
        return {"successes": self.successes, "count": self.count, **plain}
