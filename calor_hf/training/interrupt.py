"""Ctrl-C that saves: finish the step, write a checkpoint, stop."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calor_hf.core.stop_request import StopRequest


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
