"""Utility metrics of a classifier: accuracy, likelihood, calibration, confidence."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset
from transformers import EvalPrediction

from calor_hf.core.calibration import calibration_error, temperature_for
from calor_hf.core.finite import check_rows_finite


def classification_metrics(prediction: Any) -> dict[str, float]:
    """Metrics for ``Trainer(compute_metrics=...)``; float64 from the logits.

    Args:
        prediction: ``predictions`` (samples, classes) logits, the first of a tuple counts, or what
            :func:`~calor_hf.heads.chunked_scores.margins` gives; ``label_ids`` (samples,), those below 0 do not count.

    Returns:
        ``accuracy`` in [0, 1]; ``nll`` in nats; ``ece``, the expected calibration error over 15 equal bins of the
        top score, in [0, 1]; ``confidence``, the mean probability of the true class; ``confidence_correct``, the
        same over correctly classified samples. NaN if there are no such samples.

    Raises:
        FloatingPointError: logits that are not finite.
    """
    true_log_p, top_log_p, correct = _counted(prediction)

    def mean(values: NDArray[Any]) -> float:
        return float(values.mean()) if len(values) else float("nan")

    return {
        "accuracy": mean(correct),
        "nll": mean(-true_log_p),
        "ece": calibration_error(np.exp(top_log_p), correct) if len(correct) else float("nan"),
        "confidence": mean(np.exp(true_log_p)),
        "confidence_correct": mean(np.exp(true_log_p[correct])),
    }


def fitted_temperature(prediction: Any, confidence: float) -> dict[str, float]:
    """Temperature that gives correctly classified samples a mean ``confidence``, and the confidence before and after.

    Args:
        prediction: As in :func:`classification_metrics`, with logits.
        confidence: As in :func:`~calor_hf.core.calibration.temperature_for`, whose errors it raises.

    Returns:
        ``temperature``, ``confidence_before``, ``confidence_after`` and ``rescaled_accuracy`` (the same before).
    """
    labels, found = np.asarray(prediction.label_ids), prediction.predictions
    logits = np.asarray(found[0] if isinstance(found, tuple) else found, dtype=np.float64)[labels >= 0]
    temperature = temperature_for(logits, labels[labels >= 0], confidence)
    rescaled = EvalPrediction(predictions=logits / temperature, label_ids=labels[labels >= 0])
    before, after = classification_metrics(prediction), classification_metrics(rescaled)
    return {
        "temperature": temperature,
        "confidence_before": before["confidence_correct"],
        "confidence_after": after["confidence_correct"],
        "rescaled_accuracy": after["accuracy"],
    }


def some_samples(dataset: Any, count: int) -> Any:
    """At most ``count`` samples of ``dataset``, evenly spread (a stream gives its first).

    They are not augmented if the data have ``without_augmentation()``.
    """
    if hasattr(dataset, "without_augmentation"):
        dataset = dataset.without_augmentation()
    if not hasattr(dataset, "__len__"):
        return list(itertools.islice(iter(dataset), count))
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    return dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices)


def true_class_confidence(prediction: Any) -> NDArray[np.float64]:
    """(samples that count,) probability of the true class, ``prediction`` as in :func:`classification_metrics`."""
    return np.exp(_counted(prediction)[0])


def is_correct(prediction: Any) -> NDArray[np.bool_]:
    """(samples that count,) whether the predicted class is the true one, ``prediction`` as above."""
    return _counted(prediction)[2]


def predicted_classes(prediction: Any) -> NDArray[np.int64]:
    """(samples that count,) classes of a ``prediction`` as in :func:`classification_metrics`.

    Without logits, -1 if wrong.
    """
    found, labels = prediction.predictions, np.asarray(prediction.label_ids)
    if isinstance(found, Mapping):
        return np.where(_counted(prediction)[2], labels[labels >= 0], -1)
    classes: NDArray[np.int64] = np.asarray(found[0] if isinstance(found, tuple) else found).argmax(axis=1)
    return classes[labels >= 0]


def _counted(prediction: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Log probability of the true class and of the first choice, and whether the two are the same."""
    found, labels = prediction.predictions, np.asarray(prediction.label_ids)
    counted = labels >= 0
    labels = labels[counted]
    if isinstance(found, Mapping):
        log_odds, best_rival = (_finite(found[name])[counted] for name in ("log_odds", "best_rival"))
        true_log_p = -np.logaddexp(0, log_odds)
        return true_log_p, true_log_p + np.maximum(best_rival, 0), best_rival < 0
    logits = _finite(found[0] if isinstance(found, tuple) else found)[counted]
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return log_p[np.arange(len(labels)), labels], log_p.max(axis=1), log_p.argmax(axis=1) == labels


def _finite(scores: Any) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)
    check_rows_finite(torch.from_numpy(values), "scores")
    return values
