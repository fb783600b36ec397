"""The record of a training run: what was trained, how, and how good the result is."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from calor_hf._version import __version__
from calor_hf.core.files import weights_digest, write_json
from calor_hf.core.peak_memory import peak_memory_bytes
from calor_hf.defenses.base import Defense
from calor_hf.heads.rank_audit import rank_audit
from calor_hf.training.stages import StagePlan

RECORD = "metrics.json"


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
    model: PreTrainedModel,
    plan: StagePlan | None,
    measured: Measured,
    *,
    seed: int,
    train_seconds: float,
    **about: Any,
) -> dict[str, Any]:
    """Numbers of a training run, as ``metrics.json`` holds them next to a saved model.

    Args:
        model: The result.
        plan: The stages.
        measured: Its metrics.
        seed: Of the run.
        train_seconds: Time that training took in this session.
        about: Entries that only the caller knows: ``dataset`` (its name, or ""), ``dataset_id`` and ``base_model``
            (Hub ids or None), ``backdoor``, ``wall_seconds``.
    """
    defense = getattr(model, "defense", None)
    known = isinstance(defense, Defense)
    return {
        "version": __version__,
        "defense": model.config.defense if known else "none",
        "settings": dict(model.config.defense_settings) if known else {},
        "head": dataclasses.asdict(rank_audit(model)),
        "train_seconds": train_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "dataset": "",
        "dataset_id": None,
        "base_model": None,
        "backdoor": None,
        "seed": seed,
        "split": measured.split,
        "images": len(measured.labels),
        "measured": measured.metrics,
        "target_confidence": defense.target_confidence if isinstance(defense, Defense) else None,
        "classes": model.config.num_labels,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "wall_seconds": train_seconds,
        "steps": {stage.name: stage.stop - stage.start for stage in plan.stages} if plan is not None else {},
        **about,
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``metrics.json`` into the folder of a saved model, with the digest of the weights that it is about."""
    write_json(folder / RECORD, {**record, "weights": weights_digest(folder)}, indent=2)
