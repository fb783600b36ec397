"""Questions of LOKT's prior to the target: labels alone, and how many are in the record."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from calor_hf.generators import Generator, load_generator
from calor_hf.generators.conditional import Conditional, ConditionalConfig
from calor_hf.targets.base import LabelTarget
from tests.priors.small_prior import BATCH, CLASSES, SIDE, tiny_prior, tiny_target, train


def test_the_record_says_how_many_labels_were_asked_for(tmp_path: Path) -> None:
    target, seen = tiny_target(), list[int]()
    target.module.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    train("lokt", tmp_path / "whole", target=target)
    assert sum(seen) == 3 * 2 * BATCH  # one of four steps is warm-up; two updates of the discriminator each
    record = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert record["target_queries"] == sum(seen)
    train("lokt", tmp_path / "halves", settings={"steps": 2})
    train("lokt", tmp_path / "halves", resume=True)
    assert json.loads((tmp_path / "halves" / "training.json").read_text())["target_queries"] == sum(seen)
    train("plg", tmp_path / "plg")
    assert "target_queries" not in json.loads((tmp_path / "plg" / "training.json").read_text())


def test_only_labels_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("lokt", tmp_path / "whole")
    answer, answers = LabelTarget.__call__, list[Any]()

    def note(self: LabelTarget, images: torch.Tensor) -> torch.Tensor:
        labels = answer(self, images)
        answers.append(labels)
        return labels

    monkeypatch.setattr(LabelTarget, "__call__", note)
    target = tiny_target()
    with torch.no_grad():  # other scores, the same labels
        for weight in target.head.parameters():  # type: ignore[attr-defined]
            weight *= 3
    same = train("lokt", tmp_path / "louder", target=target)
    assert len(answers) == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name


def test_it_is_saved_with_its_discriminator(tmp_path: Path) -> None:
    made = train("lokt", tmp_path)
    read: Generator[Any] = load_generator(str(tmp_path))
    assert (read.name, read.num_classes) == ("conditional", CLASSES)
    assert read.config.discriminator == "auxiliary"
    images = torch.rand(3, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(read.realism(images, torch.arange(3)), made.realism(images, torch.arange(3)))
        assert torch.equal(read.realism(images), read.discriminator(images)[0])  # type: ignore[operator]


def test_checkpoints_from_before_a_setting_was_added_are_taken_up(tmp_path: Path) -> None:
    whole = train("plg", tmp_path / "whole")
    train("plg", tmp_path / "old", settings={"steps": 2})
    file = tmp_path / "old" / "checkpoint.pt"
    content = torch.load(file, weights_only=True)
    del content["settings"]["generator"]["discriminator"]
    torch.save(content, file)
    resumed = train("plg", tmp_path / "old", resume=True)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    content["settings"]["generator"]["discriminator"] = "auxiliary"
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"'discriminator': 'auxiliary'.*'discriminator': 'projection'"):
        train("plg", tmp_path / "old", resume=True)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="warm_up must be >= 0, got -1"):
        tiny_prior("lokt", warm_up=-1)
    with pytest.raises(ValueError, match="unknown discriminator 'gmi'; pass one of projection, auxiliary"):
        Conditional(ConditionalConfig(discriminator="gmi"))
