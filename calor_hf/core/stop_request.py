"""Ctrl-C as a request: what is being done is finished and saved first."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


def leave_interrupts_to_parent(_: int = 0) -> None:
    """For `worker_init_fn` of a DataLoader: Ctrl-C in a terminal reaches every process, and the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class StopRequest:
    """Inside a ``with`` block, the first SIGINT or SIGTERM sets :attr:`requested`; the second stops at once.

    Signals reach the main thread alone; elsewhere, or with ``active`` false, they do what they always do.

    Args:
        promise: What will be done before stopping, for the message.
        active: Whether to take over the signals at all.
    """

    def __init__(self, promise: str, active: bool = True) -> None:
        self.requested = False
        self._promise, self._active = promise, active
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self.requested = False
        if self._active and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("%s: %s; once more stops at once", signal.Signals(number).name, self._promise)
