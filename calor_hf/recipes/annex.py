"""Write the annex of an audit for a data protection officer, with the answers of a form."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from calor_hf.auditing.annex import RELEASES, Annex, Declarations, annex_of, form
from calor_hf.core.files import read_yaml, write_json, write_whole
from calor_hf.core.report import LeakageReport, TargetInfo
from calor_hf.hub.evidence import read_model

FORM, PAGE, DATA = "annex.yaml", "annex.html", "annex.json"


def write_annex(report: LeakageReport, folder: Path, others: Sequence[LeakageReport] = ()) -> tuple[Path, Annex]:
    """Write ``annex.html`` and ``annex.json`` from a report and the answers in ``annex.yaml``.

    A missing form is written first; an existing one is never changed.

    Args:
        report: The report.
        folder: Output folder, where the form is, too.
        others: Reports of other models of the same people; an undefended one gives the accuracy cost.

    Returns:
        Path of the page, and the annex.

    Raises:
        ValueError: the form is damaged, or a report of a model with decoys has too few classes.
    """
    questions = folder / FORM
    if not questions.is_file():
        write_whole(questions, form().encode())
    annex = annex_of(report, read_form(questions), _undefended(others))
    page = folder / PAGE
    write_json(folder / DATA, annex.to_dict(), indent=1, ensure_ascii=False)
    write_whole(page, annex.to_html().encode())
    return page, annex


def read_form(file: Path) -> Declarations:
    """Read the answers of a form.

    Raises:
        ValueError: the file is no YAML, has an unknown field, or a value that is no text.
    """
    found, known = read_yaml(file, "fields to answers"), [one.name for one in fields(Declarations)]
    if unknown := sorted(found.keys() - set(known)):
        raise ValueError(f"{file} must have the fields {', '.join(known)}, got {', '.join(unknown)}")
    answers = {name: str(value or "").strip() for name, value in found.items()}
    nested = [name for name, value in found.items() if isinstance(value, dict | list)]
    if nested:
        raise ValueError(f"{file}: {', '.join(nested)} must be text; put it in quotes, or after a |")
    release = answers.get("release", "")
    if release and release not in RELEASES:
        raise ValueError(f"{file}: release must be one of {', '.join(RELEASES)}, or empty, got {release!r}")
    return Declarations(**answers)  # type: ignore[arg-type]


def check_model(target: TargetInfo, model: Path) -> str:
    """Compare the weights in a folder with those that were attacked, and say that they are the same.

    Raises:
        FileNotFoundError: no model in the folder.
        ValueError: the report does not name the weights, or they are others.
    """
    weights = read_model(model).weights
    if target.weights is None:
        raise ValueError(
            "the report does not name the attacked weights, because the model was in memory; audit a saved model"
        )
    if weights != target.weights:
        raise ValueError(
            f"the report is about other weights: SHA-256 {target.weights}, and {model} has {weights}; audit this model"
        )
    return f"the weights in {model} are those that were attacked: SHA-256 {weights}"


def _undefended(others: Sequence[LeakageReport]) -> float:
    """Test accuracy of the undefended model among others, or NaN."""
    found = [
        one.value
        for report in others
        if report.target.defense == "none"
        for one in report.utility
        if one.name == "accuracy"
    ]
    return found[0] if found else math.nan
