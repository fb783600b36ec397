"""A small task that is learnt in seconds, and runs of it in processes of their own: ``python -m`` this module."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Dinov2Config, PretrainedConfig, ResNetConfig, Trainer, TrainerCallback, ViTConfig

from calor_hf import CALoRForImageClassification, CALoRTrainer, CALoRTrainingArguments

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


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
