"""Stages on the optimizer's steps, a Trainer of them, and the learning rates: of each stage, and of the head."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, SequentialLR
from transformers import Trainer, get_scheduler

from calor_hf.core.outputs import Progress, Stage
from calor_hf.defenses.base import Defense
from calor_hf.heads.classifier_head import heads_of
from calor_hf.modeling.base_model import defense_of

IS_LAST_LAYER = "is_last_layer"  # key of the optimizer's groups that hold the last linear layer


@dataclass(frozen=True)
class PlannedStage(Stage):
    """A stage with its optimizer steps, from ``start`` to ``stop`` (exclusive)."""

    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class StagePlan:
    """Stages laid end to end on the optimizer's steps; a pure function of the arguments, so a resumed run has the same.

    Attributes:
        stages: In order; each starts where the one before stops.
        steps_per_epoch: Optimizer steps of an epoch, or None for data of unknown length.
    """

    stages: tuple[PlannedStage, ...]
    steps_per_epoch: int | None

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return self.stages[-1].stop

    def at(self, step: int) -> PlannedStage:
        """Stage that the optimizer step number ``step`` (from 0) belongs to; the last stage from its end on."""
        return next((stage for stage in self.stages if step < stage.stop), self.stages[-1])

    def progress(self, step: int) -> Progress:
        """How far the stage of ``step`` has come."""
        stage = self.at(step)
        done, total = step - stage.start, stage.stop - stage.start
        per_epoch = self.steps_per_epoch or total
        return Progress(stage.name, done, total, done / per_epoch, total / per_epoch)


def plan_stages(stages: Sequence[Stage], steps_per_epoch: int | None) -> StagePlan:
    """Lay ``stages``, at least one, on the optimizer's steps; ``steps_per_epoch`` is None for data of unknown length.

    Raises:
        ValueError: a stage is shorter than one step (the first of several may have none), or is given in epochs for
            data of unknown length.
    """
    planned: list[PlannedStage] = []
    start = 0
    for stage in stages:
        steps = stage.steps
        if steps is None:
            if steps_per_epoch is None:
                raise ValueError(
                    f"the data have no known length, so stage '{stage.name}' cannot be {stage.epochs:g} epochs long; "
                    "give steps: max_steps for the first stage, adapt_steps for the adapt stage"
                )
            steps = math.ceil(stage.epochs * steps_per_epoch)
        # A model that was trained before needs no first stage.
        if steps < 0 or (steps == 0 and (len(stages) == 1 or planned)):
            raise ValueError(f"stage '{stage.name}' must last at least one step, got {stage.epochs:g} epochs")
        planned.append(PlannedStage(**vars(stage), start=start, stop=start + steps))
        start += steps
    return StagePlan(tuple(planned), steps_per_epoch)


def schedule_of(plan: StagePlan, optimizer: torch.optim.Optimizer, args: Any, step: int = 0) -> LRScheduler:
    """The user's schedule over the stages without a rate of their own, a constant rate in the others; after ``step``.

    ``args.lr_drop_epochs``, if there are any, are the schedule. ``optimizer`` has groups as :func:`separate_head` makes
    them, which ``only_last_layer`` of a stage needs. Rates are a function of the step, so a resumed run needs no state.

    Raises:
        ValueError: drops counted in epochs, for data without a length.
    """
    parts: list[LambdaLR] = []
    drops = getattr(args, "lr_drop_epochs", None)
    if drops and plan.steps_per_epoch is None:
        raise ValueError("lr_drop_epochs counts epochs, which data of unknown length do not have; leave it out")
    stages = [stage for stage in plan.stages if stage.stop > stage.start]
    for stage in stages:
        if stage.learning_rate is not None:
            rate = stage.learning_rate / args.learning_rate
            still = [stage.only_last_layer and not group.get(IS_LAST_LAYER) for group in optimizer.param_groups]
            parts.append(LambdaLR(optimizer, [_Factor(0.0 if stands else rate) for stands in still]))
        elif drops:
            steps_of_drops = [round(epoch * (plan.steps_per_epoch or 0)) for epoch in drops]
            parts.append(LambdaLR(optimizer, _Factor(1.0, steps_of_drops)))
        else:
            steps = stage.stop - stage.start
            kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
            parts.append(get_scheduler(kind, optimizer, args.get_warmup_steps(steps), steps, options))
    schedule = SequentialLR(optimizer, [*parts], [stage.stop for stage in stages[:-1]])
    if step:
        stage = plan.at(step)
        part = parts[stages.index(stage)]
        schedule.last_epoch, part.last_epoch = step, step - stage.start
        rates = [base * factor(part.last_epoch) for base, factor in zip(part.base_lrs, part.lr_lambdas, strict=True)]
        schedule._last_lr = part._last_lr = rates
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return schedule


class _Factor:
    """Factor of the learning rate, a tenth of it after each of ``drops``; a class, so that it can be pickled."""

    def __init__(self, factor: float, drops: Sequence[int] = ()) -> None:
        self.factor, self.drops = factor, drops

    def __call__(self, step: int) -> float:
        return float(self.factor * 0.1 ** sum(step >= drop for drop in self.drops))


def separate_head(optimizer: torch.optim.Optimizer, head: nn.Module, learning_rate: float | None) -> None:
    """Give the weights of ``head`` groups of their own, its last layer another one, with ``learning_rate``, if any."""
    parts: list[Any] = heads_of(head)
    all_of_head = {id(weight) for part in parts for weight in part.parameters()}
    last = {id(weight) for part in parts for weight in part.last_layer.parameters()}
    for group in list(optimizer.param_groups):
        own = [weight for weight in group["params"] if id(weight) in all_of_head]
        group["params"] = [weight for weight in group["params"] if id(weight) not in all_of_head]
        for is_last in (False, True):
            weights = [weight for weight in own if (id(weight) in last) == is_last]
            if weights:
                rate = learning_rate or group["lr"]
                optimizer.add_param_group({**group, "params": weights, "lr": rate, IS_LAST_LAYER: is_last})


class StagedTrainer(Trainer):
    """``Trainer`` of the stages of a model's defense.

    Attributes:
        plan: The stages on the optimizer's steps, once training has begun.
    """

    plan: StagePlan | None = None
    lr_scheduler: Any

    @property
    def defense(self) -> Defense[Any]:
        """The model's defense; for an ordinary model ``none``."""
        return defense_of(self.model)

    @property
    def own_loss(self) -> bool:
        """Whether the model has a loss of its own; else it is cross-entropy."""
        return isinstance(getattr(self.model, "defense", None), Defense)

    def stages(self) -> list[Stage]:
        """Stages of the model's defense; one for an ordinary model."""
        return self.defense.stages(self.args)

    def set_initial_training_values(self, args: Any, dataloader: Any, *rest: Any) -> tuple[Any, ...]:
        """Lengthen the training that the arguments describe to all stages of the plan."""
        values = list(super().set_initial_training_values(args, dataloader, *rest))
        try:
            sized = len(dataloader) > 0
        except TypeError:
            sized = False
        self.plan = plan_stages(self.stages(), int(values[1]) if sized else None)
        total = self.plan.total_steps
        values[0] = total  # a limit: epochs that a callback ends early are made up for
        if not sized:  # one endless epoch
            values[1] = total
            if not rest:  # 4.57, which hands over one value more, takes a number here for a sized loader
                values[5] = total * args.gradient_accumulation_steps
        values[3] = values[3] * total / max(values[-1], 1)
        values[-1] = total
        return tuple(values)

    def planned_values(self) -> tuple[Any, ...]:
        """Return the values of :meth:`set_initial_training_values` for these arguments; :attr:`plan` is set."""
        rest = inspect.signature(Trainer.set_initial_training_values).parameters.keys() & {"total_train_batch_size"}
        total = [self.get_total_train_batch_size(self.args)] if rest else []
        return self.set_initial_training_values(self.args, self.get_train_dataloader(), *total)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The user's schedule over the first stage, then each later stage's own constant learning rate."""
        plan, drops = self.plan, getattr(self.args, "lr_drop_epochs", None)
        if self.lr_scheduler is not None or plan is None or (len(plan.stages) == 1 and not drops):
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = schedule_of(plan, optimizer or self.optimizer, self.args)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def progress(self, of_last_step: bool = False) -> Progress:
        """Stage of the next step, or of the last one, which an evaluation is about; and how far it has come."""
        if self.plan is None:
            return Progress.at_end(self.stages()[-1].name)
        return self.plan.progress(max(self.state.global_step - of_last_step, 0))

    def is_checkpoint_step(self, step: int) -> bool:
        """Whether to evaluate and save after ``step`` steps: at the ends of stages, and each epoch of a later one."""
        if self.plan is None or step < self.plan.stages[0].stop or len(self.plan.stages) == 1:
            return False
        stage = self.plan.at(step)
        interval = self.plan.steps_per_epoch or -(-(stage.stop - stage.start) // 10)
        return (step - stage.start) % interval == 0 or step == self.plan.total_steps

    def is_unfinished(self) -> bool:
        """Whether a run of several stages has steps left."""
        plan = self.plan
        return plan is not None and len(plan.stages) > 1 and self.state.global_step < plan.total_steps
