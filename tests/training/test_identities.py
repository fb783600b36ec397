"""Identities of decoys on their way from the data into the loss, through checkpoints, and their checks."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification

from calor_hf import DefenseTrainer
from calor_hf.modeling import defend
from tests.training.small_task import CLASSES, Patterns, arguments, assert_same_weights, config

K = 2


class People(Patterns):
    """Two identities a class, as many images each."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, seed)
        self.identities = K * self.labels + torch.arange(count) // CLASSES % K

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "identities": int(self.identities[index])}


class SoftlyLabeled(People):
    """The same with the labels of mixed images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "labels": torch.full((CLASSES,), 1 / CLASSES)}


def trainer(folder: Path, data: Any, defense: str = "decoys", **changes: Any) -> DefenseTrainer:
    torch.manual_seed(0)
    base = AutoModelForImageClassification.from_config(config("resnet"))
    model = defend(base, defense, **({"k": K} if defense == "decoys" else {}))
    plan = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None, **changes}
    return DefenseTrainer(model=model, args=arguments(folder, **plan), train_dataset=data, eval_dataset=Patterns(60, 2))


def test_identities_reach_the_loss_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole = trainer(tmp_path, People(120, 1))  # with remove_unused_columns, the Trainer's default
    whole.train()
    logged = [entry for entry in whole.state.log_history if "loss" in entry]
    assert all(entry["identity_cross_entropy"] == pytest.approx(entry["loss"], rel=1e-3) for entry in logged)
    assert "cross_entropy" not in logged[0]
    expected = copy.deepcopy(whole.model)
    again = trainer(tmp_path, People(120, 1))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert_same_weights(again.model, expected)
    others = People(120, 1)
    others.identities = K * others.labels + 1 - others.identities % K
    with pytest.raises(ValueError, match="the train data have other identities, or in another order"):
        trainer(tmp_path, others).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_identities_that_do_not_fit_are_refused_before_training(tmp_path: Path) -> None:
    wrong = People(24, 1)
    wrong.identities[5] = 0
    with pytest.raises(
        ValueError, match="the label 5 and the identity 0, but with k=2 a class c has the identities 2c"
    ):
        trainer(tmp_path, wrong).train()
    with pytest.raises(ValueError, match=r"soft labels \(mixup, cutmix\) have no identity"):
        trainer(tmp_path, SoftlyLabeled(24, 1)).train()
    with pytest.raises(ValueError, match="has identities, which only the defense 'decoys' reads"):
        trainer(tmp_path, People(24, 1), "loft").train()
