"""Callback of the trainer: stages (evaluation, checkpoints, optimizer state), and Ctrl-C that saves."""

from typing import Any

from transformers import TrainerCallback

from calor_hf.core.stop_request import StopRequest


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request, after saving a checkpoint to resume from."""


class StageCallback(TrainerCallback):
    """Keep a trainer to its stage plan; on SIGINT or SIGTERM save after the current step and stop.

    Signals count only in one process on the main thread. Several processes cannot agree on a step from a signal alone:
    they end as usual, and resume from the last regular checkpoint.

    Args:
        trainer: A :class:`~calor_hf.training.trainer.DefenseTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.stop = StopRequest("saving after this step")  # the trainer listens to signals with it
        self._evaluated_at = self._saved_at = -1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the data which epoch it is: accelerate does so only in single-process runs."""
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch") and hasattr(dataset, "__len__"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A later stage starts with a fresh optimizer state: the moments belong to another loss."""
        self.trainer.begin_step()
        plan = self.trainer.plan
        starts = [stage.start for stage in plan.stages[1:]] if plan else []
        if state.global_step in starts and not self.trainer.is_deepspeed_enabled:
            self.trainer.optimizer.state.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate and save at the end of a stage, and regularly in the later ones; save nothing after a NaN."""
        if self.stop.requested:
            control.should_save = control.should_training_stop = True
        if self.trainer.is_checkpoint_step(state.global_step):
            control.should_log = control.should_evaluate = control.should_save = True
        matters = control.should_evaluate or control.should_save or control.should_training_stop
        if matters or control.should_log or args.device.type == "cpu":
            # On an accelerator this waits for it, so not at every step.
            self.trainer.check_finite(weights=matters)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the step."""
        self._evaluated_at = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the step."""
        self._saved_at = state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing twice if a stage and an epoch end together, and nothing after a signal or a NaN."""
        if self.stop.requested:  # the epoch did not end
            control.should_log = control.should_evaluate = control.should_save = False
        control.should_evaluate &= self._evaluated_at != state.global_step
        control.should_save &= self._saved_at != state.global_step
        if control.should_evaluate or control.should_save:
            self.trainer.check_finite(weights=True)
