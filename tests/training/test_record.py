"""The record of a training run next to the saved model, and the card that quotes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageClassification, TrainerCallback

from calor_hf import DefenseTrainer
from calor_hf.core.files import weights_digest
from calor_hf.hub.evidence import StaleRecordError, gather, read_record
from calor_hf.training.metrics import classification_metrics
from tests.training.small_task import Patterns, arguments, config, defense_trainer, trainer


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


@pytest.mark.parametrize("name", ["mid", "calor"])
def test_saved_model_is_measured_on_the_validation_split(name: str, tmp_path: Path) -> None:
    run = defense_trainer(tmp_path / "run", name, "resnet")
    run.save_model(str(tmp_path / "before"))
    assert not (tmp_path / "before" / "metrics.json").exists()
    run.train()
    assert list((tmp_path / "run").rglob("metrics.json")) == []  # checkpoints and stages have none
    run.save_model(str(tmp_path / "model"))
    found = record_of(tmp_path / "model")
    assert (found["split"], found["images"], found["defense"]) == ("validation", 60, name)
    assert found["settings"] == run.model.defense.config.to_dict()
    assert found["weights"] == weights_digest(tmp_path / "model")
    assert found["steps"] == ({"fit": 8, "adapt": 8} if name == "calor" else {"fit": 8})
    assert list(found["measured"]) == (["before adapting", "result"] if name == "calor" else ["mid"])
    assert found["train_seconds"] > 0
    read = read_record(tmp_path / "model")
    assert read is not None
    assert read.result.accuracy == list(found["measured"].values())[-1]["accuracy"]


def test_numbers_are_those_of_the_saved_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", adapt_epochs=1)
    run.train()
    run.save_model(str(tmp_path / "model"))
    saved = {"result": tmp_path / "model", "before adapting": tmp_path / "run" / "stage-1"}
    for name, folder in saved.items():
        model = type(run.model).from_pretrained(folder)
        again = DefenseTrainer(model=model, args=arguments(tmp_path / "again"), train_dataset=Patterns(128, 1))
        metrics = again.predict(Patterns(60, 2)).metrics
        numbers = record_of(tmp_path / "model")["measured"][name]
        for key in ("accuracy", "nll", "ece", "confidence"):
            assert numbers[key] == pytest.approx(metrics[f"test_{key}"], abs=1e-6)
        assert numbers["train_accuracy"] == pytest.approx(again.measure_training_images()["accuracy"])


def test_test_split_is_named_and_the_card_quotes_it(tmp_path: Path) -> None:
    run = defense_trainer(tmp_path, "loft", "resnet")
    run.train()
    run.save_model()
    run.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "was measured" not in card
    assert "On 60 validation images." in card
    assert "Validation accuracy" in card
    assert gather(tmp_path).training is not None
    run.test_dataset = Patterns(30, 3)
    run.train()
    run.save_model(str(tmp_path / "tested"))
    found = record_of(tmp_path / "tested")
    assert (found["split"], found["images"]) == ("test", 30)


def test_record_is_of_the_weights_that_were_measured(tmp_path: Path) -> None:
    run = defense_trainer(tmp_path, "loft", "resnet")
    run.train()
    run.save_model()
    fuller = record_of(tmp_path) | {"dataset_id": "someone/faces"}
    (tmp_path / "metrics.json").write_text(json.dumps(fuller))
    run.save_model()
    assert record_of(tmp_path) == fuller
    with torch.no_grad():
        next(run.model.parameters()).add_(1)
    run.save_model()
    assert record_of(tmp_path) == fuller
    with pytest.raises(StaleRecordError, match="belongs to other weights"):
        read_record(tmp_path)


def test_ordinary_model_and_own_metrics(tmp_path: Path) -> None:
    model = AutoModelForImageClassification.from_config(config("resnet"))
    run = DefenseTrainer(
        model=model,
        args=arguments(tmp_path, num_train_epochs=1, save_strategy="no"),
        train_dataset=Patterns(128, 1),
        eval_dataset=Patterns(60, 2),
        compute_metrics=lambda prediction: {"errors": 1 - classification_metrics(prediction)["accuracy"]},
    )
    run.train()
    run.save_model()
    found = record_of(tmp_path)
    assert (found["defense"], found["settings"], list(found["measured"])) == ("none", {}, ["undefended"])


class Measured(TrainerCallback):
    """Counts the passes over data that are not for training."""

    def __init__(self) -> None:
        self.predictions = 0

    def on_predict(self, *args: Any, **kwargs: Any) -> None:
        self.predictions += 1


def test_without_a_split_nothing_is_measured(tmp_path: Path) -> None:
    count = Measured()
    run = defense_trainer(tmp_path, "loft", "resnet", [count])
    run.eval_dataset = None
    run.train()
    run.save_model()
    assert count.predictions == 0
    assert not (tmp_path / "metrics.json").exists()
