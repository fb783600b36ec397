"""Facts about a saved model that may be published: its training record and its audit, without names and paths.

The card is written from this alone, and it is published next to the card as ``evidence.json``.
"""

import dataclasses
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from calor_hf._version import __version__
from calor_hf.core.files import processor_digest, read_json, weights_digest
from calor_hf.core.label_names import telling_names
from calor_hf.core.report import Count, LeakageReport, Number, TargetInfo, from_plain, plain

logger = logging.getLogger(__name__)

CONFIG, RECORD = "config.json", "metrics.json"
SCHEMA = 2
CONFIG_SHAPE = {
    "model_type?": str, "id2label?": dict[str, str], "architectures?": list[str] | None, "num_labels?": int,
    "auto_map?": dict[str, Any], "base_class?": str | None, "defense?": str | dict[str, Any],
    "defense_settings?": dict[str, Any],
}  # fmt: skip


class StaleRecordError(ValueError):
    """``metrics.json`` belongs to other weights."""


@dataclass(frozen=True)
class ModelInfo:
    """A saved model, from its configuration.

    Attributes:
        architecture: Class of the model.
        base_class: Class of the base model; None for stock models.
        defense: Name of the defense, or ``none``; ``settings`` are its settings.
        telling_names: Number of class names that may be names of people.
        weights: SHA-256 of the weights; ``processor`` is that of the image processor's settings.
    """

    __pydantic_config__: ClassVar = ConfigDict(strict=True)
    architecture: str
    base_class: str | None
    defense: str
    settings: dict[str, Any]
    classes: int
    telling_names: int
    weights: str | None
    processor: str | None


@dataclass(frozen=True)
class Measured:
    """Numbers of one stage in ``metrics.json``, of which a card shows these."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True)
    accuracy: Number
    nll: Number
    ece: Number
    train_accuracy: Number
    train_confidence_correct: Number


@dataclass(frozen=True)
class TrainingRecord:
    """``metrics.json`` as training wrote it, of which a card shows these entries."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True)
    version: str
    seed: Count
    images: Count
    measured: dict[str, Measured]
    target_confidence: float | None
    parameters: Count
    steps: dict[str, Count]
    train_seconds: Number
    base_model: str | None
    dataset_id: str | None
    dataset: str
    split: Literal["test", "validation"]
    drawn: bool = False  # by this library
    adapted: bool = True  # no adapt stage was thrown away

    @property
    def result(self) -> Measured:
        """Numbers of the last stage."""
        return list(self.measured.values())[-1]


@dataclass(frozen=True)
class Evidence:
    """Everything a card may say.

    Attributes:
        report: Publishable copy of the audit's report, or None.
        report_checksum: Checksum of the full report; for a model with decoys, of the publishable one.
    """

    model: ModelInfo
    training: TrainingRecord | None
    report: LeakageReport | None
    report_checksum: str

    @property
    def synthetic(self) -> bool:
        """Whether the audit was of synthetic identities, so that reconstructions show no one."""
        audited = self.report is not None and self.report.synthetic and self.model.telling_names == 0
        return audited and (self.training is None or self.training.drawn)

    def to_json(self) -> bytes:
        """Return the content of ``evidence.json``."""
        found = {
            "schema": SCHEMA,
            "calor_hf": __version__,
            "model": dataclasses.asdict(self.model),
            "training": None if self.training is None else dataclasses.asdict(self.training),
            "audit": None if self.report is None else self.report.to_dict(),
            "report_checksum": self.report_checksum,
        }
        return (json.dumps(plain(found), indent=1, allow_nan=False) + "\n").encode()


