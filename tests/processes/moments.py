"""Trouble at a moment: what a command does to its folder, and its optimizer steps, are counted from 1.

The moments of a run are the same each time: a file is opened for writing, renamed or deleted, a folder made or deleted,
weights are saved, an optimizer has made a step. Python's audit hooks see them all but what C++ and Rust write, so the
functions that save weights are wrapped. Nothing in ``calor_hf`` knows of this.
"""

import errno
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.optim.optimizer import register_optimizer_step_post_hook

VARIABLE = "CALOR_HF_TEST_MOMENTS"  # JSON: the arguments of Moments
COUNTER = struct.Struct("qq")  # moments, optimizer steps
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
DAY = 86400.0
GRACE = 1.0  # seconds


class Moments:
    """Counts the moments of this process, and of all others that share ``counter``, and makes one of them bad.

    Args:
        counter: File with the two numbers.
        root: Folder in which files count.
        at: The moment; 0: none.
        torn: Cut what is being written there in half: an opened file is empty, weights are half there.
        number: Signal that is sent at the moment.
        receiver: ``all`` processes of the command, as if the machine were switched off, the ``first``, which the
            user started, or ``me``.
        refused: From the moment on nothing can be written, with this error: the disk is full, say.
        clock: Seconds by which the clock is put on (or, < 0, back) at the moment.
    """

    def __init__(
        self,
        counter: str,
        root: str,
        at: int = 0,
        torn: bool = False,
        number: int = 0,
        receiver: str = "first",
        refused: int = 0,
        clock: float = 0.0,
    ) -> None:
        with open(counter, "r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), COUNTER.size)
        self.root = os.path.realpath(root) + os.sep
        self.at, self.torn, self.number, self.receiver, self.refused, self.clock = (
            at,
            torn,
            number,
            receiver,
            refused,
            clock,
        )
        self._offset = 0.0
        self._died = Path(counter).with_suffix(".died")
        self._inside = False

    @classmethod
    def begin(cls) -> None:
        """Watch this process as the environment says."""
        if VARIABLE in os.environ:
            cls(**json.loads(os.environ[VARIABLE])).callback()

    def callback(self) -> None:
        register_optimizer_step_post_hook(self._after_step)
        _replace_everywhere(safetensors.torch.save_file, self._saving(safetensors.torch.save_file))
        _replace_everywhere(torch.save, self._saving(torch.save))
        if self.clock:
            now = time.time
            _replace_everywhere(now, lambda: now() + self._offset)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._inside:
            return
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opens or event in CHANGES) and self._counts(arguments[0]):
            self._inside = True
            try:
                here = self._moment()
                if here and self.torn and opens and not os.path.isdir(arguments[0]):
                    os.close(os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
                self._act(here)
                if self.refused and self._reached and (opens or event == "os.mkdir"):
                    self._refuse(event, arguments)
            finally:
                self._inside = False

    def _after_step(self, *_: Any) -> None:
        self._add(1)
        self._act(self._moment())

    def _saving(self, save: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(content: Any, file: Any, *arguments: Any, **options: Any) -> Any:
            if not self._counts(file):
                return save(content, file, *arguments, **options)
            self._inside = True
            try:
                here = self._moment()
                if self.refused and self._reached:
                    raise refusal(save.__module__, self.refused)
                if not (here and self.torn):
                    self._act(here)
                done = save(content, file, *arguments, **options)
                if here and self.torn:
                    os.truncate(file, os.path.getsize(file) // 2)
                    self._act(here)
                return done
            finally:
                self._inside = False

        return wrapped

    def _refuse(self, event: str, arguments: tuple[Any, ...]) -> None:
        reason = self.refused, os.strerror(self.refused)
        if event == "os.mkdir" or self.refused != errno.ENOSPC or os.path.isdir(arguments[0]):
            raise OSError(*reason, arguments[0])
        os.close(os.open(arguments[0], arguments[2] & ~os.O_EXCL, 0o666))  # opening goes well,
        raise OSError(*reason)  # writing does not, and names no file

    def _counts(self, path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(self.root)

    @property
    def _reached(self) -> bool:
        return bool(COUNTER.unpack(self._numbers[:])[0] >= self.at)

    def _add(self, place: int) -> int:
        numbers = list(COUNTER.unpack(self._numbers[:]))
        numbers[place] += 1
        self._numbers[:] = COUNTER.pack(*numbers)
        return int(numbers[place])

    def _moment(self) -> bool:
        return self._add(0) == self.at

    def _act(self, here: bool) -> None:
        if here and self.clock:
            self._put_clock()
        if not (here and self.number):
            return
        self._inside = True
        self._died.touch()
        self._inside = False
        if self.receiver == "all":
            os.killpg(os.getpgrp(), self.number)
        elif self.receiver == "me" or os.getpid() == os.getpgrp():
            os.kill(os.getpid(), self.number)
        else:
            os.kill(os.getpgrp(), self.number)
            time.sleep(GRACE)  # for the system to tell others

    def _put_clock(self) -> None:
        self._offset = self.clock
        for path in Path(self.root).rglob("*"):  # to a clock put back, what is there is from the future
            seconds = path.stat().st_mtime - self.clock
            os.utime(path, (seconds, seconds))


def refusal(module: str, number: int) -> Exception:
    """Output of the libraries that do not write in Python, as test_what_libraries_say sees it."""
    if module == "safetensors.torch":
        return SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
    if number == errno.ENOSPC:
        return RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    return RuntimeError(
        f"[enforce fail at inline_container.cc:747] . open file failed with strerror: {os.strerror(number)}"
    )


def _replace_everywhere(old: Any, new: Any) -> None:
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old and module.__name__ != __name__:
                setattr(module, name, new)
