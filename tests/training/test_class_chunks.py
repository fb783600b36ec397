"""Training that scores classes in chunks: the curve of ordinary training, and no logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from calor_hf import DEFENSES, DefenseTrainer
from calor_hf.modeling import defend
from tests.training.small_task import CLASSES, Patterns, arguments, config, defense_trainer

ABLE = [name for name in DEFENSES.names() if DEFENSES.get(name).log_odds_suffice]
UNABLE = [name for name in DEFENSES.names() if name not in ABLE]
TIMES = ("runtime", "per_second", "flos")


def curve(folder: Path, name: str, class_chunk: int | None) -> tuple[list[dict[str, float]], DefenseTrainer]:
    plan: dict[str, Any] = {"class_chunk": class_chunk, "logging_steps": 1, "optim": "sgd", "learning_rate": 0.05}
    plan |= {"eval_strategy": "epoch", "save_strategy": "epoch"}
    run = defense_trainer(folder, name, "resnet", **plan)
    run.train()
    logs = [{k: v for k, v in entry.items() if not k.endswith(TIMES)} for entry in run.state.log_history]
    return logs, run


@pytest.mark.parametrize("name", ABLE)
def test_the_curve_is_that_of_ordinary_training(name: str, tmp_path: Path) -> None:
    wanted, dense = curve(tmp_path / "dense", name, None)
    found, chunked = curve(tmp_path / "chunked", name, 4)
    assert len(found) == len(wanted) > 8
    assert any("eval_accuracy" in entry for entry in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    a, b = chunked.model.state_dict(), dense.model.state_dict()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert {"calor", "none", "loft", "transfer"} <= set(ABLE)


@pytest.mark.parametrize("training", [True, False])
def test_no_logits_with_labels_and_logits_without(training: bool) -> None:
    model = defend(AutoModelForImageClassification.from_config(config("resnet")), "calor", rank=3).train(training)
    images, labels = Patterns(8, 1).images, torch.arange(8) % CLASSES
    model.score_in_chunks(2)
    out = model(images, labels=labels)
    assert out.logits is None
    assert out.margins is not None
    assert {name: value.shape for name, value in out.margins.items()} == {"log_odds": (8,), "best_rival": (8,)}
    assert model(images).logits.shape == (8, CLASSES)
    model.score_in_chunks(None)
    assert model(images, labels=labels).logits.shape == (8, CLASSES)


@pytest.mark.parametrize("name", UNABLE)
def test_a_loss_that_reads_all_scores_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class_chunk|reads all scores"):
        defense_trainer(tmp_path, name, "resnet", class_chunk=4)


def test_an_ordinary_model_is_refused(tmp_path: Path) -> None:
    base = AutoModelForImageClassification.from_config(config("resnet"))
    with pytest.raises(ValueError, match="needs a defended model"):
        DefenseTrainer(model=base, args=arguments(tmp_path, class_chunk=4))


def test_an_impossible_chunk_is_refused_by_the_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_chunk must be > 0"):
        arguments(tmp_path, class_chunk=0)


def test_who_has_many_classes_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "calor_hf")
    base = config("resnet")
    for classes, told in ((9_999, 0), (10_000, 1)):
        base.num_labels = classes
        model = defend(AutoModelForImageClassification.from_config(base), "none")
        DefenseTrainer(model=model, args=arguments(tmp_path))
        assert sum("10000 classes: class_chunk=4096" in line for line in caplog.messages) == told
