"""Two-stage training on a small task, for a convolutional and a transformer base."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from calor_hf import CALoRForImageClassification, CALoRTrainer
from calor_hf.training.callbacks import TrainingInterrupted
from calor_hf.training.calor_trainer import AccuracyLostError
from calor_hf.training.checkpoints import last_checkpoint
from calor_hf.training.checks import NonFiniteLossError
from calor_hf.training.trainer import DefenseTrainer
from tests.training.small_task import CLASSES, STEPS, Patterns, arguments, assert_same_weights, config, trainer


class Stream(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        data = Patterns(128, 1)
        return iter([data[i] for i in range(len(data))])


class InterruptAt(TrainerCallback):
    """Ctrl-C while a step runs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class AttackCallback(TrainerCallback):
    """Notes stage, learning rate and size of the optimizer state at each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float, int]] = []
        self.trainer: DefenseTrainer | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        optimizer = self.trainer.optimizer
        self.seen.append((self.trainer.model.stage, optimizer.param_groups[0]["lr"], len(optimizer.state)))


def test_stage_learning_rate_and_optimizer_follow_the_step(tmp_path: Path) -> None:
    callback = AttackCallback()
    callback.trainer = trainer(tmp_path, callbacks=[callback], lr_scheduler_type="cosine")
    callback.trainer.train()
    stages, rates, states = zip(*callback.seen, strict=True)
    assert stages == ("fit",) * 3 * STEPS + ("adapt",) * 3 * STEPS
    assert rates[0] == pytest.approx(1e-2)
    assert rates[3 * STEPS - 1] < 1e-3  # the end of the cosine
    assert rates[3 * STEPS :] == pytest.approx([1e-3] * 3 * STEPS)  # constant: a tenth of the first
    assert states[3 * STEPS - 1] > 0
    assert states[3 * STEPS] == 0  # a fresh state where the loss changes
    assert states[3 * STEPS + 1] > 0


def test_terms_stage_confidence_and_accuracy_are_logged_by_name(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    logs = [entry for entry in run.state.log_history if "loss" in entry]
    fit = [entry for entry in logs if entry["stage"] == 1]
    adapt = [entry for entry in logs if entry["stage"] == 2]
    assert len(fit) == len(adapt) == 3
    for entry in fit:
        assert entry["cross_entropy"] == pytest.approx(entry["loss"], rel=1e-4)
        assert "confidence_adaptation" not in entry
    for entry in adapt:
        logged = pytest.approx(entry["loss"], rel=1e-4, abs=5e-5)  # 4.57 logs four digits
        assert entry["confidence_adaptation"] == logged
        assert entry["loss"] <= 0
    assert all(0 <= entry["confidence"] <= 1 and 0 <= entry["accuracy"] <= 1 for entry in logs)
    evaluated = {entry["step"]: entry for entry in run.state.log_history if "eval_loss" in entry}
    end_of_fit = evaluated[3 * STEPS]  # the loss there is of the stage that ends
    assert end_of_fit["eval_loss"] == pytest.approx(end_of_fit["eval_nll"], rel=1e-4, abs=5e-5)
    assert all(entry["eval_loss"] <= 0 for step, entry in evaluated.items() if step > 3 * STEPS)


def test_the_result_is_the_chosen_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(tmp_path, save_total_limit=1)
    run.train()
    best = run.selection().best
    assert best is not None
    saved = CALoRForImageClassification.from_pretrained(tmp_path / f"checkpoint-{best.step}")
    assert_same_weights(run.model, saved)
    assert run.chosen_step() == best.step  # so it outlived save_total_limit=1
    assert f"not at the target: its training confidence is {best.confidence:.4f}, not 0.8825" in caplog.text


def test_training_images_are_measured_also_with_workers_that_stay(tmp_path: Path) -> None:
    run = trainer(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)
    run.evaluate()
    measured = run.measure_training_images()
    expected = trainer(tmp_path).measure_training_images()
    for name in ("accuracy", "nll", "confidence"):
        assert measured[name] == pytest.approx(expected[name])
    assert measured["nll"] != pytest.approx(run.evaluate()["eval_nll"])


def test_adapting_stops_when_the_target_is_reached(tmp_path: Path) -> None:
    plan: dict[str, Any] = {
        "num_train_epochs": 20,
        "adapt_epochs": 40,
        "adapt_learning_rate": 1e-2,
        "confidence_tolerance": 0.05,
    }
    run = trainer(tmp_path, **plan)
    run.train()
    selection = run.selection()
    assert selection.finished
    assert run.state.global_step < (20 + 40) * STEPS
    assert selection.best is not None
    assert abs(selection.best.confidence - run.target) <= 0.05
    again = trainer(tmp_path, **plan)
    again.train(resume_from_checkpoint=True)  # nothing left to do: the same result
    assert_same_weights(again.model, run.model)


@pytest.mark.parametrize(
    ("kind", "step"),
    [("resnet", 3 * STEPS), ("vit", 3 * STEPS + 3), pytest.param("resnet", 3 * STEPS + 3, marks=pytest.mark.slow)],
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, kind: str, step: int) -> None:
    whole = trainer(tmp_path / "whole", kind)
    whole.train()

    first = trainer(tmp_path / "halves", kind, callbacks=[InterruptAt(step)])
    with pytest.raises(TrainingInterrupted, match=f"stage 'adapt' after step {step + 1} of 48"):
        first.train()
    callback = AttackCallback()
    second = callback.trainer = trainer(tmp_path / "halves", kind, callbacks=[callback])
    second.train(resume_from_checkpoint=True)
    assert {stage for stage, _, _ in callback.seen} == {"adapt"}
    assert len(callback.seen) == 48 - step - 1
    assert_same_weights(second.model, whole.model)


def test_losing_accuracy_is_an_error_that_keeps_stage_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_accuracy_drop=0.0, adapt_learning_rate=3.0)
    with pytest.raises(AccuracyLostError, match=r"first stage's model is in .*stage-1.*accept-unadapted"):
        run.train()
    CALoRForImageClassification.from_pretrained(tmp_path / "stage-1")


def test_an_unadapted_model_is_returned_only_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = trainer(tmp_path, max_accuracy_drop=0.0, adapt_learning_rate=3.0, accept_unadapted=True)
    run.train()
    assert "confidence is not adapted" in caplog.text
    assert run.measured is not None
    record = run.record(run.measured)
    assert record["adapted"] is False
    assert sum(record["steps"].values()) == run.state.global_step
    assert_same_weights(run.model, CALoRForImageClassification.from_pretrained(tmp_path / "stage-1"))


def test_if_nothing_can_be_adapted_the_stage_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan: dict[str, Any] = {"num_train_epochs": 1, "learning_rate": 1e-5}
    run = trainer(tmp_path, **plan)
    run.train()
    assert "the model is under-fitted" in caplog.text
    assert "adapt stage was left out" in caplog.text
    assert run.measured is not None
    record = run.record(run.measured)
    assert record["adapted"] is False
    assert record["steps"] == {"fit": STEPS, "adapt": 0}
    first = CALoRForImageClassification.from_pretrained(tmp_path / "stage-1")
    assert_same_weights(run.model, first)
    again = trainer(tmp_path, **plan)
    again.train(resume_from_checkpoint=True)  # nothing left to do
    assert_same_weights(again.model, first)


def test_adapting_can_take_the_tail_of_the_schedule(tmp_path: Path) -> None:
    run = trainer(tmp_path, adapt_start_epoch=2)
    run.train()
    assert run.plan is not None
    assert [(s.name, s.start, s.stop) for s in run.plan.stages] == [("fit", 0, 16), ("adapt", 16, 24)]
    assert run.state.global_step == 24


def test_streamed_data_with_steps(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=10, adapt_steps=6)
    run.train_dataset = Stream()
    run.train()
    assert run.state.global_step == 16
    assert run.plan is not None
    assert [s.stop for s in run.plan.stages] == [10, 16]


def test_streamed_data_without_adapt_steps_are_refused_before_training(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=10)
    run.train_dataset = Stream()
    with pytest.raises(ValueError, match="adapt_steps"):
        run.train()
    assert run.state.global_step == 0


def test_a_validation_split_is_required(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.eval_dataset = None
    with pytest.raises(ValueError, match="a validation split"):
        run.train()


def test_resuming_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=True)


def test_a_checkpoint_that_was_not_finished_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-16").mkdir()  # killed before its last file
    assert last_checkpoint(tmp_path).endswith("checkpoint-8")


def test_other_models_are_refused(tmp_path: Path) -> None:
    from transformers import ResNetForImageClassification

    with pytest.raises(TypeError, match="from_base"):
        CALoRTrainer(model=ResNetForImageClassification(config("resnet")), args=arguments(tmp_path))


def test_soft_labels_train_the_first_stage_and_are_refused_in_the_second() -> None:
    model = CALoRForImageClassification.from_config(config("resnet"), rank=3)
    images, soft = torch.rand(4, 3, 32, 32), torch.full((4, CLASSES), 1 / CLASSES)
    model.stage = "fit"
    assert model(pixel_values=images, labels=soft).loss > 0
    model.stage = "adapt"
    with pytest.raises(ValueError, match="mixup"):
        model(pixel_values=images, labels=soft)


def test_class_weights_reach_the_loss(tmp_path: Path) -> None:
    from transformers import ResNetForImageClassification

    weights = torch.tensor([5.0, 1, 1, 1, 1, 1])
    batch = {"pixel_values": torch.rand(3, 3, 32, 32), "labels": torch.tensor([0, 1, 2])}
    base = ResNetForImageClassification(config("resnet")).eval()
    run = DefenseTrainer(model=base, args=arguments(tmp_path), class_weights=weights)
    expected = torch.nn.functional.cross_entropy(base(**batch).logits, batch["labels"], weight=weights)
    torch.testing.assert_close(run.compute_loss(base, batch), expected)
    model = CALoRForImageClassification.from_base(base, rank=3)
    run = CALoRTrainer(model=model, args=arguments(tmp_path), class_weights=weights)
    model.stage = "fit"
    expected = torch.nn.functional.cross_entropy(model(**batch).logits, batch["labels"], weight=weights)
    torch.testing.assert_close(model(**batch).loss, expected)


def test_the_head_can_have_its_own_learning_rate(tmp_path: Path) -> None:
    run = trainer(tmp_path, head_learning_rate=0.05, lr_scheduler_type="constant", save_strategy="no")
    run.train()
    head = {id(parameter) for parameter in run.model.classification_head.parameters()}
    for group in run.optimizer.param_groups:
        (is_head,) = {id(parameter) in head for parameter in group["params"]}
        assert group["initial_lr"] == (0.05 if is_head else 0.01)
        assert group["lr"] == pytest.approx(group["initial_lr"] / 10)  # the adapt stage
    counted = sum(len(group["params"]) for group in run.optimizer.param_groups)
    assert counted == len(list(run.model.parameters()))


def test_only_the_last_layer_can_be_adapted(tmp_path: Path) -> None:
    trainer(tmp_path, adapt_only_last_layer=True, weight_decay=0.1).train()
    first = CALoRForImageClassification.from_pretrained(tmp_path / "stage-1").state_dict()
    last = CALoRForImageClassification.from_pretrained(tmp_path / "checkpoint-48").state_dict()
    for name, weight in first.items():
        assert torch.equal(weight, last[name]) != name.startswith("classification_head.up."), name


class PoisonAt(TrainerCallback):
    """A weight becomes NaN, as after a step that was too long."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            next(model.classification_head.parameters()).data.fill_(float("nan"))


