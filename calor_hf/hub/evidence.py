"""What is known of a model and may be published: numbers from its training and its audit, no names and no paths.

The card is written from this and from nothing else, and it is published beside the card as ``evidence.json``.
"""

import json
import logging
from pathlib import Path
from typing import Any, cast

from calor_hf._version import __version__
from calor_hf.core.checksum import checksum, plain
from calor_hf.core.files import read_json, weights_digest
from calor_hf.core.label_names import telling_names
from calor_hf.core.report_shape import report_error
from calor_hf.core.shapes import type_error

logger = logging.getLogger(__name__)

CONFIG, RECORD, REPORT, GRID = "config.json", "metrics.json", "report.json", "grid.png"
HEADLINE, IDENTITIES = "attack_accuracy@1", "identities_recognized"
SCHEMA = 1
_REPORT_SCHEMAS = (1,)
_DRAWN = "synthetic faces"
_OF_RECORD = (
    "version", "seed", "test_images", "measured", "target_confidence", "parameters", "steps", "train_seconds",
)  # fmt: skip
CONFIG_SHAPE = {
    "model_type?": str, "id2label?": dict[str, str], "architectures?": list[str] | None, "num_labels?": int,
    "auto_map?": dict[str, Any], "base_class?": str | None, "defense?": str | dict[str, Any],
    "defense_settings?": dict[str, Any],
}  # fmt: skip
_RECORD_SHAPE = {
    "version": str, "seed": int, "test_images": int, "measured": dict[str, dict[str, float]],
    "target_confidence": float | None, "parameters": int, "steps": dict[str, int], "train_seconds": float,
    "base_model": str | None, "dataset_id": str | None, "dataset": str,
}  # fmt: skip
_MEASURED = dict.fromkeys(("accuracy", "nll", "ece", "train_accuracy", "train_confidence_correct"), float)
_OF_MEASURE = ("name", "value", "unit", "more_is", "images", "identities", "low", "high")
_OF_COST = ("generator_passes", "target_passes", "target_gradients", "seconds")


class StaleRecordError(ValueError):
    """``metrics.json`` belongs to other weights."""


def gather(folder: str | Path, report: str | Path | None = None, use_record: bool = True) -> dict[str, Any]:
    """Everything that a card may say about a saved model.

    Args:
        folder: The saved model.
        report: ``report.json`` of an audit of it, or the audit's folder; None: it was not audited.
        use_record: Whether to read the ``metrics.json`` that ``calor-hf train`` left in the folder.

    Returns:
        Plain values under ``model``, ``training`` (or None) and ``audit`` (or None).

    Raises:
        FileNotFoundError: no model in ``folder``, or no report.
        ValueError: a file is cut off, was changed, is of an unknown version, or belongs to another model.
    """
    folder = Path(folder)
    model = read_model(folder)
    record = read_record(folder) if use_record else None
    if record is not None:
        model["base_model"], model["dataset"] = record.pop("base_model"), record.pop("dataset_id")
    audit = None if report is None else read_report(report, model)
    found = {"schema": SCHEMA, "calor_hf": __version__, "model": model, "training": record, "audit": audit}
    return cast(dict[str, Any], plain(found))


