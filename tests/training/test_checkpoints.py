"""Which checkpoints are deleted."""

from pathlib import Path

import pytest

from calor_hf.training.checkpoints import TRAINER_STATE, delete_old_checkpoints

WHOLE, HALF = (2, 4, 8, 12), (6, 16)


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [2, 4, 6, 8, 12, 16]),
        (1, None, [12]),
        (1, 4, [4, 12]),  # the newest is what a run goes on from
        (2, None, [8, 12]),
        (2, 4, [4, 12]),
        (3, 4, [4, 8, 12]),
        (5, None, [2, 4, 8, 12]),
    ],
)
def test_the_newest_and_the_best_that_are_whole_are_kept(
    tmp_path: Path, limit: int | None, best: int | None, left: list[int]
) -> None:
    for step in WHOLE + HALF:
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    for step in WHOLE:
        (tmp_path / f"checkpoint-{step}" / TRAINER_STATE).write_text("{}")
    (tmp_path / "checkpoint-16" / TRAINER_STATE).write_text('{"epoch": ')
    (tmp_path / "checkpoint-mine").mkdir()
    delete_old_checkpoints(tmp_path, limit, {best})
    steps = sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.iterdir() if path.name != "checkpoint-mine")
    assert steps == left
    assert (tmp_path / "checkpoint-mine").is_dir()
