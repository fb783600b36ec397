"""Audits during training: logged, kept apart, read again after a stop, and without a trace in the weights."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, Trainer, TrainerCallback, TrainingArguments

from calor_hf import AuditCallback, AuditOptions, CALoRForImageClassification, CALoRTrainer, LeakageReport
from calor_hf.attacks import GradientAttack
from calor_hf.modeling import lora_config
from calor_hf.recipes.audit_callback import logged
from tests.attacks.tiny_world import tiny_generator
from tests.auditing.made_up import report_with_decoys
from tests.auditing.small_report import small_report
from tests.auditing.test_audit import evaluation_model, private_images_of
from tests.processes.server import Server
from tests.training.small_task import (
    CLASSES,
    Patterns,
    assert_same_weights,
    config,
    defense_trainer,
    image_processor,
)

SMALL = AuditOptions(
    attacks=["plg:steps=2"], classes=[0, 2], images_per_class=1, skip_power=True, metrics=["attack_accuracy"]
)
STEPS = 2  # of an epoch: 32 images in batches of 16
KEYS = {"audit_leakage", "audit_chance_level", "audit_accuracy"}


def plain_trainer(folder: Path, **changes: Any) -> Trainer:
    """The Trainer of transformers on a ViT with dropout."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "num_train_epochs": 2, "per_device_train_batch_size": 16, "eval_strategy": "epoch", "save_strategy": "epoch",
        "metric_for_best_model": "loss", "logging_strategy": "epoch", "use_cpu": True, "report_to": "none",
        "dataloader_pin_memory": False, "disable_tqdm": True,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **{**settings, **changes})
    return Trainer(
        model=AutoModelForImageClassification.from_config(config("vit")), args=args,
        train_dataset=Patterns(16 * STEPS, 1), eval_dataset=Patterns(60, 2), processing_class=image_processor(),
    )  # fmt: skip


def calor_trainer(folder: Path, **changes: Any) -> Trainer:
    """Batch norms, and two stages of an epoch each."""
    trainer = defense_trainer(folder, "calor", "resnet", settings={"rank": 3}, logging_strategy="epoch", **changes)
    trainer.train_dataset = Patterns(16 * STEPS, 1)
    return trainer


def callback(trainer: Trainer, **changes: Any) -> AuditCallback:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (CLASSES * 2, 3, 16, 16), generator=rng, dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(2)
    private = private_images_of(images=images, labels=labels, held_images=images.flip(3), held_labels=labels,
                                label_names=(), true_identity=None, identity_names=())  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # the parts draw weights
        prior, network = tiny_generator("dcgan", torch.float32), evaluation_model()
    parts = {"private": private, "prior": prior, "evaluation_model": network, "options": SMALL}
    return AuditCallback(trainer, **{**parts, **changes})


class Logger(TrainerCallback):
    """Stands for TensorBoard, Trackio or W&B."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def audits_in(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "audit_leakage" in entry]


@pytest.mark.parametrize("make", [plain_trainer, calor_trainer])
def test_training_is_the_same_with_audits(tmp_path: Path, make: Callable[..., Trainer]) -> None:
    ends = []
    for audited in (False, True):
        trainer = make(tmp_path / str(audited))
        if audited:
            trainer.add_callback(callback(trainer))
        trainer.add_callback(logger := Logger())
        trainer.train()
        ends.append((trainer, torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()))  # type: ignore[index]
    (without, *before), (trainer, *after) = ends
    assert_same_weights(without.model, trainer.model)
    assert str(before) == str(after)
    assert without.state.best_global_step == trainer.state.best_global_step
    timed = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime",
             "eval_samples_per_second", "eval_steps_per_second"}  # fmt: skip
    logs = [
        [{k: v for k, v in e.items() if k not in timed} for e in one.state.log_history] for one in (without, trainer)
    ]
    found = audits_in(trainer)
    assert [entry for entry in logs[1] if "audit_leakage" not in entry] == logs[0]
    assert [entry["step"] for entry in found] == [STEPS, 2 * STEPS]
    assert [entry.keys() - {"epoch"} for entry in logger.logs if "audit_leakage" in entry] == [KEYS, KEYS]
    folders = [tmp_path / "True" / "audits" / f"step-{step}" for step in (STEPS, 2 * STEPS)]
    for entry, folder in zip(found, folders, strict=True):
        assert {key: entry[key] for key in KEYS} == logged(LeakageReport.load(folder))
        assert 0 <= entry["audit_leakage"] <= 1


class Power(Exception):  # noqa: N818
    """A power cut."""


class CutAfter(TrainerCallback):
    """Stop at the beginning of an epoch."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch == self.epochs:
            raise Power


