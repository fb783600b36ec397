"""Contract of every registered prior; a new file in `priors` is tested here without being named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from calor_hf import __version__
from calor_hf.core.seeding import named_rng
from calor_hf.generators import load_generator
from calor_hf.priors import PRIORS, PriorConfig, PriorTraining
from tests.priors.small_prior import (
    CLASSES,
    SIDE,
    SMALL,
    Pictures,
    assert_same_weights,
    read_in_step,
    tiny_prior,
    tiny_target,
    train,
)

NAMES = PRIORS.names()
CHECKPOINT = "checkpoint.pt"


def steps_in(folder: Path) -> int:
    content = torch.load(folder / CHECKPOINT, weights_only=True)
    return int(content["step"])


def test_the_registry_holds_the_published_ones() -> None:
    assert {"gmi", "ked", "plg"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_a_round_trip(name: str) -> None:
    config = tiny_prior(name, steps=5).config
    again = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(again) == config
    assert config != PRIORS.get(name).config_class()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("setting", "value"), [("steps", 0), ("discriminator_steps", 0), ("batch_size", -1), ("lr", 0.0), ("width", 0)]
)
def test_what_is_not_positive_is_refused(name: str, setting: str, value: float) -> None:
    known = hasattr(PRIORS.get(name).config_class(), setting)
    with pytest.raises(ValueError, match=f"{setting} must be > 0, got {value}" if known else f"no setting {setting}"):
        tiny_prior(name, **{setting: value})


def test_own_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="top must be >= 1, got 0"):
        tiny_prior("plg", top=0)
    with pytest.raises(ValueError, match=r"has no setting penality \(did you mean penalty\?\)"):
        tiny_prior("gmi", penality=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_both_networks_and_writes_all_files(name: str, tmp_path: Path) -> None:
    prior: PriorTraining[Any] = tiny_prior(name)
    torch.manual_seed(9)
    before: Any = prior.build(SIDE, tiny_target())
    trained: Any = train(name, tmp_path, seed=9, save_steps=2)
    assert not trained.training
    moved = {key: not torch.equal(weight, trained.get_parameter(key)) for key, weight in before.named_parameters()}
    for discriminator in (True, False):
        network = {key: value for key, value in moved.items() if key.startswith("discriminator.") == discriminator}
        assert bool(network) == (not discriminator or before.has_realism)
        still = [key for key, value in network.items() if not value]
        # A class that was never drawn keeps its row, and a bias before a norm has no slope; everything else moves.
        assert len(still) <= len(network) // 4, still
    assert all(torch.isfinite(value).all() for value in trained.state_dict().values())

    record = json.loads((tmp_path / "training.json").read_text())
    assert record["calor_hf_version"] == __version__
    assert (record["seed"], record["image_size"], record["steps_done"]) == (9, SIDE, 4)
    small = {key: value for key, value in SMALL.items() if hasattr(prior.config, key)}
    assert {key: record[key] for key in small} == small
    assert [entry["step"] for entry in record["history"]] == [2, 4]
    losses = set(record["history"][0]) - {"step"}
    assert {term.startswith("discriminator_") for term in losses} == {before.has_realism, False}
    assert record["seconds"] > 0

    assert steps_in(tmp_path) == 4
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000002.png", "000004.png"]
    with Image.open(tmp_path / "samples" / "000004.png") as grid:
        assert grid.size == (8 * (SIDE + 2) - 2, 8 * (SIDE + 2) - 2)  # 64 images, a white line between them
        assert len(grid.crop((0, 0, SIDE, SIDE)).getcolors() or []) > 1
    assert not list(tmp_path.rglob("*.part"))

    saved = load_generator(str(tmp_path))
    assert_same_weights(saved, trained)
    latents = trained.sample_latents(4, named_rng(1, "tests/latents")).float()
    labels = torch.arange(4) % CLASSES
    with torch.no_grad():
        images = saved(latents, labels)
        assert torch.equal(images, trained(latents, labels))
    assert images.shape == (4, 3, SIDE, SIDE)
    assert 0 <= images.min() < images.max() <= 1
    assert saved.has_realism == before.has_realism


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_target_stays_as_it_was(name: str, training: bool, tmp_path: Path) -> None:
    target = tiny_target()
    target.module.train(training)
    first, *_ = target.module.parameters()
    first.requires_grad_(False)
    state = {key: value.clone() for key, value in target.module.state_dict().items()}
    modes = [part.training for part in target.module.modules()]
    train(name, tmp_path, target=target)
    after = target.module.state_dict()
    assert [key for key in state if not torch.equal(state[key], after[key])] == []
    assert [weight.grad for weight in target.module.parameters() if weight.grad is not None] == []
    assert [weight.requires_grad for weight in target.module.parameters()].count(False) == 1
    assert not first.requires_grad
    assert [part.training for part in target.module.modules()] == modes


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name: str, tmp_path: Path) -> None:
    one = train(name, tmp_path / "one", seed=1)
    torch.manual_seed(1234)  # what was drawn before does not matter, nor how often is saved
    again = train(name, tmp_path / "again", seed=1, save_steps=1)
    other = train(name, tmp_path / "other", seed=2)
    assert_same_weights(one, again)
    with pytest.raises(AssertionError):
        assert_same_weights(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    whole = train(name, tmp_path / "whole", seed=3)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 2; go on with resume"):
        train(name, tmp_path / "halves", Pictures(signal_at=read_in_step(name, 2)), seed=3)
    assert steps_in(tmp_path / "halves") == 2
    assert load_generator(str(tmp_path / "halves")).image_size == SIDE  # usable before the end
    assert [path.name for path in (tmp_path / "halves" / "samples").iterdir()] == ["000002.png"]
    card = tmp_path / "halves" / "README.md"
    assert "Training: **unfinished**, 2 of 4 steps." in card.read_text()
    images = Pictures()
    resumed = train(name, tmp_path / "halves", images, seed=3, resume=True)
    assert "Training: finished, 4 of 4 steps." in card.read_text()
    assert images.reads < read_in_step(name, 4)  # two steps of four
    assert_same_weights(resumed, whole)
    records = [json.loads((tmp_path / part / "training.json").read_text()) for part in ("whole", "halves")]
    assert records[0]["history"] == [entry for entry in records[1]["history"] if entry["step"] == 4]


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_can_be_prolonged(name: str, tmp_path: Path) -> None:
    whole = train(name, tmp_path / "whole")
    train(name, tmp_path / "parts", settings={"steps": 3})
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["steps"] == 3
    prolonged = train(name, tmp_path / "parts", resume=True)
    assert_same_weights(prolonged, whole)
    assert_same_weights(load_generator(str(tmp_path / "parts")), whole)
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["steps"] == 4


@pytest.mark.parametrize("name", NAMES)
def test_resuming_without_a_checkpoint_begins(name: str, tmp_path: Path) -> None:
    train(name, tmp_path, resume=True)
    assert steps_in(tmp_path) == 4


def test_losses_are_logged_where_asked(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    logged = train("flow", tmp_path, seed=1, save_steps=2, report_to="tensorboard")
    assert_same_weights(logged, train("flow", tmp_path / "not", seed=1))
    (file,) = (tmp_path / "runs").rglob("events.*")
    events = EventAccumulator(str(file)).Reload()
    history = json.loads((tmp_path / "training.json").read_text())["history"]
    for name in set(history[0]) - {"step"}:
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(entry["step"], pytest.approx(entry[name])) for entry in history]
    train("flow", tmp_path, overwrite=True)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"report_to must be a logger .*tensorboard.*, got tensorbord;"):
        train("flow", tmp_path / "other", report_to="tensorbord")


def test_the_whole_data_set_is_used_and_shuffled_anew_each_epoch(tmp_path: Path) -> None:
    class Noted(Pictures):
        def __init__(self) -> None:
            super().__init__(20)
            self.order: list[int] = []

        def __getitem__(self, index: int) -> Tensor:
            self.order.append(index)
            return super().__getitem__(index)

    images = Noted()
    train("gmi", tmp_path, images, settings={"discriminator_steps": 1, "batch_size": 10})  # four batches: two epochs
    first, second = images.order[1:21], images.order[21:]  # the very first look is at the size
    assert sorted(first) == sorted(second) == list(range(20))
    assert len({tuple(first), tuple(second), tuple(range(20))}) == 3


def test_a_rest_smaller_than_a_batch_is_left_out(tmp_path: Path) -> None:
    images = Pictures(13)
    train("gmi", tmp_path, images)
    assert images.reads == 1 + 4 * 2 * 8


def test_the_base_class_labels_nobody() -> None:
    data = tiny_prior("gmi").data(Pictures(), None)
    image, label = data[5]
    assert len(data) == 40  # type: ignore[arg-type]
    assert label == 0
    assert torch.equal(image, Pictures()[5])
    assert PriorConfig().batch_size == 64


@pytest.mark.parametrize("name", [name for name in PRIORS.names() if PRIORS.get(name).needs_target])
def test_a_prior_of_one_target_does_not_go_on_with_another(name: str, tmp_path: Path) -> None:
    train(name, tmp_path, settings={"steps": 1})
    other = tiny_target()
    next(other.module.parameters()).data.mul_(2)
    with pytest.raises(ValueError, match=r"was made with \{'target': "):
        train(name, tmp_path, target=other, resume=True)
