"""Scores divided by a temperature: alone, or as the start of confidence adaptation."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from calor_hf import DEFENSES, CALoRForImageClassification, DefendedForImageClassification
from calor_hf.core.calibration import temperature_for
from calor_hf.core.outputs import Stage
from calor_hf.modeling import defend
from calor_hf.training.callbacks import TrainingInterrupted
from calor_hf.training.stages import plan_stages
from tests.training.small_task import STEPS, arguments, assert_same_weights, config, defense_trainer, trainer
from tests.training.test_calor_trainer import InterruptAt

TARGET = math.exp(-1 / 8)
FROM_TEMPERATURE: dict[str, Any] = {"rank": 3, "ca_start": "temperature"}


def test_the_temperature_is_that_of_the_confidence() -> None:
    # Gaps ln 3 and 2 ln 3 between two classes: at T = 1 p is 3/4 and 9/10, mean 0.825; the third sample is wrong.
    logits = np.array([[math.log(3), 0], [0, math.log(9)], [5.0, 0]])
    labels = np.array([0, 1, 1])
    assert temperature_for(logits, labels, 0.825) == pytest.approx(1, abs=1e-6)
    assert temperature_for(2.5 * logits, labels, 0.825) == pytest.approx(2.5, rel=1e-6)
    assert temperature_for(logits[:1], labels[:1], 0.6) == pytest.approx(math.log(3) / math.log(1.5), rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "confidence", "message"),
    [([1, 0], 0.8, "no training image is classified correctly"), ([0, 1], 0.4, "confidence of 0.4.*between 0.5 and 1")],
)
def test_temperatures_that_do_not_exist_are_refused(labels: list[int], confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        temperature_for(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array(labels), confidence)


@pytest.mark.parametrize("defense", ["calor", "temperature"])
def test_a_confidence_that_the_classes_do_not_have_is_refused_at_once(defense: str) -> None:
    # Between 1/3 and 1, e^(-1/b) = 1/3 at b = 1 / ln 3 = 0.9102.
    method = DEFENSES.get(defense)
    method.complete(method.config_class.from_dict({"ca_b": 0.911}), 8, 3)
    for wrong in (0.910, 1e17):
        with pytest.raises(ValueError, match=r"between 0.3333 and 1; pass a ca_b above 0.9102"):
            method.complete(method.config_class.from_dict({"ca_b": wrong}), 8, 3)
    with pytest.raises(ValueError, match="one class is always at 1"):
        method.complete(method.config_class(), 8, 1)


@pytest.mark.parametrize("settings", [{}, {"low_rank": True, "rank": 3}, {"ca_b": 4.0}], ids=str)
def test_the_control_changes_the_scale_of_the_scores_and_nothing_else(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = defense_trainer(tmp_path, "temperature", "resnet", settings=settings, num_train_epochs=2)
    run.train()
    (found,) = [entry for entry in run.state.log_history if "temperature" in entry]
    target = math.exp(-1 / settings.get("ca_b", 8.0))
    assert run.measure_training_images()["confidence_correct"] == pytest.approx(target, abs=1e-4)
    assert found["confidence_after"] == pytest.approx(target, abs=1e-4)
    undivided = DefendedForImageClassification.from_pretrained(tmp_path / f"checkpoint-{2 * STEPS}").eval()
    images = {"pixel_values": torch.randn(4, 3, 32, 32)}
    with torch.no_grad():
        expected, scores = undivided(**images).logits, run.model.eval()(**images).logits
    torch.testing.assert_close(scores * found["temperature"], expected)

    run.save_model(str(tmp_path / "result"))
    assert_same_weights(DefendedForImageClassification.from_pretrained(tmp_path / "result"), run.model)
    again = defense_trainer(tmp_path, "temperature", "resnet", settings=settings, num_train_epochs=2)
    again.train(resume_from_checkpoint=True)  # nothing left to train; divided once
    assert_same_weights(again.model, run.model)


def test_a_run_that_ends_after_the_division_divides_once(tmp_path: Path) -> None:
    whole = defense_trainer(tmp_path / "whole", "calor", "vit", settings=FROM_TEMPERATURE)
    whole.train()
    steps = [entry["step"] for entry in whole.state.log_history if "temperature" in entry]
    assert (len(steps), steps[0]) == (2, STEPS)  # before and after adapting
    cut = defense_trainer(tmp_path / "cut", "calor", "vit", [InterruptAt(STEPS + 2)], settings=FROM_TEMPERATURE)
    with pytest.raises(TrainingInterrupted, match=f"stage 'adapt' after step {STEPS + 3}"):
        cut.train()
    shutil.copytree(tmp_path / "cut", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / f"checkpoint-{STEPS + 3}")  # as if killed between the division and a checkpoint
    for folder in ("cut", "killed"):
        resumed = defense_trainer(tmp_path / folder, "calor", "vit", settings=FROM_TEMPERATURE)
        resumed.train(resume_from_checkpoint=True)
        assert_same_weights(resumed.model, whole.model)


def test_adapting_starts_at_the_target_and_lowers_the_deviation(tmp_path: Path) -> None:
    plan = {"num_train_epochs": 6, "adapt_epochs": 4, "adapt_learning_rate": 1e-3, "confidence_tolerance": 0.02}
    run = defense_trainer(tmp_path, "calor", "vit", settings=FROM_TEMPERATURE, **plan)
    run.train()
    before = [entry for entry in run.state.log_history if "temperature" in entry]
    assert [entry["step"] for entry in before] == [6 * STEPS, 10 * STEPS]
    best = run.selection().best
    assert best.deviation == min(one.deviation for one in run.selection().candidates)
    assert run.measure_training_images()["confidence_correct"] == pytest.approx(TARGET, abs=1e-4)


def test_a_result_that_is_not_adapted_is_not_rescaled(tmp_path: Path) -> None:
    plan = {"max_accuracy_drop": 0, "adapt_learning_rate": 10.0, "accept_unadapted": True}
    run = defense_trainer(tmp_path, "calor", "vit", settings=FROM_TEMPERATURE, num_train_epochs=6, **plan)
    run.train()
    assert run.chosen_step() is None
    assert_same_weights(CALoRForImageClassification.from_pretrained(tmp_path / "stage-1"), run.model)


def test_scores_of_many_classes_are_rescaled_too(tmp_path: Path) -> None:
    run = defense_trainer(tmp_path, "temperature", "vit", class_chunk=2)
    run.train()
    assert run.measure_training_images()["confidence_correct"] == pytest.approx(TARGET, abs=1e-4)
    assert run.model.class_chunk == 2


def test_both_heads_of_a_model_are_divided(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    small = DeiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32,
                       patch_size=16, num_labels=6)  # fmt: skip
    run = defense_trainer(tmp_path, "temperature", "resnet")
    run.model = defend(DeiTForImageClassificationWithTeacher(small), "temperature").eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = run.model(images).logits
        run.end_stage(Stage("fit", 1, rescale_to=0.5))
        after = run.model(images).logits
    torch.testing.assert_close(after * run.state.log_history[-1]["temperature"], before)


def test_the_rate_after_a_temperature_is_gentle() -> None:
    def rate(optim: str, **changes: Any) -> float | None:
        model = CALoRForImageClassification.from_config(config("vit"), **FROM_TEMPERATURE)
        return model.defense.stages(arguments(Path("unused"), optim=optim, **changes))[1].learning_rate

    assert rate("adamw_torch") == 5e-5
    assert rate("sgd") == pytest.approx(1e-3)  # a tenth of 1e-2
    assert rate("sgd", learning_rate=1.0) == 1e-2
    assert rate("adamw_torch", adapt_learning_rate=1e-3) == 1e-3


def test_a_trained_model_needs_no_cross_entropy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("calor_hf").propagate = True
    first = defense_trainer(tmp_path / "first", "none", "resnet", num_train_epochs=6)
    first.train()
    base = AutoModelForImageClassification.from_pretrained(_saved(first, tmp_path / "base"))
    calibration = torch.stack([first.train_dataset[index]["pixel_values"] for index in range(64)])
    run = defense_trainer(tmp_path, "calor", "resnet", num_train_epochs=0)
    run.model = CALoRForImageClassification.from_base(
        base, rank=5, head_init="svd", calibration=calibration, ca_start="temperature"
    )
    run.train()
    assert run.state.global_step == STEPS
    reference = run.selection().reference
    assert reference.step == 0
    assert (tmp_path / "stage-1" / "config.json").is_file()
    assert [entry["step"] for entry in run.state.log_history if "temperature" in entry] == [0, STEPS]


def _saved(run: Any, folder: Path) -> Path:
    run.model.to_base().save_pretrained(folder)
    return folder


def test_random_weights_need_cross_entropy(tmp_path: Path) -> None:
    run = trainer(tmp_path, num_train_epochs=0)
    with pytest.raises(ValueError, match="it cannot start from this model; train the first stage"):
        run.train()


def test_only_the_first_of_several_stages_may_be_empty() -> None:
    plan = plan_stages([Stage("fit", 0), Stage("adapt", 2, learning_rate=0.1)], 4)
    assert [(one.name, one.start, one.stop) for one in plan.stages] == [("fit", 0, 0), ("adapt", 0, 8)]
    for stages in ([Stage("fit", 0)], [Stage("fit", 1), Stage("adapt", 0, learning_rate=0.1)]):
        with pytest.raises(ValueError, match="must last at least one step"):
            plan_stages(stages, 4)
