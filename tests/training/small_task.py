"""A small task that is learned in seconds, and runs of it in processes of their own."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset
from transformers import (
    AutoModelForImageClassification,
    Dinov2Config,
    PretrainedConfig,
    ResNetConfig,
    SwinConfig,
    Trainer,
    TrainerCallback,
    ViTConfig,
)

from calor_hf import DEFENSES, CALoRForImageClassification, CALoRTrainer, CALoRTrainingArguments, DefenseTrainer
from calor_hf.modeling import defend

CLASSES = 6
STEPS = 8  # of an epoch: 128 images in batches of 16


class Patterns(Dataset[dict[str, Any]]):
    """One pattern a class, with noise."""

    def __init__(self, count: int, seed: int, noise: float = 0.5) -> None:
        patterns = torch.randn(CLASSES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(count) % CLASSES
        generator = torch.Generator().manual_seed(seed)
        self.images = patterns[self.labels] + noise * torch.randn(count, 3, 32, 32, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index])}


def config(kind: str, dropout: float = 0.1) -> PretrainedConfig:
    if kind == "resnet":
        return ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=CLASSES
        )
    if kind == "dinov2":
        return Dinov2Config(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=1, image_size=32, patch_size=8,
            num_labels=CLASSES,
        )  # fmt: skip
    if kind == "swin":
        return SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, mlp_ratio=1,
            num_labels=CLASSES, hidden_dropout_prob=dropout, drop_path_rate=0.0,
        )  # fmt: skip
    return ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=CLASSES, hidden_dropout_prob=dropout,
    )  # fmt: skip


def arguments(folder: Path, **changes: Any) -> CALoRTrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 3,
        "adapt_epochs": 3,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "max_accuracy_drop": 100,
        "confidence_tolerance": 1e-9,  # never reached: the stage has its full length
        "save_strategy": "epoch",
        "logging_steps": STEPS,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return CALoRTrainingArguments(**(settings | changes))


def trainer(
    folder: Path, kind: str = "resnet", callbacks: Any = None, dropout: float = 0.1, **changes: Any
) -> CALoRTrainer:
    torch.manual_seed(0)
    model = CALoRForImageClassification.from_config(config(kind, dropout), rank=3)
    return CALoRTrainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=Patterns(128, 1),
        eval_dataset=Patterns(60, 2),
        callbacks=callbacks,
    )


DEFENSE_KINDS = ("resnet", "vit", "swin")
TRAINED = [name for name in DEFENSES.names() if not DEFENSES.get(name).extra]
"""Defenses that train everywhere; those with an extra of their own have tests of their own."""


def image_processor() -> Any:
    """A processor that says how pixels became inputs."""
    kind = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return kind(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def defense_trainer(
    folder: Path,
    name: str,
    kind: str,
    callbacks: Any = None,
    dropout: float = 0.1,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> DefenseTrainer:
    """Any registered defense on the small task, for one epoch (of each stage)."""
    torch.manual_seed(0)
    base = AutoModelForImageClassification.from_config(config(kind, dropout))
    plan = {"num_train_epochs": 1, "adapt_epochs": 1, "logging_steps": STEPS, **changes}
    kind_of_trainer = CALoRTrainer if name == "calor" else DefenseTrainer
    return kind_of_trainer(
        model=defend(base, name, **(settings or {})),
        args=arguments(folder, **plan),
        train_dataset=Patterns(128, 1),
        eval_dataset=Patterns(60, 2),
        processing_class=image_processor(),
        callbacks=callbacks,
    )


def train_every_defense(folder: Path, **changes: Any) -> None:
    """Train each defense on each kind of base; write weights, and how far processes disagree about them."""
    apart: dict[str, float] = {}
    for name in TRAINED:
        for kind in DEFENSE_KINDS:
            plan = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", **changes}
            plan["save_strategy"] = "no" if name != "calor" else "epoch"
            run = defense_trainer(folder / "runs" / f"{name}-{kind}", name, kind, [FixedBatchNorm()], 0.0, **plan)
            run.train()
            weights = torch.cat([weight.detach().flatten() for weight in run.model.parameters()])
            everywhere = run.accelerator.gather(weights.unsqueeze(0))
            apart[f"{name}-{kind}"] = float((everywhere - everywhere[0]).abs().max())
            assert len(everywhere) == run.args.world_size
            if run.is_world_process_zero():
                run.model.save_pretrained(folder / f"{name}-{kind}")
    if int(os.environ.get("RANK", 0)) == 0:
        (folder / "apart.json").write_text(json.dumps(apart))


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


class KillAt(TrainerCallback):
    """The power fails: at the beginning of a step, or (``in_evaluation``) between the last step and its checkpoint."""

    def __init__(self, step: int, in_evaluation: bool) -> None:
        self.step, self.in_evaluation = step, in_evaluation

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and not self.in_evaluation:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.in_evaluation:
            os.kill(os.getpid(), signal.SIGKILL)


class FixedBatchNorm(TrainerCallback):
    """Statistics stand still in every stage, so that they do not depend on how a batch is split."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(stand_still)


def stand_still(module: torch.nn.Module, _: Any) -> None:
    module.eval()


def main(options: dict[str, Any]) -> None:
    """Train as ``options`` say: ``folder``, ``kind``, ``kill_at``, ``plain`` and changes of the arguments."""
    folder, kind = Path(options.pop("folder")), options.pop("kind")
    if kind == "every defense":
        train_every_defense(folder, **options)
        return
    kill_at, in_evaluation = options.pop("kill_at", None), options.pop("in_evaluation", False)
    callbacks: list[TrainerCallback] = [FixedBatchNorm()] if options.pop("fixed_batch_norm", False) else []
    if kill_at is not None:
        callbacks.append(KillAt(kill_at, in_evaluation))
    plain = options.pop("plain", False)
    run: Trainer = trainer(folder, kind, callbacks, **options)
    if plain:  # the Trainer of transformers on the same model
        run = Trainer(model=run.model, args=run.args, train_dataset=run.train_dataset, eval_dataset=run.eval_dataset)
    run.train()
    if run.is_world_process_zero():
        report = {"world_size": run.args.world_size, "log_history": run.state.log_history}
        run.save_model(str(folder / "result"))
        (folder / "report.json").write_text(json.dumps(report))
