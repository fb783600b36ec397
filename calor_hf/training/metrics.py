"""Utility metrics of a classifier: accuracy, likelihood, calibration, confidence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calor_hf.core.calibration import calibration_error


def classification_metrics(prediction: Any) -> dict[str, float]:
    """Metrics for ``Trainer(compute_metrics=...)``; float64 from the logits.

    Args:
        prediction: ``predictions`` (samples, classes) logits, the first of a tuple counts; ``label_ids`` (samples,).

    Returns:
        ``accuracy`` in [0, 1]; ``nll`` in nats; ``ece``, the expected calibration error over 15 equal bins of the
        top score, in [0, 1]; ``confidence``, the mean probability of the true class; ``confidence_correct``, the
        same over correctly classified samples (NaN if there is none).
    """
    log_p, labels = _log_probabilities(prediction)
    true_log_p = log_p[np.arange(len(labels)), labels]
    correct = log_p.argmax(axis=1) == labels
    return {
        "accuracy": float(correct.mean()),
        "nll": float(-true_log_p.mean()),
        "ece": calibration_error(np.exp(log_p.max(axis=1)), correct),
        "confidence": float(np.exp(true_log_p).mean()),
        "confidence_correct": float(np.exp(true_log_p[correct]).mean()) if correct.any() else float("nan"),
    }


def true_class_confidence(prediction: Any) -> NDArray[np.float64]:
    """(samples,) probability of the true class, from ``prediction`` as in :func:`classification_metrics`."""
    log_p, labels = _log_probabilities(prediction)
    return np.exp(log_p[np.arange(len(labels)), labels])


def _log_probabilities(prediction: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    logits = prediction.predictions
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits, dtype=np.float64)
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return log_p, np.asarray(prediction.label_ids)
