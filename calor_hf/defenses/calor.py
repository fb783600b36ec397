"""CALoR: a low-rank head with Tanh, then confidence adaptation."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.core.outputs import Forward, Progress, Stage
from calor_hf.defenses.base import DEFENSES, cross_entropy, mean_over_counted
from calor_hf.defenses.low_rank import OptionalLowRankConfig, OptionalLowRankDefense

STARTS = ("as_is", "temperature")
GENTLE = {"sgd": 1e-2, "adam": 5e-5}
"""Largest default learning rate of stage ``adapt`` after ``ca_start="temperature"``, by optimizer."""


@dataclass(frozen=True, kw_only=True)
class CALoRDefenseConfig(OptionalLowRankConfig):
    """Settings of :class:`CALoR`; the defaults are the paper's."""

    ca_a: float = setting(1.0, "Strength a of confidence adaptation, > 0.")
    ca_b: float = setting(8.0, "Sharpness b, > 0; the target confidence is e^(-1/b).")
    ca_start: str = setting(
        "as_is",
        "Start of confidence adaptation: as_is, the scores that cross-entropy left (the paper), or temperature, the "
        "same divided by the temperature that gives the target confidence.",
        choices=STARTS,
    )

    def validate(self) -> None:
        """Refuse settings from which no head or loss can be built."""
        super().validate()
        check_strength(self.ca_a, self.ca_b)


@DEFENSES.register("calor")
class CALoR(OptionalLowRankDefense[CALoRDefenseConfig]):
    """Low-rank head trained with cross-entropy, then with confidence adaptation (Yu et al., 2024).

    With ``low_rank=False`` the model keeps its classifier, and confidence adaptation is the only defense.

    The defense is the low rank. Attacks on drawn faces found as much after confidence adaptation as after the division
    by a temperature that gives the same confidence, the defense ``temperature``; on real faces no difference was
    resolved (docs/results/adaptation_leakage.md). The paper's 3 to 4 points come from single runs on 100 classes, about
    one standard error.

    Source:
        Yu et al., "CALoR: Towards Comprehensive Model Inversion Defense", 2024, arXiv:2410.05814.
    """

    config_class = CALoRDefenseConfig
    stage_names = ("fit", "adapt")
    log_odds_suffice = True

    @classmethod
    def complete(cls, config: CALoRDefenseConfig, in_features: int, num_labels: int) -> CALoRDefenseConfig:
        """Refuse a target confidence that ``num_labels`` classes cannot reach; choose the rank if it is left out."""
        check_target(config.ca_b, num_labels)
        return super().complete(config, in_features, num_labels)

    @property
    def target_confidence(self) -> float:
        """Confidence e^(−1/b) at which the loss of stage ``adapt`` is smallest."""
        return target_confidence(self.config.ca_b)

    def stages(self, args: Any) -> list[Stage]:
        """``fit`` and then ``adapt``: after the schedule, or its tail from ``adapt_start_epoch`` on.

        The paper does not say when the loss is switched nor at what learning rate; the defaults (ten more epochs at
        a tenth of the first rate) are ours. After ``ca_start="temperature"`` the rate is also at most that of
        :data:`GENTLE`, and the scores are rescaled after ``adapt``, too.
        """
        if not hasattr(args, "adapt_epochs"):
            raise ValueError(
                f"CALoR trains in two stages, and {type(args).__name__} knows nothing of the second; pass "
                "CALoRTrainingArguments"
            )
        rescales = self.config.ca_start == "temperature"
        rate = args.adapt_learning_rate
        if rate is None:
            # After rescaling the scores are at the target already, and a larger rate costs accuracy.
            gentle = GENTLE["sgd" if "sgd" in args.optim else "adam"] if rescales else math.inf
            rate = min(args.learning_rate / 10, gentle)
        (fit,) = super().stages(args)
        adapt_epochs = args.adapt_epochs
        if args.adapt_start_epoch is not None:
            adapt_epochs = args.num_train_epochs - args.adapt_start_epoch
            fit = Stage("fit", epochs=args.adapt_start_epoch)
        # After adapt again: if some images stay far below the target, the loss is smallest with the others at it,
        # so with a mean below it.
        rescale_to = self.target_confidence if rescales else None
        fit = replace(fit, rescale_to=rescale_to)
        adapt = Stage(
            "adapt",
            adapt_epochs,
            args.adapt_steps,
            rate,
            only_last_layer=args.adapt_only_last_layer,
            fixed_batch_norm=args.adapt_freeze_batch_norm,
            rescale_to=rescale_to,
        )
        return [fit, adapt]

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``cross_entropy`` in stage ``fit``, ``confidence_adaptation`` (at most 0) in stage ``adapt``; in nats."""
        if progress.stage == "fit":
            return {"cross_entropy": cross_entropy(out)}
        c = self.config
        if out.log_odds is not None:
            term = mean_over_counted(_adaptation(out.log_odds, c.ca_a, c.ca_b), out.labels, out.class_weights)
        else:
            term = confidence_adaptation_loss(out.logits, out.labels, c.ca_a, c.ca_b, weight=out.class_weights)
        return {"confidence_adaptation": term}


def confidence_adaptation_loss(
    logits: Tensor,
    labels: Tensor,
    a: float = 1.0,
    b: float = 8.0,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``a · p^b · log p`` of the true class's probability p: pulls p to e^(−1/b), from below and from above.

    The loss is ≤ 0, smallest (−a / (b e)) at p = e^(−1/b), and flat near p = 0: samples of low confidence feel
    nothing, so train with cross-entropy first. Computed in float32 (float64 for float64 logits) from the log-odds
    d = logsumexp_{j≠y}(z_j − z_y), log p = −softplus(d), which keeps value and gradient accurate where p is within
    rounding of 1.

    Args:
        logits: (batch, classes), unnormalized, at least 2 classes; −inf masks a class. A sample whose true class is
            masked, or whose true class is the only one left, has loss and gradient 0.
        labels: (batch,) int64 in [0, classes), or ``ignore_index``.
        a: Strength, > 0. The paper's value is 1.
        b: Sharpness, > 0; the target confidence is e^(−1/b). The paper's value is 8 (target 0.8825).
        ignore_index: Label of samples that do not count.
        weight: (classes,) weight of each class; the mean is then weighted as in ``F.cross_entropy``.
        reduction: ``mean``, ``sum`` or ``none``.

    Returns:
        Scalar, or (batch,) for ``none``; in nats times a. The mean over no sample at all is 0.

    Raises:
        ValueError: a or b not a positive finite number, fewer than 2 classes, wrong shapes, soft labels, or an
            unknown reduction.

    Source:
        Yu et al., "CALoR: Towards Comprehensive Model Inversion Defense", 2024, arXiv:2410.05814, section 4.
        The log-odds form is ours; it equals the paper's in exact arithmetic.
    """
    _check(logits, labels, a, b, reduction)
    # In half precision 1 − p vanishes early, and a sample at p = 1 has no gradient that brings it back.
    z = logits if logits.dtype == torch.float64 else logits.float()
    counted = labels != ignore_index
    index = torch.where(counted, labels, 0).unsqueeze(1)

    true_class = torch.zeros_like(z, dtype=torch.bool).scatter_(1, index, True)
    others_masked = ((z == -math.inf) | true_class).all(dim=1, keepdim=True)
    usable = counted.unsqueeze(1) & (z.gather(1, index) != -math.inf) & ~others_masked
    z = torch.where(usable, z, 0.0)  # −inf − (−inf) would be NaN, also in the gradient

    gap = (z - z.gather(1, index)).masked_fill(true_class, -math.inf)
    loss = torch.where(usable.squeeze(1), _adaptation(gap.logsumexp(dim=1), a, b), 0.0)

    if reduction == "mean":
        return mean_over_counted(loss, torch.where(counted, labels, -1), weight)
    if weight is not None:
        loss = loss * weight.to(loss)[index.squeeze(1)]
    return loss.sum() if reduction == "sum" else loss


