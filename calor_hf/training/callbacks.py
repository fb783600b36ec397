"""Callbacks of the trainer: stages (evaluation, checkpoints, optimizer state), and Ctrl-C that saves."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calor_hf.core.stop_request import StopRequest


class StageCallback(TrainerCallback):
    """Keep a trainer to its stage plan.

    Args:
        trainer: A :class:`~calor_hf.training.trainer.DefenseTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._evaluated_at = self._saved_at = -1

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the data which epoch it is: accelerate does so only in single-process runs."""
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch") and hasattr(dataset, "__len__"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A later stage starts with a fresh optimizer state: the moments belong to another loss."""
        self.trainer.begin_step()
        plan = self.trainer.plan
        starts = [stage.start for stage in plan.stages[1:]] if plan else []
        if state.global_step in starts and not self.trainer.is_deepspeed_enabled:
            self.trainer.optimizer.state.clear()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate and save at the end of a stage, and regularly in the later ones; save nothing after a NaN."""
        if self.trainer.is_checkpoint_step(state.global_step):
            control.should_log = control.should_evaluate = control.should_save = True
        matters = control.should_evaluate or control.should_save or control.should_training_stop
        if matters or control.should_log or args.device.type == "cpu":
            # On an accelerator this waits for it, so not at every step.
            self.trainer.check_finite(weights=matters)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the step."""
        self._evaluated_at = state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the step."""
        self._saved_at = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do nothing twice if a stage and an epoch end together, and nothing after a NaN."""
        if self._evaluated_at == state.global_step:
            control.should_evaluate = False
        if self._saved_at == state.global_step:
            control.should_save = False
        if control.should_evaluate or control.should_save:
            self.trainer.check_finite(weights=True)


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request, after saving a checkpoint to resume from."""


class InterruptCallback(TrainerCallback):
    """On SIGINT or SIGTERM: save after the current step and stop; a second signal stops at once.

    Only for one process on the main thread. Several processes cannot agree on a step from a signal alone: they end
    as usual, and resume from the last regular checkpoint.
    """

    def __init__(self) -> None:
        self._stop = StopRequest("saving after this step")

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self._stop.requested

    def install(self, world_size: int) -> None:
        """Take over the signals."""
        self._stop = StopRequest("saving after this step", active=world_size == 1)
        self._stop.__enter__()

    def remove(self) -> None:
        """Give the signals back."""
        self._stop.__exit__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, if asked to."""
        if self.requested:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The epoch did not end: no evaluation and no second checkpoint."""
        if self.requested:
            control.should_log = control.should_evaluate = control.should_save = False
