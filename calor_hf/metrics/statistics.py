"""How sure a number is: resampling of people, since images of one person say much the same."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calor_hf.core.exact_interval import LEVEL, exact_interval
from calor_hf.core.seeding import named_rng

RESAMPLES = 10_000


def identity_means(values: Tensor, labels: Tensor) -> dict[int, float]:
    """Mean of an image-wise number for each person, by label in ascending order.

    Args:
        values: (n,) one number an image.
        labels: (n,) int64.
    """
    doubles = values.double()
    return {int(label): float(doubles[labels == label].mean()) for label in labels.unique()}


def bootstrap_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64] | None = None, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a mean, by resampling its members.

    Args:
        values: (people,) a number for each.
        weights: (people,) how much each counts, such as its number of images; None: all alike.
        seed: Of the resampling.

    Returns:
        Lower and upper end; NaN with fewer than two people, or where a value is not finite.

    Source:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    weights = np.ones(len(values)) if weights is None else weights
    drawn = named_rng(seed, "metrics/bootstrap").integers(0, len(values), (RESAMPLES, len(values)))
    means = (values * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def pooled_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Mean over several trainings and the same people, with its 95 % interval: both are resampled.

    Resampling the people alone would say how sure the mean of *these* models is, and not of models trained so.

    Args:
        values: (trainings, people) a number for each; of one training the interval is that of its people.
        seed: Of the resampling.

    Returns:
        Mean, lower and upper end.

    Source:
        Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007.
    """
    trainings, identities = values.shape
    rng = named_rng(seed, "metrics/pooled-bootstrap")
    columns = rng.integers(0, identities, (RESAMPLES, identities))
    rows = rng.integers(0, trainings, (RESAMPLES, trainings))
    counts = np.zeros((RESAMPLES, trainings))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], rows), 1 / trainings)
    of_identities = values[:, columns].mean(axis=2)  # (trainings, resamples)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile((counts.T * of_identities).sum(axis=0), [tail, 100 - tail])
    return float(values.mean()), float(low), float(high)


def share_interval(low: float, high: float, identities: int) -> tuple[float, float]:
    """The interval of a share of 0 or 1, where resampling knows no doubt: what so few people leave open.

    Args:
        low: Lower end by resampling.
        high: Upper end.
        identities: Number of people, all alike.

    Returns:
        The same, unless all people are at 0 or all at 1: then the exact binomial limit takes the other end.

    Source:
        Clopper and Pearson, Biometrika 1934.
    """
    if low == high and low in (0, 1):
        return exact_interval(round(low) * identities, identities)
    return low, high


def paired_difference(first: dict[int, float], second: dict[int, float], seed: int = 0) -> tuple[float, float, float]:
    """Mean difference ``second − first`` over the people in both, with its 95 % interval.

    The same people are compared with themselves, so that what is hard about a person cancels.

    Args:
        first: A number for each person.
        second: The same, under another defense or attack.
        seed: Of the resampling.

    Returns:
        Difference, lower and upper end of its interval.

    Raises:
        ValueError: no one is in both.
    """
    both = sorted(set(first) & set(second))
    if not both:
        raise ValueError("no person is in both reports; compare audits of the same classes")
    differences = np.array([second[label] - first[label] for label in both])
    return float(differences.mean()), *bootstrap_interval(differences, seed=seed)


def slot_std(values: Tensor, labels: Tensor, summary: Callable[[Tensor], Tensor] = torch.mean) -> float:
    """Standard deviation over restart slots: the i-th image of every person makes one number for each i.

    This is what the published tables print after ±. It says how much luck is in a restart, not how sure the mean is.

    Args:
        values: (n,) one number an image, those of a person together.
        labels: (n,) int64.
        summary: Of a slot.

    Returns:
        Sample standard deviation; NaN with fewer than two slots.
    """
    slots: dict[int, list[Tensor]] = {}
    for label in labels.unique():
        for place, value in enumerate(values[labels == label]):
            slots.setdefault(place, []).append(value.double())
    numbers = torch.stack([summary(torch.stack(members)) for _, members in sorted(slots.items())])
    return float(numbers.std()) if len(numbers) > 1 else float("nan")
