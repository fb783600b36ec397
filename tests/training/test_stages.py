import pytest

from calor_hf.core.outputs import Stage
from calor_hf.training.stages import plan_stages


def test_stages_lie_end_to_end() -> None:
    plan = plan_stages([Stage("fit", epochs=2), Stage("adapt", epochs=1, learning_rate=0.1)], steps_per_epoch=5)
    assert [(s.name, s.start, s.stop) for s in plan.stages] == [("fit", 0, 10), ("adapt", 10, 15)]
    assert plan.total_steps == 15
    assert [plan.at(step).name for step in (0, 9, 10, 14, 15, 99)] == ["fit", "fit"] + ["adapt"] * 4


def test_fraction_of_an_epoch_is_rounded_up_to_whole_steps() -> None:
    plan = plan_stages([Stage("fit", epochs=1.5), Stage("adapt", epochs=0.1)], steps_per_epoch=5)
    assert [s.stop for s in plan.stages] == [8, 9]


def test_steps_go_before_epochs() -> None:
    plan = plan_stages([Stage("fit", epochs=3, steps=7), Stage("adapt", epochs=3, steps=2)], steps_per_epoch=None)
    assert plan.total_steps == 9


def test_progress_counts_inside_the_stage() -> None:
    plan = plan_stages([Stage("fit", epochs=2), Stage("adapt", epochs=1)], steps_per_epoch=4)
    progress = plan.progress(9)
    assert (progress.stage, progress.step, progress.total_steps) == ("adapt", 1, 4)
    assert progress.epoch == pytest.approx(0.25)
    assert progress.total_epochs == pytest.approx(1.0)


def test_epochs_of_endless_data_are_refused() -> None:
    with pytest.raises(ValueError, match="adapt_steps for the adapt stage"):
        plan_stages([Stage("fit", epochs=3, steps=7), Stage("adapt", epochs=10)], steps_per_epoch=None)


def test_an_empty_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="'adapt' must last at least one step"):
        plan_stages([Stage("fit", epochs=1), Stage("adapt", epochs=0)], steps_per_epoch=5)
