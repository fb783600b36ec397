"""The hint at the learning rate, which compares a trained model with the frozen features of its base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ResNetForImageClassification

from calor_hf import CALoRForImageClassification, CALoRTrainer, DefenseTrainer
from calor_hf.training.underfit import learning_rate_hint
from tests.training.small_task import Patterns, arguments, config


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose norms have seen images, so that it does not look untrained."""
    torch.manual_seed(0)
    model, folder = ResNetForImageClassification(config("resnet")), tmp_path_factory.mktemp("base")
    model.train()
    for _ in range(20):
        model(pixel_values=Patterns(64, 3).images)
    model.save_pretrained(folder)
    return folder


def calor_trainer(base: Any, folder: Path, **changes: Any) -> CALoRTrainer:
    model = CALoRForImageClassification.from_pretrained(base, num_labels=6, rank=3)
    plan = {"num_train_epochs": 1, "adapt_epochs": 1, **changes}
    return CALoRTrainer(
        model=model, args=arguments(folder, **plan), train_dataset=Patterns(128, 1), eval_dataset=Patterns(60, 2)
    )


def test_features_that_still_do_ask_for_a_higher_rate(base: Path, tmp_path: Path) -> None:
    run = calor_trainer(base, tmp_path, learning_rate=1e-5)
    found = learning_rate_hint(run, run.eval_dataset, accuracy=0.2)
    assert f"frozen features of {base} are right on 98.3 % of the held-out images" in found
    assert "the trained model on 20.0 %" in found
    assert "raise head_learning_rate or learning_rate (now 1e-05)" in found
    assert learning_rate_hint(run, run.eval_dataset, accuracy=0.96) == ""  # within the margin


def test_damaged_features_ask_for_a_lower_rate(base: Path, tmp_path: Path) -> None:
    run = calor_trainer(base, tmp_path)
    with torch.no_grad():
        for weight in run.model.backbone.parameters():
            weight.zero_()
    found = learning_rate_hint(run, run.eval_dataset, accuracy=0.2)
    assert "training has damaged the features (16.7 % now): lower learning_rate (now 0.01)" in found


@pytest.mark.parametrize("kind", ["made in memory", "gone", "looks untrained"])
def test_without_a_trained_base_there_is_no_hint(tmp_path: Path, kind: str) -> None:
    untrained = ResNetForImageClassification(config("resnet"))
    untrained.save_pretrained(tmp_path / "base")
    run = calor_trainer(tmp_path / "base", tmp_path / "run")
    if kind != "looks untrained":
        run.model.config.base_config.name_or_path = "" if kind == "made in memory" else str(tmp_path / "gone")
    assert learning_rate_hint(run, run.eval_dataset, accuracy=0.0) == ""


def test_an_underfitted_run_without_stages_gives_the_hint(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = ResNetForImageClassification.from_pretrained(base, num_labels=6)
    torch.nn.init.zeros_(model.classifier[1].weight)
    args = arguments(tmp_path, num_train_epochs=1, learning_rate=1e-6, save_strategy="no")
    DefenseTrainer(model=model, args=args, train_dataset=Patterns(128, 1), eval_dataset=Patterns(60, 2)).train()
    assert "the model is under-fitted, with" in caplog.text
    assert "raise head_learning_rate or learning_rate (now 1e-06)" in caplog.text
