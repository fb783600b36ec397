"""Exact binomial interval of a share."""

import math

LEVEL = 0.95


def exact_interval(successes: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share of independent samples that covers the truth with at least the probability ``level``.

    Returns:
        Lower and upper end in [0, 1]; NaN without samples.

    Source:
        Clopper and Pearson, Biometrika 1934, as implemented by SciPy.
    """
    from scipy.stats import binomtest  # here, as scipy.stats takes a second to import

    if count == 0:
        return math.nan, math.nan
    interval = binomtest(successes, count).proportion_ci(confidence_level=level, method="exact")
    return float(interval.low), float(interval.high)