def _adaptation(log_odds: Tensor, a: float, b: float) -> Tensor:
    log_p = -F.softplus(log_odds)
    # p^b is not detached, as in the authors' code: with a constant p^b the loss would fall with p down to 0.
    return a * log_p * torch.exp(b * log_p)


def target_confidence(b: float) -> float:
    """Confidence e^(−1/b) at which the loss is smallest; in (0, 1)."""
    return math.exp(-1 / b)


def check_target(b: float, num_labels: int) -> None:
    """Raise ``ValueError`` unless correctly classified images can have the mean confidence e^(−1/b).

    The predicted class of N has a probability of at least 1/N, and below 1.
    """
    if not 1 / num_labels < target_confidence(b) < 1:
        below = f"{1 / math.log(num_labels):.4g}" if num_labels > 1 else "no value: one class is always at 1"
        raise ValueError(
            f"ca_b={b:g} has the target confidence e^(-1/b) = {target_confidence(b):.4g}, which correctly classified "
            f"images of {num_labels} classes cannot have: theirs lies between {1 / num_labels:.4g} and 1; pass a ca_b "
            f"above {below} (the paper's is 8)"
        )


def reachable_confidence(b: float, share: float = 0.01) -> float:
    """Confidence below which a sample feels less than ``share`` of the loss's strongest pull upwards.

    The pull is the gradient by the true class's logit, p^b · |1 + b log p| · (1 − p); it vanishes both at p = 0 and
    at the target e^(−1/b).

    Args:
        b: Sharpness of the loss, > 0.
        share: Fraction of the strongest pull, in (0, 1).

    Returns:
        Probability in (0, e^(−1/b)).
    """
    # Without p = 0, where 0 · log 0 is NaN.
    p = torch.linspace(0, target_confidence(b), 100_001, dtype=torch.float64)[1:]
    pull = p**b * (1 + b * p.log()).abs() * (1 - p)
    return float(p[int((pull >= share * pull.max()).nonzero()[0])])


def _check(logits: Tensor, labels: Tensor, a: float, b: float, reduction: str) -> None:
    check_strength(a, b)
    if labels.is_floating_point() or labels.ndim != 1:
        raise ValueError(
            f"confidence adaptation needs one whole-number label per image, got {labels.dtype} labels of shape "
            f"{tuple(labels.shape)}: p is the probability of the one true class, which soft labels (mixup, cutmix, "
            "distillation) do not have; switch them off in the adapt stage (a collator can read model.stage if stages "
            "begin with an epoch)"
        )
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(f"expected logits (batch, classes) for {len(labels)} labels, got {tuple(logits.shape)}")
    if logits.shape[1] < 2:
        raise ValueError("confidence adaptation needs at least 2 classes, got 1: its confidence is always 1")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"unknown reduction {reduction!r}; pass mean, sum or none")


def check_strength(a: float, b: float) -> None:
    """Raise ``ValueError`` unless a and b are positive finite numbers."""
    for name, value in (("a", a), ("b", b)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"confidence adaptation: {name} must be a positive finite number, got {value}")
