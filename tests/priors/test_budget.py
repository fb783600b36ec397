"""Size of a prior for a budget of minutes, with a step that takes as long as the test says."""

import json
from pathlib import Path
from typing import Any

import pytest

from calor_hf.priors import PRIORS, PriorTraining, budget
from calor_hf.priors.budget import TIMED, size_for, time_step
from tests.priors.small_prior import Pictures, tiny_prior, tiny_target

GMI = PRIORS.get("gmi")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths in the order in which they are timed; a step takes a tenth of a second at width 16, and by its square."""
    widths: list[int] = []

    def step(training: PriorTraining[Any], *_: Any) -> float:
        width = training.config.to_dict()["width"]
        widths.append(width)
        return float((width / 16) ** 2 / 10)

    monkeypatch.setattr(budget, "time_step", step)
    return widths


def chosen(minutes: float, images: int = 1000, **given: Any) -> tuple[int, int]:
    settings = size_for(GMI, given, minutes, Pictures(images))[0].to_dict()
    return settings["width"], settings["steps"]


def test_the_largest_size_with_enough_steps_is_chosen(timed: list[int]) -> None:
    # 0.1, 0.4 and 1.6 s a step; 3000 steps of the second take 20 minutes, those of the third 80.
    assert chosen(19) == (16, 11400)
    assert timed == [16, 32]  # the third, which is dear, is not timed
    assert chosen(20) == (32, 3000)
    assert chosen(80) == (64, 3000)
    assert chosen(1e4) == (64, 30_000)  # no more than the source
    with pytest.raises(ValueError, match=r"and --minutes is 0.001; pass more minutes"):
        chosen(0.001)


def test_given_settings_are_kept(timed: list[int]) -> None:
    assert chosen(40, width=32) == (32, 6000)
    assert chosen(40, steps=500, width=16) == (16, 500)
    assert chosen(4, steps=500) == (32, 500)  # 500 steps of the second size take 3.3 minutes
    with pytest.raises(ValueError, match="9,000 steps of the smallest size take 15 minutes here, and --minutes is 2;"):
        chosen(2, steps=9000)


def test_a_size_whose_batch_is_not_there_is_left_out(timed: list[int]) -> None:
    assert GMI.sizes[1]["batch_size"] <= 40 < GMI.config_class().batch_size
    assert chosen(80, images=40)[0] == 32


@pytest.mark.parametrize("name", ["gmi", "plg", "stylegan2", "flow", "ridge"])
def test_a_step_is_timed(name: str, tmp_path: Path) -> None:
    prior = tiny_prior(name)
    assert time_step(prior, Pictures(), tiny_target() if prior.needs_target else None, tmp_path) > 0
    assert json.loads((tmp_path / "training.json").read_text())["steps_done"] == 1 + TIMED
