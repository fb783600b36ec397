"""Identity losses, the objectives of inversion attacks: distance of an image's logits from a class."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) cross-entropy in nats from (batch, classes) logits and (batch,) labels."""
    return F.cross_entropy(logits, labels, reduction="none")


def aimed_cross_entropy(logits: Tensor, labels: Tensor, aim: float) -> Tensor:
    """(batch,) squared difference of cross-entropy, in nats, and that of a label with the probability ``aim``.

    It is 0 wherever the label has the probability ``aim``, in (0, 1], as a defended model gives it to its training
    images, however the others share the rest: asking for equal shares would push an image away from a training image,
    whose rest goes to people who look alike.
    """
    return (cross_entropy(logits, labels) + math.log(aim)).square()


def negative_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) minus the logit of the label; unbounded below, so it does not saturate.

    Source:
        Nguyen et al., "Re-thinking Model Inversion Attacks Against Deep Neural Networks", CVPR 2023, arXiv:2304.01669.
    """
    return -logits.gather(1, labels[:, None]).squeeze(1)


def max_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(batch,) largest logit of another class minus that of the label; below 0 if the label has the largest.

    Source:
        Yuan et al., AAAI 2023, arXiv:2302.09814.
    """
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    return others.amax(dim=1) + negative_logit(logits, labels)


def poincare_distance(logits: Tensor, labels: Tensor, xi: float = 1e-4) -> Tensor:
    """Hyperbolic distance from L1-normalized logits to the corner of each label.

    It depends on the signs of the logits, so adding a constant to all of them changes it, unlike cross-entropy.

    ``xi`` is the gap kept between the corner and the unit ball, in (0, 1); else ``ValueError``.

    Returns:
        (batch,) distances, dimensionless, >= 0.

    Source:
        Struppek et al., "Plug & Play Attacks", ICML 2022, arXiv:2201.12179.
    """
    if not 0 < xi < 1:
        raise ValueError(f"xi must be in (0, 1), got {xi}")
    u = logits / logits.abs().sum(dim=1, keepdim=True).clamp_min(1e-12)
    v = F.one_hot(labels, logits.shape[1]).to(logits.dtype) * (1 - xi)
    # One dominant logit puts u on the sphere, a perfect match u on v: both would make the gradient infinite.
    scale = (1 - u.square().sum(dim=1)).clamp_min(1e-6) * (1 - v.square().sum(dim=1))
    delta = 2 * (u - v).square().sum(dim=1) / scale
    return torch.acosh(1 + delta.clamp_min(1e-7))


IDENTITY_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "poincare": poincare_distance,
    "max_margin": max_margin,
    "logit": negative_logit,
}
