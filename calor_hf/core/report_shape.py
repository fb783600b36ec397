"""What the file of a leakage report holds; audits write and read it, and model cards are made from it."""

from typing import Any

from calor_hf.core.shapes import type_error

_NUMBER = float | None  # null stands for NaN
_MEASURE = {
    "name": str, "value": _NUMBER, "unit": str, "more_is": str, "images": int, "identities": int, "low": _NUMBER,
    "high": _NUMBER, "std": _NUMBER, "by_identity": dict[str, _NUMBER], "note": str,
}  # fmt: skip
_ATTACK = {
    "name": str, "attack": str, "settings": dict[str, Any], "generator": dict[str, Any], "cost": dict[str, float],
    "adaptive": bool, "measures": list[Any], "chance_levels": dict[str, list[Any]], "target_confidence": _NUMBER,
    "parts": list[str],
}  # fmt: skip
_TARGET = {
    "name": str, "model": str, "defense": str | dict[str, Any], "settings": dict[str, Any], "classes": int,
    "parameters": int,
}  # fmt: skip
_REPORT = {
    "target": _TARGET,
    "data": {"name": str, "identities": int, "held_out_images": int},
    "networks": dict[str, str | float | None],
    "labels": list[int],
    "label_names": list[str],
    "images_per_class": int,
    "seed": int,
    "budget": float,
    "attacks": list,
    "utility": list,
    "other_threats": list,
    "created": str,
    "version": str,
}
_COST = {"target_passes": float, "target_gradients": float, "seconds": float}
DIRECTIONS = ("leakage", "privacy", "neither")


def report_error(report: dict[str, Any]) -> str | None:
    """What is wrong in a report's content, without schema and checksum; None: nothing."""
    problem = type_error(report, _REPORT)
    if problem:
        return problem
    accuracies = {name: value for name, value in report["networks"].items() if name.endswith("_accuracy")}
    if problem := type_error(accuracies, dict[str, float | None], "networks"):
        return problem
    if len(report["labels"]) != len(report["label_names"]):
        return f"it names {len(report['label_names'])} people and numbers {len(report['labels'])}"
    groups = [("utility", report["utility"]), ("other_threats", report["other_threats"])]
    for index, attack in enumerate(report["attacks"]):
        place = f"attacks[{index}]"
        problem = type_error(attack, _ATTACK, place) or type_error(attack["cost"], _COST, f"{place}.cost")
        if problem:
            return problem
        if not _is_name(attack["name"]):
            return f"{place}.name {attack['name'][:80]!r} is none: it would be a path"
        groups += [(f"{place}.measures", attack["measures"])]
        groups += [(f"{place}.chance levels", measures) for measures in attack["chance_levels"].values()]
    return next((found for place, measures in groups if (found := _measures_misfit(measures, place))), None)


def _measures_misfit(measures: list[Any], place: str) -> str | None:
    for index, measure in enumerate(measures):
        problem = type_error(measure, _MEASURE, f"{place}[{index}]")
        if problem:
            return problem
        if measure["more_is"] not in DIRECTIONS:
            return f"{place}[{index}].more_is must be one of {', '.join(DIRECTIONS)}, got {measure['more_is'][:40]!r}"
        if not all(key.removeprefix("-").isdecimal() and len(key) < 20 for key in measure["by_identity"]):
            return f"{place}[{index}].by_identity has a key that is no class"
    return None


def _is_name(name: str) -> bool:
    """Whether a folder beside the report can have this name: the images of an attack lie there."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")
