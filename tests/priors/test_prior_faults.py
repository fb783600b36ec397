"""Faults while a prior is trained, and what the user is told."""

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.core import stop_request
from calor_hf.generators import load_generator
from calor_hf.priors import PRIORS
from calor_hf.priors._loop import _check, _EndlessBatches
from tests.priors.small_prior import (
    IMAGES,
    SIDE,
    Pictures,
    assert_same_weights,
    read_in_step,
    tiny_prior,
    tiny_target,
    train,
)
from tests.priors.test_prior_contract import steps_in

NAMES = PRIORS.names()


class Shaped(Dataset[Tensor]):
    def __init__(self, *shape: int, count: int = 40) -> None:
        self.shape, self.count = shape, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(self.shape)


@pytest.mark.parametrize("name", [name for name in NAMES if PRIORS.get(name).needs_target])
def test_priors_that_ask_the_target_want_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the model under attack; pass target="):
        train(name, tmp_path, target=None)
    prior: Any = tiny_prior(name)
    with pytest.raises(ValueError, match="pass target="):
        prior.build(SIDE, None)


@pytest.mark.parametrize(("name", "needed"), [("gmi", 8), ("ked", 16), ("plg", 8)])
def test_fewer_images_than_a_batch_are_refused(name: str, needed: int, tmp_path: Path) -> None:
    settings = {"top": 2} if name == "plg" else {}  # two images for each of three classes: six
    with pytest.raises(ValueError, match=rf"at least {needed} training images for a batch, got \d; lower batch_size"):
        train(name, tmp_path, Pictures(7), settings=settings)


