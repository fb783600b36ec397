"""Cost of training, measured on a few steps before it starts."""

import copy
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from calor_hf.core.outputs import LOSS_INPUTS
from calor_hf.core.peak_memory import PeakMemory
from calor_hf.heads.features import scores_of
from calor_hf.training.calor_trainer import CALoRTrainer
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

    The data have to be map-style. Loading workers, compilation and communication between processes are not taken into
    account.
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
            inputs = {name: value.to(args.device) for name, value in batch.items() if name not in LOSS_INPUTS}
            with trainer.accelerator.autocast():
                scores = scores_of(model(**inputs))
            scores.float().sum().backward()
            model.zero_grad()
            times.append(_now(args.device) - begin)
    seconds = statistics.median(times[WARM_UP:])
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    batches = args.gradient_accumulation_steps * trainer.defense.step_cost
    # Instead of the copy, training has the two moments of AdamW in memory.
    return StepCost(seconds * batches, seconds / batch_size / 3, memory.peak + weights, weights)


@dataclass(frozen=True)
class Work:
    """Part of a training.

    Attributes:
        name: Name of the stage.
        steps: Optimizer steps.
        evaluated: Images evaluated on the way, by all processes together.
        epochs: Number of evaluations and checkpoints.
        at_least: Share that is done if the part ends as early as it may.
    """

    name: str
    steps: int
    evaluated: int
    epochs: int = 0
    at_least: float = 1.0


def planned_work(trainer: DefenseTrainer, undefended_epochs: float = 0.0) -> list[Work]:
    """Work of ``trainer.train()`` by stage, after ``undefended_epochs`` of another training, and of measuring."""
    trainer.planned_values()
    plan: Any = trainer.plan
    adapts, per_epoch = isinstance(trainer, CALoRTrainer), plan.steps_per_epoch or plan.total_steps
    validation = 0 if trainer.eval_dataset is None else len(trainer.eval_dataset)
    test = validation if trainer.test_dataset is None else len(trainer.test_dataset)
    samples = min(len(trainer.train_dataset), getattr(trainer.args, "confidence_samples", 2048))
    lengths = [("undefended", math.ceil(undefended_epochs * per_epoch))] * (undefended_epochs > 0)
    lengths += [(stage.name, stage.stop - stage.start) for stage in plan.stages]
    work = []
    for name, steps in lengths:
        epochs, adapt = math.ceil(steps / per_epoch), adapts and name == plan.stages[-1].name
        evaluated = epochs * validation + adapt * (epochs + 1) * (samples + validation)
        work.append(Work(name, steps, evaluated, epochs, 1 / epochs if adapt else 1.0))
    models = 1 + adapts + (undefended_epochs > 0)
    return [*work, Work("measuring", 0, models * (test + samples) + validation)]


def estimate_seconds(trainer: DefenseTrainer) -> float:
    """Rough duration of ``trainer.train()`` on this machine, in seconds; see :func:`measure_step`."""
    cost, work = measure_step(trainer), planned_work(trainer)
    evaluated = sum(part.evaluated for part in work) / trainer.args.world_size
    return float(sum(part.steps for part in work) * cost.seconds + evaluated * cost.image_seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
