"""Named random streams: a draw depends on the seed, its name and its key, never on when or by which worker."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Key = tuple[int | str, ...]
"""Key of a draw within its name, such as (epoch, index): whole numbers from 0 to 2⁶⁴ − 1, and strings."""


def named_rng(seed: int, name: str, *key: int | str) -> np.random.Generator:
    """Random generator of one draw.

    The same arguments give the same stream in every process, worker and resumed run; different ones give independent
    streams (NumPy's ``SeedSequence`` over a Philox counter generator).

    Args:
        seed: Seed of the run, in [0, 2⁶⁴).
        name: Purpose of the draws as ``part/purpose``, such as ``attacks/starts``; each use has its own.
        key: Tells the draws of one name apart, such as (epoch, index).
    """
    # SeedSequence pads with zeros and takes 32-bit words: the length and two words per item keep keys apart.
    words = [len(key)] + [word for item in (seed, name, *key) for word in _two_words(item)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def torch_seed(seed: int, name: str, *key: int | str) -> int:
    """Seed of a torch generator, by the same rules as :func:`named_rng`."""
    return int(named_rng(seed, name, *key).integers(2**62))


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Restore the random states of torch, NumPy and Python afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _two_words(item: int | str) -> tuple[int, int]:
    if isinstance(item, str):
        item = int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "little")
    return item & 0xFFFFFFFF, item >> 32


@dataclass(frozen=True)
class StepDraws:
    """Random numbers for the samples of one batch, by (seed, name, step, position among the step's samples).

    However the samples of an optimizer step are split over processes and accumulated batches, each gets the same
    numbers.

    Attributes:
        seed: Seed of the run, >= 0.
        step: Optimizer steps done.
        first: Position of this batch's first sample among the step's samples.
        count: Samples of this batch.
        all_first: Position of the first sample that any process sees in this forward pass.
        all_count: Samples that all processes see in this forward pass.
        per_step: Samples of a full step.
    """

    seed: int
    step: int
    first: int
    count: int
    all_first: int = 0
    all_count: int = 0
    per_step: int = 0

    @classmethod
    def of_batch(
        cls, seed: int, step: int, count: int, batch_size: int, part: int = 0, parts: int = 1, process: int = 0,
        processes: int = 1,
    ) -> "StepDraws":  # fmt: skip
        """Draws of one batch of ``count`` samples, at most ``batch_size``, the samples of a full batch in one process.

        It is the batch number ``part`` of the ``parts`` accumulated ones of a step, in process number ``process``.
        """
        all_first = part * processes * batch_size
        return cls(
            seed, step, all_first + process * batch_size, count, all_first, processes * batch_size,
            parts * processes * batch_size,
        )  # fmt: skip

    def uniform(self, name: str, columns: int) -> NDArray[np.float64]:
        """(count, columns) numbers in [0, 1); another ``name`` (as in :func:`named_rng`) gives others."""
        return named_rng(self.seed, name, self.step).random((self.first + self.count, columns))[self.first :]

    def normal(self, name: str, columns: int) -> NDArray[np.float64]:
        """(count, columns) numbers of the standard normal distribution."""
        rng = named_rng(self.seed, name, self.step)
        return rng.standard_normal((self.first + self.count, columns))[self.first :]


class RowDraws:
    """Random numbers for rows that each have a stream of their own, such as (class, restart) in an attack.

    The n-th draw of a row depends on (seed, name, the row's key, n) alone, not on the other rows.

    Args:
        seed: Seed of the run, >= 0.
        name: Purpose of the numbers, as in :func:`named_rng`.
        keys: Key of each row.
        columns: Numbers of a draw.
        normal: Standard normal numbers; else uniform in [0, 1).
        like: Device and precision of the numbers.
    """

    AHEAD = 32  # draws made at once: filling 32 rows of a stream takes hardly longer than one
    MOST = 2**15  # numbers of a row made at once, unless one draw takes more; the numbers do not depend on it

    def __init__(self, seed: int, name: str, keys: Sequence[Key], columns: int, normal: bool, like: Tensor) -> None:
        self._streams = [named_rng(seed, name, *key) for key in keys]
        self._columns, self._normal, self._like = columns, normal, like
        self._ahead = max(1, min(self.AHEAD, self.MOST // max(1, columns)))
        self._block = like.new_empty(0)
        self._used = self._ahead

    def next(self) -> Tensor:
        """Return the next draw of every row, (rows, columns)."""
        if self._used == self._ahead:
            shape = (self._ahead, self._columns)
            draw = [rng.standard_normal(shape) if self._normal else rng.random(shape) for rng in self._streams]
            self._block = torch.from_numpy(np.stack(draw, axis=1)).to(self._like)
            self._used = 0
        self._used += 1
        return self._block[self._used - 1]
