"""Means, intervals and spreads by hand, against a slow bootstrap, and against normal theory."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from calor_hf.metrics import Measure, mean_over_identities, mean_over_images, paired_difference
from calor_hf.metrics.base import check_rows
from calor_hf.metrics.statistics import (
    bootstrap_interval,
    identity_means,
    pooled_interval,
    share_interval,
    slot_std,
)

LABELS = torch.tensor([7, 7, 2, 2, 2])
VALUES = torch.tensor([1.0, 3.0, 0.0, 1.0, 5.0])


def slow_interval(values: list[float], weights: list[float], resamples: int = 3000) -> tuple[float, float]:
    """The bootstrap as a textbook writes it, with another source of randomness."""
    rng = torch.Generator().manual_seed(11)
    means = []
    for _ in range(resamples):
        drawn = torch.randint(len(values), (len(values),), generator=rng).tolist()
        means.append(sum(values[i] * weights[i] for i in drawn) / sum(weights[i] for i in drawn))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples) - 1]


def test_identity_means_by_hand() -> None:
    assert identity_means(VALUES, LABELS) == {2: 2.0, 7: 2.0}
    assert list(identity_means(VALUES, LABELS)) == [2, 7]
    # In float32, 2^24 + 1 is 2^24.
    assert identity_means(torch.tensor([2.0**24, 1.0]), torch.tensor([0, 0])) == {0: (2**24 + 1) / 2}


@pytest.mark.parametrize("weights", [[1.0] * 8, [1.0, 5.0, 1.0, 2.0, 9.0, 1.0, 3.0, 1.0]])
def test_interval_is_that_of_a_slow_bootstrap(weights: list[float]) -> None:
    values = [0.0, 0.2, 0.4, 0.4, 0.6, 0.8, 1.0, 1.0]
    found = bootstrap_interval(np.array(values), np.array(weights))
    # Equal weights make means of 0.025 apart, and another source may end at the neighbor.
    assert found == pytest.approx(slow_interval(values, weights), abs=0.026)


def test_interval_covers_as_normal_theory_says() -> None:
    # The percentile interval of a mean of 50 numbers covers it a little less often than 95 %: about 94 %.
    rng = np.random.default_rng(3)
    samples = rng.normal(2.0, 1.0, (400, 50))
    ends = np.array([bootstrap_interval(sample) for sample in samples])
    covered = ((ends[:, 0] <= 2.0) & (ends[:, 1] >= 2.0)).mean()
    assert 0.91 <= covered <= 0.97
    widths = ends[:, 1] - ends[:, 0]
    assert widths.mean() == pytest.approx(2 * 1.96 / math.sqrt(50), rel=0.04)


def test_interval_lies_around_the_mean_and_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(0).normal(size=20)
    low, high = bootstrap_interval(values)
    assert values.min() < low < values.mean() < high < values.max()
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_equal_weights_change_nothing_and_a_heavy_one_pulls() -> None:
    values = np.array([0.0, 0.3, 0.5, 1.0])
    assert bootstrap_interval(values, np.full(4, 3.0)) == pytest.approx(bootstrap_interval(values))
    light, heavy = bootstrap_interval(values), bootstrap_interval(values, np.array([1.0, 1.0, 1.0, 50.0]))
    assert heavy[1] >= light[1]
    assert sum(heavy) > sum(light)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan], [0.5, math.inf]])
def test_no_interval_without_two_finite_people(values: list[float]) -> None:
    assert all(math.isnan(end) for end in bootstrap_interval(np.array(values)))


def test_paired_difference_is_over_the_people_in_both() -> None:
    first, second = {1: 0.2, 2: 0.4, 9: 0.0}, {2: 0.9, 1: 0.3, 4: 1.0}
    difference, low, high = paired_difference(first, second)
    assert difference == pytest.approx(0.3)
    assert (low, high) == pytest.approx((0.1, 0.5))  # two people: either of them may be drawn twice
    assert paired_difference(second, first)[0] == pytest.approx(-0.3)
    with pytest.raises(ValueError, match="audits of the same classes"):
        paired_difference({1: 0.2}, {2: 0.4})


def test_pairing_cancels_what_is_hard_about_a_person() -> None:
    first = {n: n / 10 for n in range(10)}
    difference, low, high = paired_difference(first, {n: value + 0.25 for n, value in first.items()})
    assert (difference, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_slot_spread_by_hand() -> None:
    # Slots: first images (1, 0) → 0.5, second (3, 1) → 2, third (5) alone.
    assert slot_std(VALUES, LABELS) == pytest.approx(np.std([0.5, 2.0, 5.0], ddof=1))
    assert math.isnan(slot_std(VALUES[[0, 2]], LABELS[[0, 2]]))


def test_a_measure_of_images_is_their_mean() -> None:
    measure = mean_over_images("m", "share", "leakage", VALUES, LABELS, "a note")
    assert (measure.value, measure.images, measure.identities, measure.note) == (2.0, 5, 2, "a note")
    assert measure.by_identity == {2: 2.0, 7: 2.0}
    assert (measure.low, measure.high) == (2.0, 2.0)
    assert measure.std == slot_std(VALUES, LABELS)


def test_the_interval_of_a_measure_counts_every_image() -> None:
    # Of people 0 to 4 one image each, all right; of person 5 twenty, all wrong: 0.2 over images, 0.83 over people.
    values, labels = torch.tensor([1.0] * 5 + [0.0] * 20), torch.tensor([0, 1, 2, 3, 4] + [5] * 20)
    measure = mean_over_images("m", "share", "leakage", values, labels)
    assert measure.value == pytest.approx(0.2)
    weighted = slow_interval([1.0] * 5 + [0.0], [1.0] * 5 + [20.0])
    assert (measure.low, measure.high) == pytest.approx(weighted)
    assert measure.low < 0.1 < slow_interval([1.0] * 5 + [0.0], [1.0] * 6)[0]


def test_people_without_a_number_are_left_out_and_counted() -> None:
    measure = mean_over_identities("m", "share", "leakage", {0: 0.0, 1: 1.0, 2: math.nan}, 12, "own note")
    assert (measure.value, measure.identities, measure.images) == (0.5, 2, 12)
    assert measure.by_identity == {0: 0.0, 1: 1.0}
    assert measure.note == "1 of 3 people left out: no number. own note"
    assert math.isnan(mean_over_identities("m", "share", "leakage", {2: math.nan}, 3).value)


def test_a_failed_measure_keeps_its_name_and_says_why() -> None:
    failed = Measure("m", 0.5, "share", "leakage", 3, 2, 0.1, 0.9).failed("no reason")
    assert (failed.name, failed.unit, failed.note) == ("m", "share", "no reason")
    assert all(math.isnan(number) for number in (failed.value, failed.low, failed.high))


@pytest.mark.parametrize(
    ("labels", "rows", "words"),
    [
        (LABELS, VALUES[:4], "expected x with 5 rows"),
        (LABELS.int(), VALUES, "int64"),
        (LABELS[:0], VALUES[:0], "n >= 1"),
        (LABELS, torch.tensor([1.0, math.nan, math.inf, 0.0, 0.0]), "2 of 5 rows of x are not finite"),
    ],
)
def test_rows_that_do_not_fit_are_refused(labels: Any, rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_rows(labels, x=rows)


def test_a_share_of_all_or_nothing_is_not_certain() -> None:
    # Ten people, all recognized: p^10 = 0.025 at p = 0.6915.
    assert share_interval(1.0, 1.0, 10) == pytest.approx((0.6915, 1.0), abs=1e-4)
    assert share_interval(0.0, 0.0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert share_interval(0.1, 1.0, 10) == (0.1, 1.0)
    none = mean_over_images("x", "share", "leakage", torch.zeros(20), torch.arange(10).repeat_interleave(2))
    assert (none.value, none.low, none.high) == pytest.approx((0.0, 0.0, 0.3085), abs=1e-4)


def test_one_training_has_the_interval_of_its_people() -> None:
    values = np.random.default_rng(5).random(20)
    mean, *ends = pooled_interval(values[None])
    assert mean == pytest.approx(values.mean())
    assert ends == pytest.approx(bootstrap_interval(values), abs=0.01)  # other draws


def test_pooled_interval_is_that_of_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(6)
    values = rng.random((3, 12)) + np.array([[0.0], [0.2], [0.5]])  # trainings that differ
    means = []
    for _ in range(4000):
        rows, identities = rng.integers(0, 3, 3), rng.integers(0, 12, 12)
        means.append(np.mean([[values[row, person] for person in identities] for row in rows]))
    mean, low, high = pooled_interval(values)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)


def test_trainings_that_differ_widen_the_interval_and_people_who_differ_too() -> None:
    identities = np.linspace(0, 1, 10)
    same = np.stack([identities, identities])
    assert pooled_interval(same)[1:] == pytest.approx(bootstrap_interval(identities), abs=0.02)
    other = pooled_interval(np.stack([identities, identities + 1]))
    assert other[2] - other[1] > 1  # from nearly the mean of the one to nearly that of the other
    assert pooled_interval(np.full((3, 4), 0.25)) == (0.25, 0.25, 0.25)
