"""Label smoothing with a negative factor."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.base import DEFENSES, Defense, Strength

SCHEDULES = ("official", "constant")


@dataclass(frozen=True, kw_only=True)
class LabelSmoothingConfig(MethodConfig):
    """Settings of :class:`LabelSmoothing`."""

    alpha: float = setting(-0.05, "Share of the uniform label, < 1. Below 0 it defends, above it helps attacks.", lt=1)
    schedule: str = setting(
        "official",
        "official: off for half of the epochs, then a ramp, then full; constant: from the start.",
        choices=SCHEDULES,
    )


@DEFENSES.register("label_smoothing")
class LabelSmoothing(Defense[LabelSmoothingConfig]):
    """Cross-entropy against labels mixed with the uniform label by ``alpha`` < 0 (Struppek et al., ICLR 2024).

    The loss has no lower bound: scores grow during all of training, calibration suffers, and the loss does not indicate
    accuracy. Keep gradient clipping on (``max_grad_norm``).

    Source:
        Struppek, Hintersdorf, Kersting, "Be Careful What You Smooth For", ICLR 2024, arXiv:2310.06549.
    """

    config_class = LabelSmoothingConfig

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """``alpha``, the paper's weakest to ten times its strongest."""
        return Strength("alpha", -0.005, -0.5, log=True)

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``hard`` and ``smooth`` terms in nats; their sum is the cross-entropy against the mixed labels."""
        alpha = self.config.alpha
        if alpha < 0:
            # The official code has a schedule for negative factors alone; a positive one is constant.
            alpha *= ramp(self.config.schedule, progress)
        hard, uniform = cross_entropies(out.logits, out.labels, out.class_weights)
        return {"hard": (1 - alpha) * hard, "smooth": alpha * uniform}


def cross_entropies(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy against the labels and against the uniform label, each a scalar in nats.

    Args:
        logits: (batch, classes).
        labels: (batch,) int64, −100 for ignored samples; or (batch, classes) probabilities.
        weight: (classes,) weights, or None.
    """
    # (1 − α) of the first and α of the second are F.cross_entropy(..., label_smoothing=α), which refuses α < 0.
    # In float32, as a negative factor lets logits grow without limit.
    logits = logits.float() if logits.dtype != torch.float64 else logits
    weight = None if weight is None else weight.to(logits.dtype)
    log_p = F.log_softmax(logits, dim=-1)
    hard = F.nll_loss(log_p, labels, weight) if labels.ndim == 1 else F.cross_entropy(logits, labels, weight)
    weighted = log_p if weight is None else log_p * weight
    each = -weighted.mean(dim=-1)
    if labels.ndim == 2:
        return hard, each.mean()
    counted = labels != -100
    # F.cross_entropy divides its smoothed part by the weights of the true classes, too.
    share = counted.to(log_p.dtype) if weight is None else weight[labels.clamp_min(0)] * counted
    return hard, torch.where(counted, each, 0.0).sum() / share.sum().clamp_min(torch.finfo(log_p.dtype).tiny)


def ramp(schedule: str, progress: Progress) -> float:
    """Share of a negative factor in force, in [0, 1].

    With E epochs and the epoch e from 0: 0 for e < E/2, (e + 1 − E/2) / (E − E/2) for e < 3E/4, then 1. At E = 100
    that is the official code, whose 50 and 75 do not follow E. If the length of an epoch is unknown, or there is only
    one, steps are counted instead.
    """
    if schedule == "constant":
        return 1.0
    by_steps = progress.total_epochs <= 1
    # An epoch number that is a sum of steps may lie just below the whole number.
    done = progress.step if by_steps else math.floor(progress.epoch + 1e-9)
    total = progress.total_steps if by_steps else progress.total_epochs
    if done < 0.5 * total:
        return 0.0
    # The official ramp reaches only a half, and then jumps to 1.
    return min(1.0, (done + 1 - 0.5 * total) / (0.5 * total)) if done < 0.75 * total else 1.0