def gather(folder: str | Path, report: str | Path | None = None, use_record: bool = True) -> Evidence:
    """Collect what a card may say about a saved model.

    Args:
        folder: The saved model.
        report: ``report.json`` of its audit, or the audit's folder; None means not audited.
        use_record: Whether to read the ``metrics.json`` that training left in the folder.

    Raises:
        FileNotFoundError: no model in ``folder``, or no report.
        ValueError: a file is cut off, was changed, has an unknown version, or belongs to another model; or the report
            is of a model with decoys and may not be published.
    """
    folder = Path(folder)
    model = read_model(folder)
    record = read_record(folder) if use_record else None
    if record is not None and not record.drawn:
        record = replace(record, dataset="")
    if report is None:
        return Evidence(model, record, None, "")
    full = LeakageReport.load(report)
    _check_same_model(report, full.target, model)
    if model.defense == "decoys" and not full.with_decoys:
        raise ValueError(
            f"{report} is of a model with decoys and does not know of them, so its numbers may tell which identities "
            "are private; audit again with the folder that calor-hf decoys deal wrote"
        )
    known = full.publishable()
    # With decoys, the checksum of the numbers for each class would confirm a guess of the assignment.
    return Evidence(model, record, known, (known if full.with_decoys else full).to_dict()["checksum"])


def read_model(folder: Path) -> ModelInfo:
    """Describe a saved model from its ``config.json``."""
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"no model in {folder}: {CONFIG} is missing; pass the folder that a model was saved in")
    config = read_json(file, CONFIG_SHAPE)
    defense, settings = config.get("defense"), config.get("defense_settings")
    if "defense_settings" not in config:  # a stock model names its defense if this library saved it
        known = defense if isinstance(defense, dict) else {}
        defense, settings = known.get("name", "none"), known.get("settings", {})
    names = list(config.get("id2label", {}).values())
    found = {
        "architecture": (config.get("architectures") or ["?"])[0],
        "base_class": config.get("base_class"),
        "defense": defense,
        "settings": settings,
        "classes": len(names) or config.get("num_labels", 2),  # transformers does not save default names of two classes
        "telling_names": len(telling_names(names)),
        "weights": weights_digest(folder),
        "processor": processor_digest(folder),
    }
    return from_plain(ModelInfo, found, str(file))  # type: ignore[no-any-return]


def read_record(folder: Path) -> TrainingRecord | None:
    """Read the training record in a model's folder; None if no record names its weights.

    Raises:
        StaleRecordError: the weights are not those that were measured.
        ValueError: the file is damaged, or the model was poisoned on purpose.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    record = read_json(file, {"weights?": str | None})
    if record.get("backdoor") is not None:
        trigger = record["backdoor"].get("trigger") if isinstance(record["backdoor"], dict) else None
        name = trigger.get("name") if isinstance(trigger, dict) else "of an unknown kind"
        raise ValueError(
            f"{file}: the model was trained with a backdoor ({name}) to measure it, not to be used; it is not published"
        )
    if record.get("weights") is None:
        logger.warning("%s does not say which weights were measured, so its numbers are left out; train again", file)
        return None
    if record["weights"] != weights_digest(folder):
        raise StaleRecordError(
            f"{file} belongs to other weights, so its numbers say nothing about this model; remove the file, or train "
            "again"
        )
    found: TrainingRecord = from_plain(TrainingRecord, record, str(file))
    if not found.measured:
        raise ValueError(f"{file}: nothing was measured; train again with this version of calor_hf ({__version__})")
    return found


def _check_same_model(report: str | Path, target: TargetInfo, model: ModelInfo) -> None:
    for name, part in (("weights", "weights"), ("processor", "image processor")):
        if target.weights is not None and getattr(target, name) != getattr(model, name):
            raise ValueError(f"{report} is about another model: other {part} than this model has; audit this one")
    differs = [name for name in ("classes", "settings") if getattr(target, name) != getattr(model, name)]
    if differs and not (model.defense == "none" and differs == ["settings"]):
        there, here = (getattr(one, differs[0]) for one in (target, model))
        raise ValueError(
            f"{report} is about another model: its {differs[0]} are {there}, this model's {here}; audit this one"
        )
    if target.weights is None:
        logger.warning("%s does not name the attacked weights; make sure that they are this model's", report)
