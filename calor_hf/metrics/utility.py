"""Utility of a model: accuracy, likelihood, calibration, and the effect of a threshold on its scores.

Not a registered metric, since it needs held-out images instead of reconstructions.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.calibration import CALIBRATION_BINS, calibration_error
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import Measure, mean_over_images

THRESHOLDS = (0.5, 0.8, 0.85, 0.9, 0.95, 0.99)


def training_fit(logits: Tensor, labels: Tensor) -> list[Measure]:
    """``train_accuracy`` and ``train_confidence``: fit of the images that a model claims to have learned.

    Args:
        logits: (n, classes) of training images.
        labels: (n,) int64.

    Raises:
        ValueError: wrong shapes, labels out of range, or numbers that are not finite.
    """
    right = topk_correct(logits, labels)
    true = logits.double().softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    note = "on training images of the attacked people"
    return [
        mean_over_images(name, "share", "neither", values, labels, note, slots=False)
        for name, values in (("train_accuracy", right), ("train_confidence", true))
    ]


def utility(logits: Tensor, labels: Tensor) -> list[Measure]:
    """Utility on held-out images, with intervals over identities.

    A defense shifts the scores (CALoR to e^(−1/b) and below), so a threshold tuned on another model accepts another
    share: ``accepted@t`` is the share of images whose highest score exceeds t, ``wrong@t`` the share of those that are
    misclassified.

    Args:
        logits: (n, classes) of held-out images.
        labels: (n,) int64.

    Returns:
        ``accuracy``, ``nll`` in nats, ``calibration_error`` (15 bins; no interval), ``confidence`` (mean probability of
        the true class), and for each threshold ``accepted@t`` and ``wrong@t``; the second is NaN if nothing is
        accepted.

    Raises:
        ValueError: wrong shapes, labels out of range, or numbers that are not finite.
    """
    right = topk_correct(logits, labels)
    # In float64, as the probability of a sure model rounds to 1 in float32, where its loss and thresholds see nothing.
    log_p = F.log_softmax(logits.double(), dim=1)
    true_log_p = log_p.gather(1, labels[:, None]).squeeze(1)
    top = log_p.exp().amax(dim=1)

    def mean(name: str, unit: str, values: Tensor, note: str = "") -> Measure:
        return mean_over_images(name, unit, "neither", values, labels, note, slots=False)

    found = [mean("accuracy", "share", right), mean("nll", "nats", -true_log_p)]
    error = calibration_error(top.numpy(), (log_p.argmax(dim=1) == labels).numpy())
    note = f"over {CALIBRATION_BINS} bins of the highest score"
    found.append(Measure("calibration_error", error, "share", "neither", len(labels), len(labels.unique()), note=note))
    found.append(mean("confidence", "share", true_log_p.exp(), "mean probability of the true person"))
    for threshold in THRESHOLDS:
        taken = top > threshold
        found.append(mean(f"accepted@{threshold}", "share", taken.double(), f"highest score above {threshold}"))
        wrong = Measure(f"wrong@{threshold}", math.nan, "share", "neither", 0, 0, note="no score is that high")
        if taken.any():
            note = "of those, taken for someone else"
            wrong = mean_over_images(wrong.name, "share", "neither", 1 - right[taken], labels[taken], note, slots=False)
        found.append(wrong)
    return found
