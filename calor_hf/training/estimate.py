"""Cost of training, measured on a few steps before it starts."""

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from calor_hf.core.peak_memory import PeakMemory
from calor_hf.heads.features import scores_of
from calor_hf.training.trainer import DefenseTrainer

WARM_UP, TIMED = 2, 6


@dataclass(frozen=True)
class StepCost:
    """Cost of an optimizer step on one device.

    Attributes:
        seconds: Time of a step with all its accumulated batches, loading included.
        image_seconds: Time to evaluate an image: a third of its part in a step.
        memory_bytes: Peak memory of training with AdamW.
        weight_bytes: Size of the weights.
    """

    seconds: float
    image_seconds: float
    memory_bytes: int
    weight_bytes: int


def measure_step(trainer: DefenseTrainer) -> StepCost:
    """Time a few steps of a copy of the model; the model and random states stay as they are.

    Loading workers, compilation and communication between processes are not taken into account.

    Args:
        trainer: Ready to train, on map-style data.
    """
    args = trainer.args
    data: Any = trainer.train_dataset
    batch_size = min(args.per_device_train_batch_size, len(data))
    times = []
    cuda = [args.device] if args.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), PeakMemory(args.device) as memory:
        model = copy.deepcopy(trainer.model).train()
        for step in range(WARM_UP + TIMED):
            begin = _now(args.device)
            batch = trainer.data_collator([data[(step * batch_size + i) % len(data)] for i in range(batch_size)])
            inputs = {name: value.to(args.device) for name, value in batch.items() if name != "labels"}
            with trainer.accelerator.autocast():
                scores = scores_of(model(**inputs))
            scores.float().sum().backward()
            model.zero_grad()
            times.append(_now(args.device) - begin)
    seconds = statistics.median(times[WARM_UP:])
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    batches = args.gradient_accumulation_steps * getattr(getattr(trainer.model, "defense", None), "step_cost", 1.0)
    # Instead of the copy, training has the two moments of AdamW in memory.
    return StepCost(seconds * batches, seconds / batch_size / 3, memory.peak + weights, weights)


def estimate_seconds(trainer: DefenseTrainer) -> float:
    """Rough duration of ``trainer.train()`` on this machine, in seconds; see :func:`measure_step`."""
    cost = measure_step(trainer)
    values = trainer.planned_values()
    epochs, steps = values[0], values[-1]
    images = 0 if trainer.eval_dataset is None else epochs * len(trainer.eval_dataset) / trainer.args.world_size
    return float(steps * cost.seconds + images * cost.image_seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