def read_model(folder: Path) -> dict[str, Any]:
    """What the model is, from its ``config.json``."""
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"no model in {folder}: {CONFIG} is missing; pass the folder that a model was saved in")
    config = read_json(file, CONFIG_SHAPE)
    defense, settings = config.get("defense"), config.get("defense_settings")
    if "defense_settings" not in config:  # a stock model names the defense that it was trained with, if there was one
        known = defense if isinstance(defense, dict) else {}
        defense, settings = known.get("name", "none"), known.get("settings", {})
    if problem := type_error({"defense": defense, "settings": settings}, {"defense": str, "settings": dict[str, Any]}):
        raise ValueError(f"{file} is damaged: {problem}")
    names = list(config.get("id2label", {}).values())
    return {
        "class": (config.get("architectures") or ["?"])[0],
        "base_class": config.get("base_class"),  # None of stock models
        "defense": defense,
        "settings": settings,
        "classes": len(names) or config.get("num_labels", 2),  # names of two classes without any are not saved
        "telling_names": len(telling_names(names)),
        "weights": weights_digest(folder),
        "base_model": None,
        "dataset": None,
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """The training record in a model's folder; None: there is none that names its weights.

    Raises:
        StaleRecordError: the weights are others than those that were measured.
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
            f"{file}: the model was trained with a backdoor ({name}), to be measured and not to be used; it is not "
            "published"
        )
    if record.get("weights") is None:
        logger.warning("%s does not say which weights were measured, so its numbers are left out; train again", file)
        return None
    if record["weights"] != weights_digest(folder):
        raise StaleRecordError(
            f"{file} belongs to other weights than those beside it, so its numbers say nothing about this model; "
            "remove the file, or train again"
        )
    drawn = str(record.get("dataset", "")).startswith(f"{_DRAWN}, ")
    problem = type_error(record, _RECORD_SHAPE)
    for name, numbers in () if problem else record["measured"].items():
        problem = problem or type_error(numbers, _MEASURED, f"measured.{name}")
    if problem or not record["measured"]:
        raise ValueError(
            f"{file}: {problem or 'nothing was measured'}; train again with this version of calor_hf ({__version__})"
        )
    kept = {name: record[name] for name in (*_OF_RECORD, "base_model", "dataset_id")}
    return {**kept, "data": record["dataset"] if drawn else None}


def read_report(path: str | Path, model: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a leakage report, without class names, paths and numbers of single people.

    Args:
        path: ``report.json``, or the folder of an audit.
        model: As :func:`read_model` gives it.

    Raises:
        FileNotFoundError: there is no report.
        ValueError: it was changed, is of an unknown version, or is about another model.
    """
    file = Path(path) / REPORT if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no report at {file}; pass {REPORT} or the folder of an audit")
    report = read_json(file)
    schema, claimed = report.pop("schema", None), report.pop("checksum", None)
    if schema not in _REPORT_SCHEMAS:
        raise ValueError(
            f"{file} has schema {schema}, this version of calor_hf ({__version__}) knows {_REPORT_SCHEMAS}; install a "
            "newer one"
        )
    if checksum(report) != claimed:
        raise ValueError(f"{file} was changed after it was written: its checksum does not fit; audit again")
    if problem := report_error(report):
        raise ValueError(f"{file} is damaged: {problem}")
    _check_same_model(file, report["target"], model)
    return {
        "version": report["version"],
        "created": report["created"],
        "checksum": claimed,
        "seed": report["seed"],
        "budget": report["budget"],
        "images_per_class": report["images_per_class"],
        "identities_attacked": len(report["labels"]),
        "identities": report["data"]["identities"],
        "held_out_images": report["data"]["held_out_images"],
        "synthetic": report["data"]["name"] == _DRAWN,
        "networks": {name: value for name, value in report["networks"].items() if isinstance(value, int | float)},
        "evaluation_models": sorted(
            set(report["networks"]) & {"evaluation_model", "second_evaluation_model", "embedding", "extractor"}
        ),
        "attacks": [_attack(one) for one in report["attacks"]],
        "utility": [_measure(one) for one in report["utility"]],
        "other_threats": [_measure(one) for one in report["other_threats"]],
    }


def strongest(audit: dict[str, Any]) -> dict[str, Any] | None:
    """The attack that got most: the worst case over several where it was counted, else by attack accuracy."""
    for attack in audit["attacks"]:
        if attack["parts"] and value_of(attack, IDENTITIES) is not None:
            return attack  # type: ignore[no-any-return]
    scored = [attack for attack in audit["attacks"] if value_of(attack, HEADLINE) is not None]
    return max(scored, key=lambda attack: value_of(attack, HEADLINE) or 0.0, default=None)


def measure_of(attack: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A measure of an attack by its name, if it has a value."""
    found = next((one for one in attack["measures"] if one["name"] == name), None)
    return None if found is None or found["value"] is None else found


def value_of(attack: dict[str, Any], name: str) -> float | None:
    """Its value."""
    found = measure_of(attack, name)
    return None if found is None else float(found["value"])


def chance_level_of(attack: dict[str, Any], name: str) -> float | None:
    """Highest of the chance levels of a measure."""
    chance_levels = [
        one["value"] for measures in attack["chance_levels"].values() for one in measures if one["name"] == name
    ]
    return max((value for value in chance_levels if value is not None), default=None)


def synthetic(evidence: dict[str, Any]) -> bool:
    """Whether the audit was of drawn faces, whose images show no one."""
    audit, record = evidence["audit"], evidence["training"]
    drawn = audit is not None and audit["synthetic"] and evidence["model"]["telling_names"] == 0
    return bool(drawn and (record is None or record["data"] is not None))


def to_json(evidence: dict[str, Any]) -> bytes:
    """``evidence.json``."""
    return (json.dumps(evidence, indent=1, allow_nan=False) + "\n").encode()


def _check_same_model(file: Path, target: dict[str, Any], model: dict[str, Any]) -> None:
    named = target.get("weights")
    if named is not None and named != model["weights"]:
        raise ValueError(f"{file} is about other weights than those of this model; audit this one")
    differs = [name for name in ("classes", "settings") if target[name] != model[name]]
    if differs and not (model["defense"] == "none" and differs == ["settings"]):
        name = differs[0]
        raise ValueError(
            f"{file} is about another model: its {name} are {target[name]}, this model's {model[name]}; audit this one"
        )
    if named is None:
        logger.warning("%s does not name the weights that were attacked; make sure that they are this model's", file)


def _attack(attack: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": attack["name"],
        "attack": attack["attack"],
        "adaptive": attack["adaptive"],
        "prior": attack["generator"].get("generator"),
        "parts": attack["parts"],
        "cost": {name: attack["cost"][name] for name in _OF_COST if name in attack["cost"]},
        "measures": [_measure(one) for one in attack["measures"]],
        "chance_levels": {
            kind: [_measure(one) for one in measures] for kind, measures in attack["chance_levels"].items()
        },
    }


def _measure(measure: dict[str, Any]) -> dict[str, Any]:
    return {name: measure[name] for name in _OF_MEASURE}
