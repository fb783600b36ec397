"""Confidence intervals by resampling identities, since images of one identity are not independent."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calor_hf.core.exact_interval import LEVEL, exact_interval
from calor_hf.core.seeding import named_rng

RESAMPLES = 10_000


def identity_means(values: Tensor, labels: Tensor) -> dict[int, float]:
    """Mean of (n,) numbers per image for each identity, by label in ascending order; ``labels`` are (n,) int64."""
    doubles = values.double()
    return {int(label): float(doubles[labels == label].mean()) for label in labels.unique()}


def bootstrap_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64] | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a mean of (identities,) values, by bootstrap.

    ``weights`` are (identities,), such as the numbers of images; None means equal weights.

    Returns:
        Lower and upper end; NaN with fewer than two identities, or if a value is not finite.

    Source:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    weights = np.ones(len(values)) if weights is None else weights
    drawn = named_rng(seed, "metrics/bootstrap").integers(0, len(values), (RESAMPLES, len(values)))
    # Numerator and denominator are resampled together: a resample with many large identities has more images.
    means = (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    return percentile_interval(means)


def percentile_interval(resampled: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval from (resamples,) values."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def pooled_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean over several trainings and the same identities, with its 95 % interval; both are resampled.

    Returns:
        Mean, lower and upper end from (trainings, identities) values; for a single training, the interval over
        identities.

    Source:
        Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
    """
    # Resampling the identities only would give the interval of these models, not of models trained like them.
    trainings, identities = values.shape
    rng = named_rng(seed, "metrics/pooled-bootstrap")
    columns = rng.integers(0, identities, (RESAMPLES, identities))
    rows = rng.integers(0, trainings, (RESAMPLES, trainings))
    counts = np.zeros((RESAMPLES, trainings))
    # How often each training is drawn, so that a sum of products replaces 10,000 tables of drawn values.
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], rows), 1 / trainings)
    of_identities = values[:, columns].mean(axis=2)  # (trainings, resamples)
    return float(values.mean()), *percentile_interval((counts.T * of_identities).sum(axis=0))


def share_interval(low: float, high: float, identities: int) -> tuple[float, float]:
    """Return the interval of a share found by resampling, or the exact binomial one if all are at 0 or all at 1."""
    # Resampling equal values gives an interval of zero width, whatever the number of identities.
    if low == high and low in (0, 1):
        return exact_interval(round(low) * identities, identities)
    return low, high


def paired_difference(first: dict[int, float], second: dict[int, float], seed: int = 0) -> tuple[float, float, float]:
    """Mean difference ``second − first`` over the identities in both, with its 95 % interval.

    ``first`` and ``second`` are numbers by label, of two defenses or attacks; the result is the difference, and lower
    and upper end of its interval.

    Raises:
        ValueError: no identity is in both.
    """
    both = sorted(set(first) & set(second))
    if not both:
        raise ValueError("no person is in both reports; compare audits of the same classes")
    # Paired by identity, so that the difficulty of an identity cancels.
    differences = np.array([second[label] - first[label] for label in both])
    return float(differences.mean()), *bootstrap_interval(differences, seed=seed)


def slot_std(values: Tensor, labels: Tensor) -> float:
    """Standard deviation over restart slots; slot i is the mean of the i-th images of all identities.

    Published tables print it after ±. It is the variation between restarts, not the uncertainty of the mean. The (n,)
    values of an identity are in the order of their restarts; the result is NaN with fewer than two slots.
    """
    slots: dict[int, list[Tensor]] = {}
    for label in labels.unique():
        for slot, value in enumerate(values[labels == label]):
            slots.setdefault(slot, []).append(value.double())
    numbers = torch.stack([torch.stack(members).mean() for _, members in sorted(slots.items())])
    return float(numbers.std()) if len(numbers) > 1 else float("nan")
