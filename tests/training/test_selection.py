from typing import Any

import pytest

from calor_hf.training.calor_trainer import Selection, select_adapted

TARGET = 0.8825


def entries(*points: tuple[int, float, float], images: int = 10**9) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = [{"step": 5, "loss": 1.0}]
    for step, accuracy, confidence in points:
        measured = {"validation_accuracy": accuracy, "validation_images": images}
        history.append({"step": step, "train_confidence_correct": confidence, **measured})
    return [*history, {"step": 11, "eval_accuracy": 0.0}]  # what compute_metrics says does not count


def rule(*points: tuple[int, float, float], drop: float = 0.5, images: int = 10**9) -> Selection:
    steps = [11, 12, 13, 14]
    return select_adapted(entries(*points, images=images), 10, steps, TARGET, 0.02, drop)


def test_nothing_before_the_first_stage_ends() -> None:
    found = rule()
    assert found.reference is None
    assert found.best is None
    assert not found.finished


@pytest.mark.parametrize(
    ("unreached", "rescaled", "left_out"), [(0.96, False, True), (0.95, False, False), (1.0, True, False)]
)
def test_there_is_no_adapting_if_no_image_is_within_reach(unreached: float, rescaled: bool, left_out: bool) -> None:
    history = entries((10, 0.5, 0.3))
    history[1]["train_unreached"] = unreached
    found = select_adapted(history, 10, [11], TARGET, 0.02, 0.5, rescaled)
    assert found.left_out == found.finished == left_out
    assert found.best is None


def test_closest_to_the_target_among_those_that_keep_the_accuracy() -> None:
    found = rule((10, 0.95, 0.99), (11, 0.949, 0.96), (12, 0.9455, 0.93), (13, 0.93, 0.885))
    assert found.best is not None
    assert found.best.step == 12  # 13 is nearer to the target but lost two points
    assert not found.finished


def test_the_most_accurate_of_those_at_the_target() -> None:
    found = rule((10, 0.95, 0.99), (11, 0.946, 0.883), (12, 0.948, 0.9), (13, 0.949, 0.91))
    assert found.best is not None
    assert found.best.step == 12  # 13 is farther than the tolerance


def test_finished_at_the_target_with_the_accuracy_of_before() -> None:
    assert rule((10, 0.95, 0.99), (11, 0.95, 0.901)).finished
    assert not rule((10, 0.95, 0.99), (11, 0.95, 0.903)).finished  # not at the target
    assert not rule((10, 0.95, 0.99), (11, 0.949, 0.901)).finished  # accuracy may yet come back
    assert not rule((10, 0.95, 0.99), (11, 0.90, 0.8825)).finished


def test_finished_when_three_in_a_row_bring_nothing_better() -> None:
    points = (10, 0.95, 0.99), (11, 0.949, 0.9), (12, 0.948, 0.9), (13, 0.947, 0.9)
    assert not rule(*points).finished
    found = rule(*points, (14, 0.948, 0.9))
    assert found.finished
    assert found.best is not None
    assert found.best.step == 11


def test_finished_when_three_in_a_row_lost_too_much_and_get_worse() -> None:
    three = (10, 0.95, 0.99), (11, 0.95, 0.97), (12, 0.90, 0.95), (13, 0.91, 0.94)
    assert not rule(*three).finished
    assert not rule(*three, (14, 0.93, 0.93)).finished  # it comes back
    assert not rule(*three, (14, 0.90, 0.93)).finished  # it may yet
    found = rule(*three, (14, 0.89, 0.93))
    assert found.finished
    assert found.best is not None
    assert found.best.step == 11


def test_no_candidate_keeps_the_accuracy() -> None:
    found = rule((10, 0.95, 0.99), (11, 0.90, 0.9), (12, 0.91, 0.9), (13, 0.89, 0.9))
    assert found.best is None
    assert found.finished


def test_budget_is_one_standard_error_on_a_small_split() -> None:
    # sqrt(0.9 · 0.1 / 100) = 0.03
    found = rule((10, 0.9, 0.99), (11, 0.8701, 0.9), images=100)
    assert found.budget == pytest.approx(0.03)
    assert found.best is not None


def test_evaluations_at_other_steps_do_not_count() -> None:
    history = entries((10, 0.95, 0.99), (17, 0.99, TARGET))
    assert select_adapted(history, 10, [15, 20], TARGET, 0.02, 0.5).candidates == ()
