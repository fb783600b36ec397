"""Queries of a black-box attack: images of latents through a view of the target, counted, in blocks that fit."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calor_hf.attacks.base import out_of_memory
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.core.seeding import Key, named_rng
from calor_hf.generators import Generator
from calor_hf.targets.head_modes import OwnNoise

logger = logging.getLogger(__name__)

BLOCK = 256


class Queries:
    """A view of the target behind the prior.

    The noise of a stochastic target is drawn by (seed, step, row); other queries do not change it.

    Attributes:
        view: The view, with its count of queries.
        generator_passes: Images made so far.
    """

    def __init__(self, view: Any, generator: Generator[Any] | None, seed: int) -> None:
        self.view, self._generator, self._seed = view, generator, seed
        self.generator_passes, self._block, self._begin = 0, BLOCK, time.perf_counter()

    @torch.no_grad()
    def __call__(self, latents: Tensor, labels: Tensor, rows: Sequence[Key], step: int) -> Tensor:
        """Query the view with images of ``latents``.

        Args:
            latents: (n, latent_dim).
            labels: (n,) classes, for a conditional generator.
            rows: (n) keys that tell the queries of a step apart, such as (class, restart).
            step: Step of the attack.

        Returns:
            (n, classes) probabilities or (n,) labels, by the view.
        """
        return self._in_blocks(
            len(latents), lambda part: self._answers(self._make(latents[part], labels[part]), rows[part], step)
        )

    @torch.no_grad()
    def ask(self, images: Tensor, rows: Sequence[Key], step: int) -> Tensor:
        """Query the view with ``images``; the other arguments are those of a call."""
        return self._in_blocks(len(images), lambda part: self._answers(images[part], rows[part], step))

    @torch.no_grad()
    def images(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return (n, 3, side, side) images in [0, 1], on the CPU, without a query."""
        return self._in_blocks(len(latents), lambda part: self._make(latents[part], labels[part]).cpu())

    @property
    def cost(self) -> Cost:
        """Cost so far."""
        return Cost(self.generator_passes, self.view.queries, 0, time.perf_counter() - self._begin)

    def reconstruction(self, latents: Tensor, labels: Tensor, scores: Tensor) -> Reconstruction:
        """Return the final images, of ``latents`` (n, latent_dim), with ``labels`` (n,), ``scores`` (n,) and cost."""
        images = self.images(latents, labels)
        return Reconstruction(images, labels.cpu(), latents.cpu(), scores.cpu(), self.cost)

    def _answers(self, images: Tensor, rows: Sequence[Key], step: int) -> Tensor:
        with OwnNoise(_Noise(self._seed, step, rows)) if self.view.stochastic else nullcontext():
            answers: Tensor = self.view(images)
        return answers

    def _make(self, latents: Tensor, labels: Tensor) -> Tensor:
        if self._generator is None:
            raise RuntimeError("there is no generator to make images of latents")
        images: Tensor = self._generator(latents, labels)
        self.generator_passes += len(latents)
        # A service takes images, whose values lie in [0, 1].
        return images.clamp(0, 1)

    def _in_blocks(self, count: int, work: Callable[[slice], Tensor]) -> Tensor:
        """Join the results of all blocks; if memory runs out, blocks are half as large from then on."""
        results: list[Tensor] = []
        start = 0
        while start < count:
            try:
                results.append(work(slice(start, start + self._block)))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if self._block == 1 or not out_of_memory(error):
                    raise
            else:
                start += self._block
                continue
            # Out of the except block, so that the failed block's tensors are let go of.
            logger.warning("out of memory with %d images at a time; going on with %d", self._block, self._block // 2)
            self._block //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(results)


class _Noise:
    """Standard normal numbers for the layers of one pass, by row."""

    def __init__(self, seed: int, step: int, rows: Sequence[Key]) -> None:
        self._rngs = [named_rng(seed, "attacks/queries/noise", step, *row) for row in rows]

    def __call__(self, rows: int, columns: int) -> Tensor:
        if rows != len(self._rngs):
            raise RuntimeError(f"expected a pass over {len(self._rngs)} images, got {rows}: noise is drawn by image")
        return torch.from_numpy(np.stack([rng.standard_normal(columns) for rng in self._rngs]))


def pool_of(generator: Generator[Any], count: int, seed: int, like: Tensor) -> Iterator[tuple[Tensor, list[Key]]]:
    """Yield the prior's ``count`` samples that all classes choose from, in blocks, with the keys of their queries."""
    for block in range(-(-count // BLOCK)):
        rng = named_rng(seed, "attacks/queries/pool", block)
        # Whole blocks are drawn and then cut, so that a larger pool begins with the samples of a smaller one.
        latents = generator.sample_latents(BLOCK, rng).to(like)[: count - block * BLOCK]
        yield latents, [("pool", block, place) for place in range(len(latents))]


def rows_of(classes: Sequence[int], group: int) -> list[Key]:
    """Return (class, restart) of ``group`` rows of each class."""
    return [(label, restart) for label in classes for restart in range(group)]
