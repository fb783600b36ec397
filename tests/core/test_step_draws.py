"""However a step's samples are split, each gets the same numbers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from calor_hf.core.seeding import StepDraws

SPLITS = [(1, 1), (2, 1), (1, 2), (4, 1), (1, 4), (2, 2), (3, 2), (2, 6), (12, 1)]  # (processes, parts) of 12 samples
KINDS = ["uniform", "normal"]


def numbers(draws: StepDraws, kind: str, columns: int = 3, name: str = "tests/a") -> NDArray[np.float64]:
    values: NDArray[np.float64] = getattr(draws, kind)(name, columns)
    return values


def split(processes: int, parts: int, samples: int = 12, step: int = 5, seed: int = 7) -> list[StepDraws]:
    """Draws of all batches of a step, in the order in which the samples are numbered."""
    size = samples // (processes * parts)
    return [
        StepDraws.of_batch(seed, step, size, size, part, parts, process, processes)
        for part in range(parts)
        for process in range(processes)
    ]


@pytest.mark.parametrize(("processes", "parts"), SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_split_gives_the_same_rows(kind: str, processes: int, parts: int) -> None:
    whole = numbers(StepDraws.of_batch(7, 5, 12, 12), kind)
    rows = np.concatenate([numbers(draws, kind) for draws in split(processes, parts)])
    assert whole.shape == (12, 3)
    np.testing.assert_array_equal(rows, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_batch_gets_the_first_rows(kind: str) -> None:
    whole = numbers(StepDraws.of_batch(7, 5, 12, 12), kind)
    np.testing.assert_array_equal(numbers(StepDraws.of_batch(7, 5, 5, 12), kind), whole[:5])
    # The last batch of two processes with 6 places each has 2 samples in the second one: places 6 and 7.
    second = StepDraws.of_batch(7, 5, 2, 6, process=1, processes=2)
    np.testing.assert_array_equal(numbers(second, kind), whole[6:8])
    assert numbers(StepDraws.of_batch(7, 5, 0, 12), kind).shape == (0, 3)


def test_places_by_hand() -> None:
    # Batches of 4, 2 processes, 3 parts: part 1 begins at 8, its second process at 12; the step has 24 samples.
    draws = StepDraws.of_batch(seed=0, step=9, count=3, batch_size=4, part=1, parts=3, process=1, processes=2)
    assert (draws.first, draws.count, draws.all_first, draws.all_count, draws.per_step) == (12, 3, 8, 8, 24)
    assert (draws.seed, draws.step) == (0, 9)


def test_all_processes_of_a_forward_pass_agree_on_what_the_others_see() -> None:
    for part in range(3):
        seen = {
            (d.all_first, d.all_count, d.per_step)
            for d in (StepDraws.of_batch(0, 0, 4, 4, part, 3, process, 2) for process in range(2))
        }
        assert seen == {(8 * part, 8, 24)}


@pytest.mark.parametrize("kind", KINDS)
def test_seed_step_and_name_change_the_numbers(kind: str) -> None:
    draws = {
        numbers(StepDraws.of_batch(seed, step, 4, 4), kind, name=name).tobytes()
        for seed in (0, 1)
        for step in (0, 1, 2)
        for name in ("tests/a", "tests/b", "tests/a/b")
    }
    assert len(draws) == 2 * 3 * 3


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_step_differ_and_can_be_drawn_again(kind: str) -> None:
    draws = StepDraws.of_batch(0, 0, 100, 100)
    first = numbers(draws, kind)
    assert len({row.tobytes() for row in first}) == 100
    np.testing.assert_array_equal(numbers(draws, kind), first)


def test_numbers_have_their_distributions() -> None:
    # Means and spreads of 60,000 numbers within 5 standard errors.
    draws = StepDraws.of_batch(0, 0, 20_000, 20_000)
    uniform, normal = draws.uniform("tests/uniform", 3), draws.normal("tests/normal", 3)
    assert 0 <= uniform.min() < 0.001
    assert 0.999 < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / 60_000) ** 0.5
    assert abs(normal.mean()) < 5 / 60_000**0.5
    assert abs(normal.std() - 1) < 5 / 120_000**0.5