@pytest.mark.slow
def test_a_resumed_training_reads_a_finished_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the audit of the second epoch, whose checkpoint was not saved."""
    cut = calor_trainer(tmp_path, num_train_epochs=2)
    cut.add_callback(callback(cut, every_epochs=2))
    cut.add_callback(CutAfter(2))
    with pytest.raises(Power):
        cut.train()
    shutil.rmtree(tmp_path / f"checkpoint-{2 * STEPS}")
    (report,) = (tmp_path / "audits").glob("*/report.json")
    before = report.read_bytes()
    monkeypatch.setattr(GradientAttack, "run", lambda *args, **kwargs: pytest.fail("attacked again"))
    resumed = calor_trainer(tmp_path, num_train_epochs=2)
    resumed.add_callback(callback(resumed, every_epochs=2))
    resumed.train(resume_from_checkpoint=True)
    assert audits_in(resumed) == audits_in(cut)
    assert [entry["step"] for entry in audits_in(resumed)] == [2 * STEPS]
    assert report.read_bytes() == before


def test_a_finished_audit_is_read_and_another_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = callback(plain_trainer(tmp_path))
    first = made._audited(tmp_path, 8)
    monkeypatch.setattr(GradientAttack, "run", lambda *args, **kwargs: pytest.fail("attacked again"))
    again = callback(plain_trainer(tmp_path))  # the same weights
    assert again._audited(tmp_path, 8) == first
    before = (tmp_path / "step-8" / "report.json").read_bytes()
    other = callback(plain_trainer(tmp_path), options=replace(SMALL, seed=1))
    with pytest.raises(pytest.fail.Exception, match="attacked again"):
        other._audited(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-8", "step-8-2"]
    assert (tmp_path / "step-8" / "report.json").read_bytes() == before


def test_an_audit_that_fails_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    trainer = plain_trainer(tmp_path, num_train_epochs=1)
    trainer.add_callback(callback(trainer))
    monkeypatch.setattr(GradientAttack, "run", fail)
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert "the audit after step 2 failed, training continues: out of memory" in caplog.text
    assert audits_in(trainer) == []
    assert all(weight.requires_grad for weight in trainer.model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": "outputs/vit"}, "trainer must be a Trainer, got str"),
        ({"private": Patterns(4, 1)}, "private must be a PrivateImages, got Patterns"),
        ({"prior": "outputs/prior"}, "prior must be a Generator, got str"),
        ({"evaluation_model": "no/such/model"}, "no/such/model"),
        ({"every_epochs": 0}, "every_epochs must be a whole number >= 1, got 0"),
        ({"every_epochs": 0.5}, "every_epochs must be a whole number >= 1, got 0.5"),
        ({"options": replace(SMALL, output_dir="mine")}, "the callback sets output_dir itself"),
        ({"options": replace(SMALL, control="auto")}, "the callback sets control itself or does without"),
        ({"options": replace(SMALL, classes=[7])}, r"\b7\b"),
        ({"options": replace(SMALL, metrics=["verification"])}, "metric 'verification' needs embedding"),
    ],
)
def test_bad_input_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    trainer = changes.pop("trainer", None) or plain_trainer(tmp_path)
    with pytest.raises((TypeError, ValueError, OSError), match=message):
        callback(trainer, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trainer: setattr(trainer, "processing_class", None), "the trainer has no image processor"),
        (lambda trainer: setattr(trainer.args, "push_to_hub", True), "uploads output_dir with the reconstructions"),
        (lambda trainer: setattr(trainer, "is_fsdp_enabled", True), "FSDP and DeepSpeed keep them in shards"),
    ],
)
def test_trainers_that_cannot_be_audited_are_refused(
    tmp_path: Path, change: Callable[[Trainer], None], message: str
) -> None:
    trainer = plain_trainer(tmp_path)
    change(trainer)
    with pytest.raises(ValueError, match=message):
        callback(trainer)


@pytest.mark.parametrize("make", [plain_trainer, calor_trainer])
def test_too_few_epochs_are_refused_before_the_first_step(tmp_path: Path, make: Callable[..., Trainer]) -> None:
    trainer = make(tmp_path)
    trainer.add_callback(callback(trainer, every_epochs=3))
    with pytest.raises(ValueError, match="every_epochs=3, but training has 2 whole epochs"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_callback_belongs_to_one_trainer(tmp_path: Path) -> None:
    trainer, other = plain_trainer(tmp_path / "a"), plain_trainer(tmp_path / "b")
    other.add_callback(callback(trainer))
    with pytest.raises(ValueError, match="was made for another trainer"):
        other.train()


def test_epochs_between_audits_and_a_cut_epoch_are_not_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, audited = plain_trainer(tmp_path), list[int]()
    made = callback(trainer, every_epochs=2)

    def note(folder: Path, step: int) -> LeakageReport:
        audited.append(step)
        return small_report()

    monkeypatch.setattr(made, "_audited", note)
    for epoch in (1.0, 1.5, 2.0, 3.0, 4.0):
        trainer.state.epoch, trainer.state.global_step = epoch, int(10 * epoch)
        made.on_epoch_end(trainer.args, trainer.state, trainer.control)
    assert audited == [20, 40]


def test_of_decoys_nothing_is_logged_that_tells_the_private_identity() -> None:
    first, second = (logged(report_with_decoys(private)) for private in ({1, 2}, set(range(20))))
    assert first == second == {"audit_leakage": pytest.approx(0.9), "audit_chance_level": 0.0}


def main(options: dict[str, Any]) -> None:
    """Train in one of several processes, with or without audits."""
    folder = Path(options["folder"])
    trainer = plain_trainer(folder, per_device_train_batch_size=8)
    if options["audited"]:
        trainer.add_callback(callback(trainer))
    trainer.train()
    if trainer.is_world_process_zero():
        save_file(trainer.model.state_dict(), folder / "result.safetensors")
        (folder / "logs.json").write_text(json.dumps(audits_in(trainer)))


@pytest.mark.slow
def test_two_processes_share_an_audit(tmp_path: Path, server: Server) -> None:
    folders = [tmp_path / "without", tmp_path / "with"]
    for folder, audited in zip(folders, (False, True), strict=True):
        done = server.task(__name__, {"folder": str(folder), "audited": audited}, processes=2)
        assert done.status == 0, done.shown[-3000:]
    first, second = (load_file(folder / "result.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    logs = json.loads((folders[1] / "logs.json").read_text())
    reports = [LeakageReport.load(folders[1] / "audits" / f"step-{STEPS * epoch}") for epoch in (1, 2)]
    assert [{key: entry[key] for key in KEYS} for entry in logs] == [logged(report) for report in reports]
    record = json.loads((folders[1] / "audits" / "step-2" / "plg-steps-2" / "attack.json").read_text())
    assert (record["images"], record["cost"]["processes"]) == (2, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("always_adapts")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_model_with_an_adapter_is_audited(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="adapters need the extra calor-hf[peft]")
    base = CALoRForImageClassification.from_config(config("vit"), rank=3)
    trainer = calor_trainer(tmp_path)
    adapted = CALoRTrainer(
        model=peft.get_peft_model(base, lora_config(base, r=4)), args=trainer.args, train_dataset=trainer.train_dataset,
        eval_dataset=trainer.eval_dataset, processing_class=trainer.processing_class,
    )  # fmt: skip
    adapted.add_callback(callback(adapted))
    adapted.train()
    assert [entry["step"] for entry in audits_in(adapted)] == [STEPS, 2 * STEPS]
    trainable = {name.split(".")[-3] for name, weight in adapted.model.named_parameters() if weight.requires_grad}
    assert "lora_A" in trainable
