"""Training loop of the small networks: students, decoders, heads on stored features."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

B = TypeVar("B")


def minibatches(count: int, batch_size: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return shuffled row numbers from 0 to ``count`` − 1 in parts of nearly equal size, at most ``batch_size``.

    Equal parts, since a last batch of a single row would have no batch statistics.
    """
    return torch.from_numpy(rng.permutation(count)).tensor_split(-(-count // batch_size))


def fit(
    loss: Callable[[B], Tensor], optimizer: torch.optim.Optimizer, batches: Callable[[int], Iterable[B]], epochs: int,
    *, name: str, schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    callback: Callable[[int, float], None] | None = None, first_epoch: int = 0, rate_option: str = "learning_rate",
) -> None:  # fmt: skip
    """Minimize a loss over minibatches.

    Args:
        loss: Scalar loss of a batch.
        optimizer: Holds the parameters.
        batches: Batches of an epoch, counted from 0.
        epochs: Epoch at which training ends.
        name: Name of the network in error messages.
        schedule: Learning rate schedule, stepped after each epoch.
        callback: Called after each epoch with its number and the loss of its last batch.
        first_epoch: Epoch at which training begins.
        rate_option: Name of the learning rate option, for error messages.

    Raises:
        FloatingPointError: the loss is not finite at the end of an epoch.
    """
    for epoch in range(first_epoch, epochs):
        value = torch.zeros(())
        for batch in batches(epoch):
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        if not value.isfinite():
            raise FloatingPointError(f"{name} diverged in epoch {epoch + 1}; lower {rate_option}")
        if schedule is not None:
            schedule.step()
        if callback is not None:
            callback(epoch, float(value.detach()))
