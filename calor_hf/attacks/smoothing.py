"""The target's gradient averaged over copies of each image, ahead of a single pass back through the generator."""

from collections.abc import Callable

import torch
from torch import Tensor

from calor_hf.attacks.batch import Batch
from calor_hf.data.random_views import RandomView

VIEW = RandomView()
SMOOTHINGS = ("none", "noise", "views")


def smoothed(
    loss: Callable[[Tensor], Tensor], images: Tensor, copy: Callable[[Tensor], Tensor], samples: int
) -> Tensor:
    """Mean loss of copies, whose gradient to the images is the mean of the copies' gradients.

    One copy of the batch is in memory at a time, and the generator is passed once, whatever the number of copies.

    Args:
        loss: (rows,) of images, its own noise drawn anew in every call.
        images: (rows, 3, height, width) with a graph behind them.
        copy: Images as one copy shows them, its numbers drawn anew in every call.
        samples: Copies.

    Returns:
        (rows,) in the unit of the loss.

    Source:
        AlignMI, NeurIPS 2025, arXiv:2509.20177, whose copies are noisy or transformed; with copies that only the
        target's own noise tells apart it is the expectation over a stochastic defense (Athalye et al., ICML 2018,
        arXiv:1802.00420).
    """
    # The graph is cut at the images, so that only the target is passed for each copy.
    leaf = images.detach().requires_grad_(True)
    gradient = torch.zeros_like(leaf)
    value = leaf.new_zeros(len(leaf))
    for _ in range(samples):
        own = loss(copy(leaf))
        gradient += torch.autograd.grad(own.sum(), leaf)[0] / samples
        value += own.detach() / samples
    # A term of value zero that has this gradient.
    slope = (images * gradient).flatten(1).sum(dim=1)
    return value + (slope - slope.detach())


def over_views(loss: Callable[[Tensor], Tensor], images: Tensor, batch: Batch, views: int) -> Tensor:
    """Sum of a loss over random views of each image, as in PLG's code.

    Args:
        loss: (rows,) of images.
        images: (rows, 3, height, width) in [0, 1].
        batch: Gives the views' numbers, by (class, restart, step).
        views: Number of views; 0 means the images themselves.

    Returns:
        (rows,) in the unit of the loss.
    """
    if views == 0:
        return loss(images)
    return torch.stack([loss(VIEW(images, batch.uniform("attacks/views", VIEW.numbers))) for _ in range(views)]).sum(
        dim=0
    )


def copier(smoothing: str, sigma: float, batch: Batch) -> Callable[[Tensor], Tensor]:
    """Return the function that :func:`smoothed` copies images with.

    Args:
        smoothing: ``none`` (as they are), ``noise`` or ``views``.
        sigma: Standard deviation of the noise, as a share of the range of values.
        batch: Gives the numbers, by (class, restart, step).
    """

    def copy(images: Tensor) -> Tensor:
        if smoothing == "noise":
            # Of the range [0, 1]; the source takes the range of a batch's values, which would couple its images.
            return images + sigma * batch.normal("attacks/smoothing/noise", images[0].numel()).view_as(images)
        if smoothing == "views":
            return VIEW(images, batch.uniform("attacks/smoothing/views", VIEW.numbers))
        return images

    return copy
