"""Ctrl-C as a request: what is being done is finished and saved first."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SAME_REQUEST = 1.0  # seconds: `timeout`, batch systems and launchers may send a request to a process twice


def leave_interrupts_to_parent(_: int = 0) -> None:
    """For `worker_init_fn` of a DataLoader: Ctrl-C in a terminal reaches every process, and the parent decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Context manager in which SIGTERM raises ``KeyboardInterrupt``, so that commands clean up and say how to go on.

    Not in one of several processes: waiting for the others, it would not notice, and its launcher would wait for it.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """Inside a ``with`` block, the first SIGINT or SIGTERM sets :attr:`requested`; a later one stops at once.

    Signals reach the main thread alone; elsewhere, or with ``active`` false, they do what they always do.

    Args:
        promise: Work that will be done before stopping, for the message.
        active: Whether to take over the signals at all.
    """

    def __init__(self, promise: str, active: bool = True) -> None:
        self.requested = False
        self._promise, self._active = promise, active
        self._previous: dict[int, Any] = {}
        self._since = 0.0

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
            if time.monotonic() - self._since < SAME_REQUEST:
                return
            raise KeyboardInterrupt
        self.requested, self._since = True, time.monotonic()
        logger.warning("%s: %s; once more stops at once", signal.Signals(number).name, self._promise)
