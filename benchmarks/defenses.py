"""Time of a training step with each defense against an undefended one: ViT-S geometry at 112 pixels.

One process holds both models, and they take turns step by step, so that a slow minute of the machine hits both.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks._paired import paired_ratio, show
from benchmarks._training_run import CLASSES, base_model
from calor_hf import DEFENSES, CALoRTrainer, CALoRTrainingArguments, DefenseTrainer
from calor_hf.modeling import defend

PAIRS = 9
GOALS = {
    "none": "1",
    "calor": "<= 1.02",
    "label_smoothing": "<= 1.02",
    "transfer": "< 1",
    "mid": "<= 1.05",
    "random_erasing": "<= 1.03",
    "bido": "<= 1.5",
}
LIMITS = {
    "transfer": "0.66: half of the layers without a backward pass",
    "at_at": "some 6: two batches, five passes that look for adversarial examples",
    "trap_mid": "some 5: two batches, gradients of triggers, a discriminator on both",
}
BATCH = {"bido": 128}


class Images(Dataset[dict[str, Any]]):
    """One batch over and over."""

    def __init__(self, batch: int) -> None:
        self.images = torch.rand(batch, 3, 112, 112, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return 100 * len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index % len(self.images)], "labels": index % CLASSES}


def stepper(name: str, batch: int, folder: Path, stack: ExitStack) -> Callable[[], float]:
    """Seconds of a training step, forward to optimizer, each call one; of both stages in turn if there are two."""
    quiet: dict[str, Any] = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    args = CALoRTrainingArguments(str(folder), per_device_train_batch_size=batch, num_train_epochs=2, **quiet)
    kind = CALoRTrainer if name == "calor" else DefenseTrainer
    trainer = kind(model=defend(base_model(), name), args=args, train_dataset=Images(batch), eval_dataset=Images(batch))
    trainer.processing_class = SimpleNamespace(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    total_steps = trainer.planned_values()[-1]
    trainer._first_bad_step = torch.full((), -1)
    trainer.current_gradient_accumulation_steps = 1
    stack.enter_context(trainer.at_work())
    trainer.create_optimizer_and_scheduler(total_steps)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    starts = [stage.start for stage in trainer.plan.stages] if trainer.plan is not None else [0]
    calls = 0

    def step() -> float:
        nonlocal calls
        trainer.state.global_step = starts[calls % len(starts)] + calls
        calls += 1
        begin = time.perf_counter()
        trainer.begin_step()
        trainer.training_step(trainer.model, dict(inputs))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return time.perf_counter() - begin

    for _ in range(2):
        step()  # the first ones allocate
    return step


def main() -> None:
    """Print the ratio of step times of each defense."""
    for name in DEFENSES.names():
        if DEFENSES.get(name).extra:
            continue
        batch = BATCH.get(name, 32)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            ours = stepper(name, batch, Path(folder) / "a", stack)
            reference = stepper("none", batch, Path(folder) / "b", stack)
            ratio = paired_ratio(ours, reference, PAIRS)
        limit = LIMITS.get(name, "1: the base model")
        show(f"step time, {name} / none (batch {batch})", ratio, GOALS.get(name, "stated"), limit)
