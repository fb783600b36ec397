"""Batch of images that an attack works on, and the target as a white-box attack sees it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calor_hf.core.seeding import Key, RowDraws
from calor_hf.targets.base import Target
from calor_hf.targets.head_modes import OwnNoise, StraightThrough


@dataclass
class Batch:
    """Images of some classes, ``group`` of each side by side, with a stream of random numbers for every image.

    Attributes:
        labels: (rows,) int64, on the device.
        group: Rows of each class.
        seed: Seed of the run.
        like: Device and precision of the numbers.
        phase: Part of the attack, first in the key of each draw.
        notes: Results computed once per run, such as bounds, by name.
    """

    labels: Tensor
    group: int
    seed: int
    like: Tensor
    phase: Key = ("optimize",)
    notes: dict[str, Any] = field(default_factory=dict)
    _streams: dict[tuple[str, int, bool], RowDraws] = field(default_factory=dict)

    @classmethod
    def of(
        cls, classes: Sequence[int], group: int, seed: int, like: Tensor, phase: Key = ("optimize",),
        notes: dict[str, Any] | None = None,
    ) -> "Batch":  # fmt: skip
        """``group`` rows of each class."""
        labels = like.new_tensor(list(classes)).long().repeat_interleave(group)
        return cls(labels, group, seed, like, phase, {} if notes is None else notes)

    def normal(self, name: str, columns: int) -> Tensor:
        """(rows, columns) standard normal numbers by (name, class, restart); every call gives the next ones."""
        return self._draw(name, columns, normal=True)

    def uniform(self, name: str, columns: int, shared: bool = False) -> Tensor:
        """(rows, columns) numbers in [0, 1) by (name, class, restart); every call gives the next ones.

        ``shared`` gives all rows the same numbers, which do not depend on the rows of this batch.
        """
        return self._draw(name, columns, normal=False, shared=shared)

    @property
    def row_keys(self) -> list[tuple[int, int]]:
        """(class, restart) of each row."""
        return [(label, index % self.group) for index, label in enumerate(self.labels.tolist())]

    def _draw(self, name: str, columns: int, normal: bool, shared: bool = False) -> Tensor:
        key = (name, columns, shared)
        if key not in self._streams:
            rows: list[Key] = [("shared",)] if shared else list(self.row_keys)
            # One stream for each image, not for the batch: its numbers are the same in any chunk of classes.
            keys = [(*self.phase, columns, *row) for row in rows]
            self._streams[key] = RowDraws(self.seed, name, keys, columns, normal, self.like)
        return self._streams[key].next().expand(len(self.labels), columns)


class AttackedTarget(Target):
    """Target of a white-box attack: passes are counted; Tanh and noise are bypassed if the settings say so.

    Noise that stays is drawn by row.

    Attributes:
        passes: Images evaluated so far.
        gradients: Number of these with a gradient.
        logits: The latest ones, detached.
        batch: Rows that are being evaluated.
        own_head: The target's unmodified head, for access to its layers.
    """

    def __init__(self, target: Target, straight_through: bool = False, without_noise: bool = False) -> None:
        self._target, self._straight_through = target, straight_through
        self.module, self.num_classes = target.module, target.num_classes
        self.image_size, self.resizes = target.image_size, target.resizes
        self.stochastic = target.stochastic and not without_noise
        self.head: Callable[[Tensor], Tensor] = self._head
        self.own_head = target.head
        self.passes = self.gradients = 0
        self.logits: Tensor | None = None
        self.batch: Batch | None = None

    def features(self, images: Tensor) -> Tensor:
        """(batch, features) entering the head."""
        self.passes += len(images)
        self.gradients += len(images) if images.requires_grad else 0
        return self._target.features(images)

    def _head(self, features: Tensor) -> Tensor:
        with ExitStack() as modes:
            if self._straight_through:
                modes.enter_context(StraightThrough())
            if self._target.stochastic:
                modes.enter_context(OwnNoise(self._noise))
            logits = self._target.head(features)
        # Progress alone reads them; with their graph they would keep the memory of the whole pass.
        self.logits = logits.detach()
        return logits

    def _noise(self, rows: int, columns: int) -> Tensor:
        if not self.stochastic:
            # No noise leaves the mean of the code, which anyone with the weights can compute.
            return torch.zeros(rows, columns)
        if self.batch is None or rows != len(self.batch.labels):
            expected = 0 if self.batch is None else len(self.batch.labels)
            raise RuntimeError(
                f"expected a pass over the {expected} rows of the batch, got {rows}: a stochastic target's noise is "
                "drawn by row"
            )
        return self.batch.normal("attacks/head-noise", columns)
