"""Training with very many classes: what a loss needs of the scores, computed a chunk of classes at a time."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from calor_hf.heads.classifier_head import ClassifierHead, at_least_float32
from calor_hf.heads.low_rank_head import LowRankHead


def check_chunks(head: nn.Module, chunk: int) -> None:
    """Raise ``ValueError`` for a head whose scores cannot be computed in chunks of ``chunk`` classes."""
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"class_chunk must be a whole number of classes >= 1, got {chunk!r}")
    # An adapter or a quantized layer would be passed by: chunks read the layer's weight itself.
    if not isinstance(head, ClassifierHead | LowRankHead) or type(head.last_layer) is not nn.Linear:
        raise ValueError(
            f"class_chunk={chunk} needs one head whose last layer is an ordinary nn.Linear, got {type(head).__name__}; "
            "leave it out"
        )
    if head.last_layer.out_features < 2:
        raise ValueError("class_chunk needs at least 2 classes; leave it out")


def margins_in_chunks(
    head: ClassifierHead | LowRankHead, features: Tensor, labels: Tensor, chunk: int
) -> dict[str, Tensor]:
    """:func:`margins` of ``head(features)``, without ever holding those scores.

    Memory is (batch, chunk) besides the weights and their gradients, and not (batch, classes); the scores are computed
    a second time for the gradient. Values and gradients are exact, up to the order in which sums are rounded.

    Args:
        head: As :func:`check_chunks` allows.
        features: (batch, in_features), any floating type.
        labels: (batch,) int64; negative ones do not count, and their numbers mean nothing.
        chunk: Classes scored at a time.

    Returns:
        As :func:`margins`; float32 (float64 for a float64 head). Only ``log_odds`` has a gradient.

    Raises:
        ValueError: soft labels.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"class_chunk needs one whole-number label per image, got {labels.dtype} labels of shape "
            f"{tuple(labels.shape)}: soft labels (mixup, cutmix) read all scores; leave one of the two out"
        )
    with torch.autocast(features.device.type, enabled=False):
        code = head.code(features) if isinstance(head, LowRankHead) else at_least_float32(features)
        layer = head.last_layer
        bias: Any = layer.weight.new_zeros(len(layer.weight)) if getattr(layer, "bias", None) is None else layer.bias
        operands = code, layer.weight.to(code.dtype), bias.to(code.dtype)
        log_odds, best_rival = _chunked_margins(*operands, labels.clamp_min(0), chunk)
    return {"log_odds": log_odds, "best_rival": best_rival}


def margins(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Log-odds and margins of scores: all that losses and metrics read.

    Args:
        logits: (batch, classes).
        labels: (batch,) int64; negative ones do not count, and their numbers mean nothing.

    Returns:
        ``log_odds``, (batch,): logsumexp over j ≠ y of z_j − z_y, so that the true class y has the probability
        sigmoid(−log_odds). ``best_rival``, (batch,): the largest z_j − z_y; below 0 if the true class is first.
    """
    index = labels.clamp_min(0).unsqueeze(1)
    gap = (logits - logits.gather(1, index)).scatter(1, index, -math.inf)
    return {"log_odds": gap.logsumexp(dim=1), "best_rival": gap.amax(dim=1)}


class _ChunkedMargins(torch.autograd.Function):
    """(log_odds, best_rival) of code @ weight.T + bias, see :func:`margins`."""

    @staticmethod
    def forward(
        ctx: Any, code: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        true_score = (code * weight[labels]).sum(dim=1) + bias[labels]
        best = torch.full_like(true_score, -math.inf)
        total = torch.zeros_like(true_score)  # of e^(gap − best)
        for part, own, here in _chunks(len(weight), labels, chunk):
            gap = torch.addmm(bias[part], code, weight[part].t()).sub_(true_score.unsqueeze(1))
            _put(gap, own, here, -math.inf)
            higher = torch.maximum(best, gap.amax(dim=1))
            # A chunk may hold nothing but the true class: −inf − (−inf) would be NaN.
            pivot = torch.where(higher == -math.inf, 0.0, higher)
            total = total * (best - pivot).exp() + gap.sub_(pivot.unsqueeze(1)).exp_().sum(dim=1)
            best = higher
        ctx.save_for_backward(code, weight, bias, labels, true_score + best, total)
        ctx.chunk = chunk
        ctx.mark_non_differentiable(best)
        return best + total.log(), best

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        code, weight, bias, labels, highest, total = ctx.saved_tensors
        wants_code, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_code = torch.zeros_like(code)
        d_weight = torch.empty_like(weight) if wants_weight else None
        d_bias = torch.empty_like(bias) if wants_bias else None
        for part, own, here in _chunks(len(weight), labels, ctx.chunk):
            # d log_odds / d z_j = e^(z_j − highest) / total for j ≠ y, and −1 for y, as those add up to 1.
            share = torch.addmm(bias[part], code, weight[part].t()).sub_(highest.unsqueeze(1)).exp_()
            _put(share, own, here, -total.unsqueeze(1))
            share.mul_((gradient / total).unsqueeze(1))
            if wants_code:
                d_code.addmm_(share, weight[part])
            if d_weight is not None:
                torch.mm(share.t(), code, out=d_weight[part])
            if d_bias is not None:
                torch.sum(share, dim=0, out=d_bias[part])
        return d_code if wants_code else None, d_weight, d_bias, None, None


_chunked_margins: Any = _ChunkedMargins.apply


def _chunks(classes: int, labels: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Each chunk's classes; the column of the true class in it, (batch, 1), and whether it lies in it."""
    for start in range(0, classes, chunk):
        stop = min(start + chunk, classes)
        own = (labels - start).unsqueeze(1)
        yield slice(start, stop), own.clamp(0, stop - start - 1), (own >= 0) & (own < stop - start)


def _put(scores: Tensor, own: Tensor, here: Tensor, value: float | Tensor) -> None:
    # Without asking which rows are meant: an accelerator would have to be waited for.
    scores.scatter_(1, own, torch.where(here, value, scores.gather(1, own)))
