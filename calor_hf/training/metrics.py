"""Utility metrics of a classifier (accuracy, likelihood, calibration, confidence), and the record of its training."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset
from transformers import PreTrainedModel

from calor_hf._version import __version__
from calor_hf.core.calibration import calibration_error
from calor_hf.core.files import weights_digest, write_json
from calor_hf.core.finite import check_rows_finite
from calor_hf.core.peak_memory import peak_memory_bytes
from calor_hf.heads.rank_audit import rank_audit
from calor_hf.modeling.base_model import defense_of
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.training.stages import StagePlan

RECORD = "metrics.json"


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


@dataclass(frozen=True)
class Measured:
    """Metrics of a trained model.

    Attributes:
        split: Split that they were measured on: ``test`` or ``validation``.
        metrics: By the name of the model they belong to, in the order of training: the result is the last.
        labels: Class of each image of the split.
        predictions: Class that the result predicts for it.
    """

    split: str
    metrics: dict[str, dict[str, float]]
    labels: list[int]
    predictions: list[int]


def training_record(
    model: PreTrainedModel, plan: StagePlan | None, done: int, measured: Measured, seed: int, train_seconds: float,
    **about: Any,
) -> dict[str, Any]:  # fmt: skip
    """Numbers of a training run, as ``metrics.json`` holds them next to a saved model.

    Args:
        model: The result.
        plan: The stages.
        done: Optimizer steps that were done; a rule may end the last stage early.
        measured: Its metrics.
        seed: Seed of the run.
        train_seconds: Time that training took in this session.
        about: Entries that only the caller knows: ``dataset`` (its name, or ""), ``drawn`` (whether this library drew
            the images), ``dataset_id`` and ``base_model`` (Hub ids or None), ``backdoor``, ``wall_seconds``.
    """
    config = model.config
    known = isinstance(config, DefendedConfig)
    return {
        "version": __version__,
        "defense": config.defense if known else "none",
        "settings": dict(config.defense_settings) if known else {},
        "head": dataclasses.asdict(rank_audit(model)),
        "peak_memory_bytes": peak_memory_bytes(),
        "dataset": "",
        "drawn": False,
        "dataset_id": None,
        "base_model": None,
        "backdoor": None,
        "seed": seed,
        "train_seconds": train_seconds,
        "split": measured.split,
        "images": len(measured.labels),
        "measured": measured.metrics,
        "target_confidence": defense_of(model).target_confidence,
        "classes": config.num_labels,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "wall_seconds": train_seconds,
        "steps": {stage.name: max(0, min(stage.stop, done) - stage.start) for stage in (plan.stages if plan else ())},
        **about,
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``metrics.json`` into the folder of a saved model, with the digest of the weights that it is about."""
    write_json(folder / RECORD, {**record, "weights": weights_digest(folder)}, indent=2)
