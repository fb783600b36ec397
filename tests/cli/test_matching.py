"""Tuning a defense's strength to an accuracy, on made-up curves."""

from collections.abc import Callable

import pytest

from calor_hf.defenses.base import Strength
from calor_hf.recipes.matching import Trial, best_trial, match_strength

LINEAR = Strength("share", 0.0, 1.0)
RANK = Strength("rank", 32, 2, log=True, whole=True)


def tune(strength: Strength, start: float, curve: Callable[[float], float | None], trials: int = 8) -> list[Trial]:
    return match_strength(strength, start, curve, target=0.9, tolerance=0.01, trials=trials)


def test_first_value_that_is_near_enough_ends_the_search() -> None:
    trials = tune(LINEAR, 0.3, lambda _: 0.905)
    assert [(trial.value, trial.accuracy) for trial in trials] == [(0.3, 0.905)]


def test_line_is_found_by_interpolation() -> None:
    # 1 - value: 0.9 at 0.1. From 0.5 (too strong) halfway to the weak end, to the end, and between the two.
    trials = tune(LINEAR, 0.5, lambda value: 1 - value)
    assert [trial.value for trial in trials] == [0.5, 0.25, 0.0, 0.1]
    assert best_trial(trials, 0.9) == trials[-1]


def test_cliff_is_found() -> None:
    def curve(value: float) -> float:
        return 1.0 if value < 0.62 else 0.895 if value < 0.66 else 0.2

    trials = tune(LINEAR, 0.2, curve)
    assert trials[-1].accuracy == 0.895
    assert len(trials) <= 6


def test_training_that_fails_counts_as_too_strong() -> None:
    trials = tune(LINEAR, 0.5, lambda value: None if value > 0.2 else 1 - value)
    assert trials[0].accuracy is None
    assert trials[-1].accuracy == pytest.approx(0.9, abs=0.01)


def test_whole_numbers_are_tried_once() -> None:
    trials = tune(RANK, 16, lambda rank: 1.0 if rank >= 10 else 0.5, trials=20)
    values = [trial.value for trial in trials]
    assert len(values) == len(set(values))
    assert {9, 10} & set(values)
    assert best_trial(trials, 0.9) == min((t for t in trials if t.accuracy == 1.0), key=lambda trial: trial.value)


def test_budget_bounds_the_trials_and_a_start_outside_is_brought_in() -> None:
    trials = tune(LINEAR, 7.0, lambda _: 0.5, trials=3)
    assert [trial.value for trial in trials] == [1.0, 0.5, 0.0]


def test_best_is_the_nearest_and_of_equals_the_strongest() -> None:
    trials = [Trial(0.2, 0.2, 1.0), Trial(0.4, 0.4, 1.0), Trial(0.9, 0.9, 0.2), Trial(1.0, 1.0, None)]
    assert best_trial(trials, 0.9) == trials[1]
    assert best_trial(trials[3:], 0.9) is None


@pytest.mark.parametrize(("share", "value"), [(0, 32), (1, 2), (0.25, 16), (0.5, 8)])
def test_ranks_are_spaced_by_their_logarithm(share: float, value: int) -> None:
    assert RANK.at(share) == value
    assert isinstance(RANK.at(share), int)
    assert RANK.share_of(value) == pytest.approx(share)


def test_negative_values_keep_their_sign() -> None:
    alpha = Strength("alpha", -0.005, -0.5, log=True)
    assert alpha.at(0.5) == pytest.approx(-0.05)
    assert alpha.share_of(-0.05) == pytest.approx(0.5)
