"""The stage plan: which stage a step of the optimizer belongs to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from calor_hf.core.outputs import Progress, Stage


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its optimizer steps, from ``start`` to ``stop`` (exclusive)."""

    name: str
    start: int
    stop: int
    learning_rate: float | None
    only_last_layer: bool = False
    fixed_batch_norm: bool = False


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
    """Lay ``stages`` on the optimizer's steps.

    Args:
        stages: At least one. ``steps`` counts where given, otherwise ``epochs``.
        steps_per_epoch: Optimizer steps of an epoch, or None for data of unknown length.

    Raises:
        ValueError: a stage is shorter than one step, or is given in epochs for data of unknown length.
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
        if steps < 1:
            raise ValueError(f"stage '{stage.name}' must last at least one step, got {stage.epochs:g} epochs")
        planned.append(
            PlannedStage(
                stage.name, start, start + steps, stage.learning_rate, stage.only_last_layer, stage.fixed_batch_norm
            )
        )
        start += steps
    return StagePlan(tuple(planned), steps_per_epoch)
