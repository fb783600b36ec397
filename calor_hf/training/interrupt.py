"""Ctrl-C that saves: finish the step, write a checkpoint, stop."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request, after saving a checkpoint to resume from."""


class InterruptCallback(TrainerCallback):
    """On SIGINT or SIGTERM: save after the current step and stop; a second signal stops at once.

    Only for one process on the main thread. Several processes cannot agree on a step from a signal alone: they end
    as usual, and resume from the last regular checkpoint.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def install(self, world_size: int) -> None:
        """Take over the signals."""
        self.requested = False
        if world_size == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)

    def remove(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

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

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("%s: saving after this step; once more stops at once", signal.Signals(number).name)
