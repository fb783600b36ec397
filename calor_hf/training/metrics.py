"""Utility metrics of a classifier (accuracy, likelihood, calibration, confidence), and samples to measure them on."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from calor_hf.core.calibration import calibration_error
from calor_hf.core.finite import check_rows_finite


def classification_metrics(prediction: Any) -> dict[str, float]:
    """Metrics for ``Trainer(compute_metrics=...)``; float64 from the logits.

    Args:
        prediction: ``predictions`` (samples, classes) logits, the first of a tuple counts, or what
            :func:`~calor_hf.heads.chunked_scores.margins` gives; ``label_ids`` (samples,).

    Returns:
        ``accuracy`` in [0, 1]; ``nll`` in nats; ``ece``, the expected calibration error over 15 equal bins of the
        top score, in [0, 1]; ``confidence``, the mean probability of the true class; ``confidence_correct``, the
        same over correctly classified samples (NaN if there is none).

    Raises:
        FloatingPointError: logits that are not finite.
    """
    true_log_p, top_log_p, correct = _what_counts(prediction)
    return {
        "accuracy": float(correct.mean()),
        "nll": float(-true_log_p.mean()),
        "ece": calibration_error(np.exp(top_log_p), correct),
        "confidence": float(np.exp(true_log_p).mean()),
        "confidence_correct": float(np.exp(true_log_p[correct]).mean()) if correct.any() else float("nan"),
    }


def some_samples(dataset: Any, count: int) -> Any:
    """At most ``count`` samples of ``dataset``, evenly spread and without augmentation if the data can do without.

    Args:
        dataset: Map-style data; one with ``without_augmentation()`` is asked for plain images. A stream gives its
            first samples.
        count: Number of samples, > 0.
    """
    if hasattr(dataset, "without_augmentation"):
        dataset = dataset.without_augmentation()
    if not hasattr(dataset, "__len__"):
        return list(itertools.islice(iter(dataset), count))
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    return dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices)


def true_class_confidence(prediction: Any) -> NDArray[np.float64]:
    """(samples,) probability of the true class, from ``prediction`` as in :func:`classification_metrics`."""
    return np.exp(_what_counts(prediction)[0])


def predicted_classes(prediction: Any) -> NDArray[np.int64]:
    """(samples,) classes, from ``prediction`` as in :func:`classification_metrics`; without logits, -1 if wrong."""
    found, labels = prediction.predictions, np.asarray(prediction.label_ids)
    if isinstance(found, Mapping):
        return np.where(_what_counts(prediction)[2], labels, -1)
    classes: NDArray[np.int64] = np.asarray(found[0] if isinstance(found, tuple) else found).argmax(axis=1)
    return classes


def _what_counts(prediction: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Log probability of the true class and of the first choice, and whether the two are the same."""
    found, labels = prediction.predictions, np.asarray(prediction.label_ids)
    if isinstance(found, Mapping):
        log_odds, best_rival = (_finite(found[name]) for name in ("log_odds", "best_rival"))
        true_log_p = -np.logaddexp(0, log_odds)
        return true_log_p, true_log_p + np.maximum(best_rival, 0), best_rival < 0
    logits = _finite(found[0] if isinstance(found, tuple) else found)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return log_p[np.arange(len(labels)), labels], log_p.max(axis=1), log_p.argmax(axis=1) == labels


def _finite(scores: Any) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)
    check_rows_finite(torch.from_numpy(values), "scores")
    return values
