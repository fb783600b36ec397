"""Learning rates: of the stages, and of the head."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR
from transformers import get_scheduler

from calor_hf.heads.classifier_head import heads_of
from calor_hf.training.stages import StagePlan

IS_LAST_LAYER = "is_last_layer"  # key of the optimizer's groups that hold the last linear layer


def schedule_of(plan: StagePlan, optimizer: torch.optim.Optimizer, args: Any) -> LRScheduler:
    """The user's schedule over the stages without a rate of their own, a constant rate in the others.

    ``args.lr_drop_epochs``, where there are any, are the schedule.

    Args:
        plan: The stages.
        optimizer: With groups as :func:`separate_head` makes them.
        args: Training arguments.

    Raises:
        ValueError: drops counted in epochs, for data without a length.
    """
    parts: list[LRScheduler] = []
    drops = getattr(args, "lr_drop_epochs", None)
    if drops and plan.steps_per_epoch is None:
        raise ValueError("lr_drop_epochs counts epochs, which data of unknown length do not have; leave it out")
    for stage in plan.stages:
        if stage.learning_rate is None and drops:
            parts.append(LambdaLR(optimizer, _Drops([round(epoch * (plan.steps_per_epoch or 0)) for epoch in drops])))
        elif stage.learning_rate is None:
            steps = stage.stop - stage.start
            parts.append(
                get_scheduler(
                    args.lr_scheduler_type,
                    optimizer=optimizer,
                    num_warmup_steps=args.get_warmup_steps(steps),
                    num_training_steps=steps,
                    scheduler_specific_kwargs=args.lr_scheduler_kwargs,
                )
            )
        else:
            factor = stage.learning_rate / args.learning_rate
            still = [stage.only_last_layer and not group.get(IS_LAST_LAYER) for group in optimizer.param_groups]
            parts.append(LambdaLR(optimizer, [_Constant(0.0 if stands else factor) for stands in still]))
    return SequentialLR(optimizer, parts, [stage.stop for stage in plan.stages[:-1]])


def separate_head(optimizer: torch.optim.Optimizer, head: nn.Module, learning_rate: float) -> None:
    """Give the weights of ``head`` groups of their own, its last layer another one, with ``learning_rate``."""
    parts: list[Any] = heads_of(head)
    all_of_head = {id(weight) for part in parts for weight in part.parameters()}
    last = {id(weight) for part in parts for weight in part.last_layer.parameters()}
    for group in list(optimizer.param_groups):
        own = [weight for weight in group["params"] if id(weight) in all_of_head]
        group["params"] = [weight for weight in group["params"] if id(weight) not in all_of_head]
        for is_last in (False, True):
            weights = [weight for weight in own if (id(weight) in last) == is_last]
            if weights:
                optimizer.add_param_group({**group, "params": weights, "lr": learning_rate, IS_LAST_LAYER: is_last})


class _Constant:
    # A class, not a lambda: schedulers save its attributes, and a resumed run finds the same factor.
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, _: int) -> float:
        return self.factor


class _Drops:
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return float(0.1 ** sum(step >= drop for drop in self.steps))
