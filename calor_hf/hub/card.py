"""The model card: defense, how to load the model, measurements, and caveats."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from calor_hf._version import __version__
from calor_hf.core.decoy_sentences import SENTENCES
from calor_hf.core.files import read_text
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import LeakageReport
from calor_hf.core.report_text import (
    POWER_HEAD,
    SHARES,
    measure_table,
    number,
    percent,
    power_rows,
    table,
    with_interval,
)  # fmt: skip
from calor_hf.hub import blocks
from calor_hf.hub.evidence import Evidence

CARD, CURVES, RECONSTRUCTIONS, EVIDENCE = "README.md", "curves.png", "reconstructions.png", "evidence.json"
_OURS = "calor_hf"
_ROWS_OF_TRAINING = (
    ("{split} accuracy", "accuracy", "share"),
    ("{split} negative log-likelihood, nats", "nll", ""),
    ("{split} calibration error", "ece", ""),
    ("Training accuracy", "train_accuracy", "share"),
    ("Training confidence, correct images", "train_confidence_correct", ""),
)


@dataclass(frozen=True)
class CardDetails:
    """Details of a card that the model's files do not hold.

    Attributes:
        source: Hub id for ``from_pretrained``; None if not known yet.
        license: Id of the license, such as ``apache-2.0``.
        base_model: Hub id of the base model; defaults to the one in the training record.
        dataset: Hub id of the data set; defaults to the one in the training record.
        class_names: Published class names that may be names of people.
        remote_code: Whether the model comes with its code, for users without calor_hf.
        curves: Whether the training curves are published with the card; ``reconstructions``: an image of these.
        language: Language of the class names, for the metadata.
    """

    name: str
    source: str | None = None
    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    tags: Sequence[str] = ()
    class_names: Sequence[str] = ()
    remote_code: bool = False
    curves: bool = False
    reconstructions: bool = False
    language: str | None = None


def build_card(evidence: Evidence, method: str, details: CardDetails, existing: str | None = None) -> ModelCard:
    """Write a model card, or update an existing one.

    Args:
        evidence: Source of every number of the card.
        method: Docstring of the defense.
        details: Further details.
        existing: The card so far; text and metadata that a person wrote stay.

    Raises:
        ValueError: the existing card is damaged.
    """
    old = None if existing is None else blocks.parse(existing)
    old_data = None if old is None else cast(ModelCardData, old.data)
    training = evidence.training
    if training is not None:
        base_model, dataset = details.base_model or training.base_model, details.dataset or training.dataset_id
        details = replace(details, base_model=base_model, dataset=dataset)
    if old_data is not None and details.license is None:
        details = replace(details, license=old_data.license)
    text = blocks.merge(None if old is None else old.text, _text(evidence, method, details))
    data = _metadata(evidence, details, old_data)
    return blocks.seal(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def base_card(local: Path | None, remote: Path | None) -> str | None:
    """Return the card to update: that of the folder, or that of the Hub if it was edited there.

    Raises:
        ValueError: both were edited, differently.
    """
    mine, theirs = (None if p is None or not p.is_file() else read_text(p) for p in (local, remote))
    if mine is None or theirs is None:
        return mine or theirs
    ours, hub = blocks.parse(mine), blocks.parse(theirs)
    if blocks.was_edited(hub) and not blocks.same_own_text(ours, hub):
        raise ValueError(
            f"the card on the Hub was edited, and {local} says something else; bring both together (hf download REPO "
            f"{CARD} --local-dir FOLDER fetches that of the Hub) and push again"
        )
    return mine


class _Markdown(str):
    """Text that is Markdown already, and not escaped."""


def _text(evidence: Evidence, method: str, details: CardDetails) -> str:
    """Fill in ``card.md``; values are escaped unless the template says that they are Markdown."""
    from jinja2 import Environment

    def code(*name_and_value: object) -> _Markdown:
        shown = "=".join(number(one) if isinstance(one, float) else str(one) for one in name_and_value)
        return _Markdown("`" + re.sub(r"[`|<>\n\r]", "", shown) + "`")

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, finalize=lambda v: v if isinstance(v, _Markdown) else markdown_text(v)
    )
    environment.filters |= {"code": code, "markdown": _Markdown}
    prose = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", method).replace("``", "`")
    description, _, source = prose.partition("\nSource:")
    model, training, report = evidence.model, evidence.training, evidence.report
    text = environment.from_string(files("calor_hf.hub").joinpath("card.md").read_text(encoding="utf-8")).render(
        evidence=evidence, model=model, training=training, report=report, details=details,
        method=" ".join(description.strip().split("\n\n")[0].split()),
        source=source.strip(),
        ours=model.architecture.startswith(("CALoRFor", "DefendedFor")),
        id=repr(details.source or details.name),
        columns=["this model"] if training is None else list(training.measured),
        strongest=None if report is None else report.strongest,
        decoy_sentences=SENTENCES if model.defense == "decoys" and report is None else (),
        headlines=_headlines(report),
        power_head=POWER_HEAD, power_rows=power_rows, table=table,
        rows_of_training=[
            (title.format(split=training.split.capitalize() if training else ""), name, unit)
            for title, name, unit in _ROWS_OF_TRAINING
        ],
        version=__version__, number=number, percent=percent, with_interval=with_interval, measure_table=measure_table,
    )  # fmt: skip
    return re.sub(r"\n{3,}", "\n\n", text)


def _headlines(report: LeakageReport | None) -> list[tuple[str, str]]:
    """Titles and names of the measures that summarize the strongest attack, the most trusted first."""
    attack = None if report is None else report.strongest
    return [] if attack is None else [(title, name) for name, title in SHARES.items() if attack.get(name) is not None]


def _metadata(evidence: Evidence, details: CardDetails, old: ModelCardData | None) -> ModelCardData:
    kept: dict[str, Any] = {} if old is None else dict(old.__dict__)
    theirs = [one for one in kept.pop("eval_results", None) or [] if _OURS not in (one.metric_args or {})]
    defense, dataset = evidence.model.defense, details.dataset
    tags = ["image-classification", "model-inversion-defense", _OURS, *([] if defense == "none" else [defense])]
    given = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": details.license,
        "language": details.language,
        "base_model": details.base_model,
        "datasets": None if dataset is None else [dataset],
        "tags": [*(kept.get("tags") or []), *tags, *details.tags],
        "model_name": kept.get("model_name") or details.name,
    }
    results = theirs + _results(evidence, dataset)
    values = kept | {name: value for name, value in given.items() if value is not None}
    return ModelCardData(**values, eval_results=results or None)


def _results(evidence: Evidence, dataset: str | None) -> list[EvalResult]:
    training, report = evidence.training, evidence.report
    drawn = (training is not None and training.drawn) or (report is not None and report.synthetic)
    common: dict[str, Any] = {
        "task_type": "image-classification",
        "dataset_type": dataset or ("synthetic-faces" if drawn else "private"),
        "dataset_name": dataset or ("synthetic faces of calor_hf" if drawn else "private images"),
        "metric_args": {_OURS: __version__},
    }
    found: list[tuple[str, str, str, float]] = []
    if training is not None:
        name = f"{training.split.capitalize()} accuracy"
        found.append((training.split, "accuracy", name, training.result.accuracy))
    attack = None if report is None else report.strongest
    if report is not None and attack is not None:
        which = f"strongest of {len(report.attacks)} attacks ({attack.name}); verdict: {report.verdict.kind}"
        for title, name in _headlines(report):
            if measure := attack.get(name):
                found.append(("train", name, f"{title.capitalize()}, {which}", measure.value))
    return [
        EvalResult(**common, dataset_split=split, metric_type=kind, metric_name=name, metric_value=value)
        for split, kind, name, value in found
    ]
