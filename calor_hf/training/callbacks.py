"""Callback of the trainer: epochs of the data, fresh optimizer states, and Ctrl-C that saves."""

from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

from calor_hf.core.stop_request import StopRequest


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request, after saving a checkpoint to resume from."""


class StageCallback(TrainerCallback):
    """Begin epochs, stages and steps, and listen to SIGINT and SIGTERM, which stop after the current step.

    Signals count only in one process on the main thread. Several processes cannot agree on a step from a signal alone:
    they end as usual, and resume from the last regular checkpoint.

    Args:
        trainer: A :class:`~calor_hf.training.trainer.DefenseTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.stop = StopRequest("saving after this step")  # the trainer listens to signals with it

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check what can learn, and show the planned number of epochs: the loop has no limit of its own."""
        self.trainer.check_learns()
        plan = self.trainer.plan
        if plan.steps_per_epoch:
            state.num_train_epochs = -(-plan.total_steps // plan.steps_per_epoch)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the collator the stage and the data the epoch, which accelerate does only in single-process runs."""
        self.trainer.show_progress()
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch") and hasattr(dataset, "__len__"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A later stage starts with a fresh optimizer state: the moments belong to another loss."""
        self.trainer.begin_step()
        plan = self.trainer.plan
        for before, stage in pairwise(plan.stages if plan else ()):
            if state.global_step == stage.start:
                self.trainer.end_stage(before)
                if not self.trainer.is_deepspeed_enabled:
                    self.trainer.optimizer.state.clear()
