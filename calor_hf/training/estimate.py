"""How long training will take, measured before it starts."""

import copy
import statistics
import time
from typing import Any

import torch

from calor_hf.heads.features import scores_of
from calor_hf.training.trainer import DefenseTrainer

WARM_UP, TIMED = 2, 6


def estimate_seconds(trainer: DefenseTrainer) -> float:
    """Rough length of ``trainer.train()`` on this machine, from a few steps of a throw-away copy of the model.

    Neither the model nor any random state changes. Evaluation counts as a third of a step for each of its images;
    several loading workers, compilation and other processes are not taken into account.

    Args:
        trainer: Ready to train, on map-style data.

    Returns:
        Seconds.
    """
    args = trainer.args
    data: Any = trainer.train_dataset
    batch_size = min(args.per_device_train_batch_size, len(data))
    cuda = [args.device] if args.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        model = copy.deepcopy(trainer.model).train()
        times = []
        for step in range(WARM_UP + TIMED):
            begin = _now(args.device)
            batch = trainer.data_collator([data[(step * batch_size + i) % len(data)] for i in range(batch_size)])
            inputs = {name: value.to(args.device) for name, value in batch.items() if name != "labels"}
            with trainer.accelerator.autocast():
                scores = scores_of(model(**inputs))
            scores.float().sum().backward()
            model.zero_grad()
            times.append(_now(args.device) - begin)
    per_image = statistics.median(times[WARM_UP:]) / batch_size
    values = trainer.planned_values()
    epochs, steps = values[0], values[-1]
    steps = steps * getattr(getattr(trainer.model, "defense", None), "step_cost", 1.0)
    trained = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
    evaluated = epochs * len(trainer.eval_dataset) / args.world_size if trainer.eval_dataset is not None else 0
    return float(per_image * (trained + evaluated / 3))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