@pytest.mark.parametrize(("step", "stage"), [(3, "fit"), (19, "fit"), (27, "adapt")])
def test_loss_that_is_not_finite_stops_the_run_with_the_last_good_checkpoint(
    tmp_path: Path, step: int, stage: str
) -> None:
    run = trainer(tmp_path, callbacks=[PoisonAt(step)])
    kept = f"the last good checkpoint is .*checkpoint-{step // STEPS * STEPS}" if step >= STEPS else "no checkpoint had"
    with pytest.raises(
        NonFiniteLossError, match=rf"loss is not finite at step {step + 1} \(stage '{stage}'\); {kept}.*learning rate"
    ):
        run.train()
    for folder in tmp_path.glob("checkpoint-*"):
        weights = CALoRForImageClassification.from_pretrained(folder).state_dict()
        assert all(torch.isfinite(weight.float()).all() for weight in weights.values())


@pytest.mark.parametrize("freeze", [True, False])
def test_batch_norm_statistics_stand_still_while_adapting(tmp_path: Path, freeze: bool) -> None:
    run = trainer(tmp_path, adapt_freeze_batch_norm=freeze)
    run.train()
    first = CALoRForImageClassification.from_pretrained(tmp_path / "stage-1").state_dict()
    last = CALoRForImageClassification.from_pretrained(tmp_path / "checkpoint-48").state_dict()
    for kind in ("running_mean", "running_var"):
        assert all(torch.equal(first[name], last[name]) == freeze for name in first if name.endswith(kind))
    assert not torch.equal(first["classification_head.up.weight"], last["classification_head.up.weight"])


