"""Start a low-rank head from a trained classifier."""

import logging
import math

import torch
from torch import Tensor, nn

from calor_hf.heads.low_rank_head import LowRankHead

logger = logging.getLogger(__name__)

STDS = 4.0
"""Standard deviations of a coordinate that Tanh still passes nearly straight (see :func:`svd_init`)."""

_LINEAR_AT_ZERO = ("tanh", "identity")


@torch.no_grad()
def svd_init(head: LowRankHead, classifier: nn.Linear | nn.Conv2d, features: Tensor | None = None) -> None:
    """Set ``head`` to the best rank-r copy of ``classifier``, with Tanh in its straight part.

    W ≈ U Σ Vᵀ, truncated to rank r. With center μ and scales s, one for each of the r coordinates::

        down(f) = Vᵀ (f − μ) / s        up(h) = U Σ (s · h) + W μ + c

    For |Vᵀ(f − μ)| ≪ s this is the old map f ↦ W f + c, exact at μ. s is ``STDS`` standard deviations of the
    coordinate over the calibration features; a larger s is closer to the old scores but leaves Tanh nearly linear,
    a smaller one bends them.

    Args:
        head: Head to set, in place; activation ``tanh`` or ``identity``, no input norm.
        classifier: Trained linear layer (or 1x1 convolution) with weight W (N, m) and bias c.
        features: (samples, m) inputs of ``classifier`` on calibration images, at least 2 samples. None means μ = 0 and
            one scale for all coordinates, guessed from the norms of W's rows, with a warning.

    Raises:
        ValueError: sizes do not match, too few samples, or a head that is not straight around zero.
    """
    weight = classifier.weight.flatten(1).double()
    _check(head, weight, features)
    bias: Tensor | None = classifier.bias
    offset = weight.new_zeros(weight.shape[0]) if bias is None else bias.double()
    left, singular, right = torch.linalg.svd(weight, full_matrices=False)
    rank = head.down.out_features
    biased = getattr(head.down, "bias", None) is not None
    left, singular, right = left[:, :rank], singular[:rank], right[:rank]

    if features is None:
        # A classifier that gives its class p = 0.99 among N has a logit lead of log(99 (N - 1)) over the others, and a
        # row of norm |w| turns a feature of size x along it into |w| x. So features reach about lead / |w|.
        lead = math.log(99 * max(1, weight.shape[0] - 1))
        center = weight.new_zeros(weight.shape[1])
        scale = weight.new_full((rank,), float(lead / weight.norm(dim=1).median().clamp_min(1e-12)))
        logger.warning(
            "head_init='svd' without calibration images: the scale of Tanh is guessed from the classifier's weight "
            "norms (%.3g). Pass calibration=<some training images> for scales that are measured.",
            scale[0].item(),
        )
    else:
        features = features.double().to(weight.device)
        # Without a bias no shift can be expressed, so the head is straight around 0.
        center = features.mean(0) if biased else weight.new_zeros(weight.shape[1])
        std = ((features - center) @ right.T).pow(2).mean(0).sqrt()
        # A coordinate that does not vary on these images gets a small scale, not a division by zero.
        scale = STDS * std.clamp_min(1e-6 * std.max().clamp_min(1e-12))

    head.down.weight.copy_(right / scale[:, None])
    head.up.weight.copy_(left * (singular * scale))
    if biased:
        head.down.bias.copy_(-(right @ center) / scale)
        head.up.bias.copy_(weight @ center + offset)
    elif offset.abs().max() > 0:
        logger.warning("head_init='svd' with bias=False: the trained classifier's bias is dropped")


def _check(head: LowRankHead, weight: Tensor, features: Tensor | None) -> None:
    if tuple(weight.shape) != (head.up.out_features, head.down.in_features):
        raise ValueError(
            f"head_init='svd' copies the trained classifier ({weight.shape[1]} features, "
            f"{weight.shape[0]} classes), but the new head has {head.down.in_features} features and "
            f"{head.up.out_features} classes; keep num_labels, or pass head_init='random'"
        )
    check_straight(head.activation, normed=head.norm is not None)
    if features is not None and (features.ndim != 2 or len(features) < 2):
        raise ValueError(f"calibration needs at least 2 images, got features of shape {tuple(features.shape)}")


def check_straight(activation: str, normed: bool) -> None:
    """Raise ``ValueError`` for a head that is not straight around zero, by its activation or a norm in front."""
    if activation not in _LINEAR_AT_ZERO or normed:
        raise ValueError(
            f"head_init='svd' needs an activation that is straight around zero ({', '.join(_LINEAR_AT_ZERO)}) and "
            f"no input_norm, got activation={activation!r}{' with an input norm' if normed else ''}; "
            "pass head_init='random'"
        )