@pytest.mark.parametrize("shape", [(3, 16, 32), (1, 16, 16), (16, 16)])
def test_images_that_are_not_square_and_colored_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected square images of shape \(3, side, side\), got \("):
        train("gmi", tmp_path, Shaped(*shape))


def test_no_images_and_odd_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no public images to train on"):
        train("gmi", tmp_path, Shaped(3, 16, 16, count=0))
    with pytest.raises(ValueError, match="image_size must be a power of two, at least 16, got 24"):
        train("gmi", tmp_path, Shaped(3, 24, 24))


def test_processes_share_a_batch_evenly_or_not_at_all() -> None:
    prior = tiny_prior("gmi")
    assert _check(prior, Pictures(), None, 4) == SIDE
    with pytest.raises(ValueError, match="batch_size 8 cannot be shared by 3 processes evenly"):
        _check(prior, Pictures(), None, 3)


def test_shares_of_processes_are_parts_of_one_batch() -> None:
    def batches(first: int, process: int, processes: int) -> list[list[int]]:
        endless = iter(_EndlessBatches(13, 4, 7, first, process, processes))
        return [next(endless) for _ in range(8)]

    alone = batches(0, 0, 1)
    halves = zip(batches(0, 0, 2), batches(0, 1, 2), strict=True)
    assert [first + second for first, second in halves] == alone
    for epoch in (alone[:3], alone[3:6]):  # three batches of four from thirteen
        assert len({index for batch in epoch for index in batch}) == 12
    assert alone[:3] != alone[3:6]
    assert batches(5, 0, 1)[:3] == alone[5:]  # from the middle of an epoch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"lr": 0.1}}, "'lr': 0.0002.*'lr': 0.1.*resume with the same"),
        ({"seed": 1}, "'seed': 0.*'seed': 1"),
        ({"images": Shaped(3, 32, 32)}, "'image_size': 16.*'image_size': 32"),
        ({"name": "ked"}, "GMIPriorTraining.*KEDPriorTraining"),
    ],
)
def test_resuming_as_something_else_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    train("gmi", tmp_path, settings={"steps": 1})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=message):
        train(**{"name": "gmi", "folder": tmp_path, "resume": True, **change})
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["ked", "plg"])
def test_resuming_for_a_target_of_other_classes_is_refused(name: str, tmp_path: Path) -> None:
    train(name, tmp_path, settings={"steps": 1})
    with pytest.raises(ValueError, match="resume with the same"):
        train(name, tmp_path, target=tiny_target(5), resume=True)


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"is not empty; pass another one, resume .* or overwrite"):
        train("gmi", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_deletes_an_earlier_prior_alone(tmp_path: Path) -> None:
    train("gmi", tmp_path, save_steps=1)
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.png").write_text("mine too")
    train("ked", tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
    assert (tmp_path / "holiday" / "beach.png").read_text() == "mine too"
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["000004.png"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["settings"]["prior"] == "KEDPriorTraining"


def test_overwriting_leaves_pictures_that_no_prior_made(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "beach.png").write_text("mine")
    train("gmi", tmp_path, overwrite=True)
    assert (tmp_path / "samples" / "beach.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("images", "settings"), [(Pictures(7), {}), (Shaped(3, 24, 24), {}), (Pictures(), {"latent_dim": 0})]
)
def test_a_refused_run_deletes_nothing(images: Dataset[Tensor], settings: dict[str, Any], tmp_path: Path) -> None:
    train("gmi", tmp_path, settings={"steps": 1})
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"training images|power of two|latent_dim"):
        train("gmi", tmp_path, images, settings=settings, overwrite=True)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_resuming_does_not_overwrite_a_model_that_no_prior_saved(tmp_path: Path) -> None:
    tiny_target().module.save_pretrained(tmp_path)  # type: ignore[operator]
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="is not empty"):
        train("gmi", tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_not_finite_keeps_the_checkpoint_before_it(name: str, tmp_path: Path) -> None:
    broken = Pictures(broken_from=read_in_step(name, 3))
    with pytest.raises(FloatingPointError, match=r"is not finite at step 3; the checkpoint before it is kept in .*lr"):
        train(name, tmp_path, broken, save_steps=1)
    assert steps_in(tmp_path) == 2
    assert_same_weights(train(name, tmp_path, resume=True), train(name, tmp_path / "whole"))


@pytest.mark.parametrize("step", [3, 4])
@pytest.mark.parametrize(
    "name", ["checkpoint.pt", "model.safetensors", "config.json", "training.json", "{step:06d}.png"]
)
def test_a_full_disk_costs_one_save_at_most(
    name: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intact, seen = Path.replace, list[str]()

    def replace(self: Path, goal: Path) -> Path:
        seen.append(goal.name)
        if seen.count(name.format(step=step)) == (1 if name.startswith("{") else step):
            seen.append(name.format(step=step))  # there is room again
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return intact(self, goal)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        train("gmi", tmp_path, save_steps=1)
    assert steps_in(tmp_path) >= step - 1
    assert not list(tmp_path.rglob("*.part"))
    whole = train("gmi", tmp_path / "whole")
    assert_same_weights(train("gmi", tmp_path, resume=True), whole)
    assert_same_weights(load_generator(str(tmp_path)), whole)
    assert json.loads((tmp_path / "training.json").read_text())["steps_done"] == 4
    lost = step == 4 and name == "{step:06d}.png"  # the last grid is not drawn again
    assert (tmp_path / "samples" / "000004.png").is_file() != lost


def test_a_target_is_given_back_after_a_fault(tmp_path: Path) -> None:
    target = tiny_target()
    target.module.train()
    with pytest.raises(FloatingPointError):
        train("ked", tmp_path, Pictures(broken_from=5), target=target)
    assert target.module.training
    assert all(weight.requires_grad for weight in target.module.parameters())


def test_asking_to_stop_is_answered_and_twice_stops_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_request, "SAME_REQUEST", 0)
    logging.getLogger("calor_hf").propagate = True
    with pytest.raises(KeyboardInterrupt):
        train("gmi", tmp_path / "once", Pictures(signal_at=read_in_step("gmi", 1)))
    assert "saving after this step; once more stops at once" in caplog.text
    assert steps_in(tmp_path / "once") == 1

    class Impatient(Pictures):
        def __getitem__(self, index: int) -> Tensor:
            self.signal_at = self.reads + 1 if self.reads in (20, 21) else 0
            return super().__getitem__(index)

    images = Impatient()
    with pytest.raises(KeyboardInterrupt):
        train("gmi", tmp_path / "twice", images)
    assert images.reads == 22
    assert not (tmp_path / "twice" / "checkpoint.pt").exists()
    assert len(images) == IMAGES