def test_accumulated_gradients_equal_those_of_one_batch(tmp_path: Path) -> None:
    norms = {}
    for name, batch, accumulate in (("one", 8, 1), ("four", 2, 4)):
        run = trainer(
            tmp_path / name, "vit", num_train_epochs=1, adapt_epochs=1, logging_steps=1, max_grad_norm=1e9,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        )  # fmt: skip
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        run.train_dataset = Patterns(8, 1)
        run.train()
        norms[name] = [entry["grad_norm"] for entry in run.state.log_history if "grad_norm" in entry]
    assert len(norms["one"]) == 2
    assert norms["one"] == pytest.approx(norms["four"], rel=1e-3)


def test_undefended_training_equals_the_plain_trainer(tmp_path: Path) -> None:
    from transformers import ResNetForImageClassification

    models = []
    for kind in (DefenseTrainer, Trainer):
        torch.manual_seed(0)
        model = ResNetForImageClassification(config("resnet"))
        args = TrainingArguments(
            output_dir=str(tmp_path / kind.__name__), num_train_epochs=2, learning_rate=1e-2, use_cpu=True,
            per_device_train_batch_size=16, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        kind(model=model, args=args, train_dataset=Patterns(64, 1)).train()
        models.append(model)
    assert_same_weights(*models)
