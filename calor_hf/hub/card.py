"""The model card: defense, how to load the model, measurements, and caveats."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from calor_hf._version import __version__
from calor_hf.core.files import read_text
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import HEADLINE, IDENTITIES, LeakageReport
from calor_hf.core.report_text import DASH, measure_table, number, percent, table, with_interval
from calor_hf.hub import blocks
from calor_hf.hub.evidence import Evidence

CARD, CURVES, RECONSTRUCTIONS, EVIDENCE = "README.md", "curves.png", "reconstructions.png", "evidence.json"
_SHOWN_CLASSES = 100
_OURS = "calor_hf"
_TRAINED = (
    ("Test accuracy", "accuracy", "share"),
    ("Test negative log-likelihood, nats", "nll", ""),
    ("Test calibration error", "ece", ""),
    ("Training accuracy", "train_accuracy", "share"),
    ("Training confidence, correct images", "train_confidence_correct", ""),
)
_CITATION = """@article{yu2024calor,
  title = {CALoR: Towards Comprehensive Model Inversion Defense},
  author = {Yu, Hongyao and others},
  journal = {arXiv preprint arXiv:2410.05814},
  year = {2024}
}"""


@dataclass(frozen=True)
class CardDetails:
    """Details of a card that the model's files do not hold.

    Attributes:
        name: Name of the model.
        source: Hub id for ``from_pretrained``; None if not known yet.
        license: Id of the license, such as ``apache-2.0``.
        base_model: Hub id of the base model; defaults to the one in the training record.
        dataset: Hub id of the data set; defaults to the one in the training record.
        tags: Additional tags.
        class_names: Published class names that may be names of people.
        remote_code: Whether the model comes with its code, for users without calor_hf.
        curves: Whether the training curves are published with the card.
        reconstructions: Whether an image of reconstructions is published with the card.
    """

    name: str
    source: str | None = None
    license: str | None = None
    base_model: str | None = None
    dataset: str | None = None
    tags: Sequence[str] = ()
    class_names: Sequence[str] = field(default=())
    remote_code: bool = False
    curves: bool = False
    reconstructions: bool = False


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
    if old_data is not None and details.license is None:
        details = replace(details, license=old_data.license)
    written = {
        "summary": _summary(evidence, method, details),
        "load": _load(evidence, details),
        "measured": _measured(evidence, details),
        "limits": _limits(evidence),
        "about": _about(evidence, details),
    }
    text = blocks.merge(None if old is None else old.text, written, markdown_text(details.name))
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


# Metadata


def _metadata(evidence: Evidence, details: CardDetails, old: ModelCardData | None) -> ModelCardData:
    kept: dict[str, Any] = {} if old is None else dict(old.__dict__)
    theirs = [one for one in kept.pop("eval_results", None) or [] if _OURS not in (one.metric_args or {})]
    defense, dataset = evidence.model.defense, _dataset_id(evidence, details)
    tags = ["image-classification", "model-inversion-defense", _OURS, *([] if defense == "none" else [defense])]
    given = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": details.license,
        "base_model": _base_model(evidence, details),
        "datasets": None if dataset is None else [dataset],
        "tags": [*(kept.get("tags") or []), *tags, *details.tags],
        "model_name": kept.get("model_name") or details.name,
    }
    results = theirs + _results(evidence, dataset)
    values = kept | {name: value for name, value in given.items() if value is not None}
    return ModelCardData(**values, eval_results=results or None)


def _results(evidence: Evidence, dataset: str | None) -> list[EvalResult]:
    training, report = evidence.training, evidence.report
    drawn = (training is not None and training.synthetic) or (report is not None and report.synthetic)
    common: dict[str, Any] = {
        "task_type": "image-classification",
        "dataset_type": dataset or ("synthetic-faces" if drawn else "private"),
        "dataset_name": dataset or ("synthetic faces of calor_hf" if drawn else "private images"),
        "metric_args": {_OURS: __version__},
    }
    found = []
    if training is not None:
        found.append(("test", "accuracy", "Test accuracy", training.result.accuracy))
    attack = None if report is None else report.strongest
    if report is not None and attack is not None:
        which = f"strongest of {len(report.attacks)} attacks ({attack.name}); lower is better"
        for name, text in (
            (HEADLINE, "Reconstructions recognized by an evaluation model"),
            (IDENTITIES, "People recognized"),
        ):
            measure = attack.get(name)
            found += [] if measure is None else [("train", name, f"{text}, {which}", measure.value)]
    return [
        EvalResult(**common, dataset_split=split, metric_type=kind, metric_name=name, metric_value=value)
        for split, kind, name, value in found
    ]


def _base_model(evidence: Evidence, details: CardDetails) -> str | None:
    return details.base_model or (evidence.training.base_model if evidence.training else None)


def _dataset_id(evidence: Evidence, details: CardDetails) -> str | None:
    return details.dataset or (evidence.training.dataset_id if evidence.training else None)


# Text


def _summary(evidence: Evidence, method: str, details: CardDetails) -> str:
    model = evidence.model
    base = f" around a {markdown_text(model.base_class)}" if model.base_class else ""
    lines = [f"Image classifier with {model.classes} classes: `{_code(model.architecture)}`{base}.", ""]
    if model.defense == "none":
        lines += ["**It has no defense against model inversion.** It is an undefended reference."]
    else:
        lines += [
            f"Trained with the defense `{_code(model.defense)}` against model inversion attacks, which reconstruct "
            "training images from the weights of a classifier.",
            "",
            *_method_lines(method),
        ]
        settings = ", ".join(f"`{_code(name)}={_code(value)}`" for name, value in model.settings.items())
        lines += ["", f"Settings: {settings}."] if settings else []
    if details.class_names:
        shown = [markdown_text(name) for name in details.class_names[:_SHOWN_CLASSES]]
        more = len(details.class_names) - len(shown)
        lines += [
            "",
            "> **The class names are published with this model.** If they are names of people, the model tells "
            "everyone on whom it was trained, whatever its defense.",
            "",
            f"<details><summary>{len(details.class_names)} class names</summary>",
            "",
            ", ".join(shown) + (f" and {more} more" if more else ""),
            "",
            "</details>",
        ]
    return "\n".join(lines)


def _method_lines(method: str) -> list[str]:
    prose = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", method).replace("``", "`")
    description, _, source = prose.partition("\nSource:")
    first = description.strip().split("\n\n")[0]
    return [" ".join(first.split()), *(["", "Source: " + markdown_text(source)] if source.strip() else [])]


def _load(evidence: Evidence, details: CardDetails) -> str:
    source = details.source or details.name
    ours = evidence.model.architecture.startswith(("CALoRFor", "DefendedFor"))
    lines = ["## How to load", "", "```python"]
    lines += ["import calor_hf  # registers the model's class with transformers"] if ours else []
    lines += [
        "from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline",
        "",
        f"model = AutoModelForImageClassification.from_pretrained({source!r})",
        f"processor = AutoImageProcessor.from_pretrained({source!r})",
        f'classify = pipeline("image-classification", {source!r})',
        "```",
    ]
    if ours and details.remote_code:
        lines += ["", "Without calor_hf, use the code that comes with the model: leave out the import, and pass "
                  "`trust_remote_code=True`."]  # fmt: skip
    elif not ours:
        lines += ["", "This is a stock model of transformers; nothing else is needed."]
    return "\n".join(lines)


def _measured(evidence: Evidence, details: CardDetails) -> str:
    report = evidence.report
    lines = ["## Accuracy and leakage", ""]
    if evidence.training is None and report is None:
        lines += ["Neither accuracy nor leakage of this model was measured."]
    else:
        lines += _main_table(evidence)
    if details.curves:
        lines += ["", f"![Loss, accuracy and confidence during training]({CURVES})"]
    if report is None:
        lines += ["", "**Not audited.** No attack on this model was reported, so this card says nothing about what "
                  "can be reconstructed from it."]  # fmt: skip
        return "\n".join(lines)
    lines += ["", "### Attacks", "", *_attack_table(report), ""]
    if report.other_threats:
        rows = [[one.name, with_interval(one)] for one in report.other_threats]
        lines += ["### Other threats", "", table(["measure", "value"], rows), ""]
    if details.reconstructions:
        lines += ["### Reconstructions", "", f"![One row per person: reconstructed images]({RECONSTRUCTIONS})", ""]
        lines += ["The people are synthetic; they do not exist.", ""] if report.synthetic else []
    lines += ["<details><summary>Every number</summary>", "", measure_table(report), "", "</details>"]
    return "\n".join(lines)


def _main_table(evidence: Evidence) -> list[str]:
    training, report = evidence.training, evidence.report
    columns = ["this model"] if training is None else list(training.measured)
    rows, notes = [], []
    if training is not None:
        stages = training.measured.values()
        rows = [[title, *(number(getattr(one, name), unit) for one in stages)] for title, name, unit in _TRAINED]
        notes.append(f"On {training.test_images} test images.")
    if report is not None:
        if training is None:
            rows += [[f"{one.name}, on held-out images", with_interval(one)] for one in report.utility]
        empty, attack = [DASH] * (len(columns) - 1), report.strongest
        for title, name in (("Rebuilt images recognized", HEADLINE), ("People recognized at least once", IDENTITIES)):
            if attack is not None and (measure := attack.get(name)) is not None:
                rows.append([f"{title}, by {attack.name}", *empty, with_interval(measure)])
                rows.append([f"{title}, by chance", *empty, percent(attack.chance_level(name), 1)])
        notes.append("In brackets: 95 % intervals over people.")
    return [table(["", *columns], rows), "", " ".join(notes)]


def _attack_table(report: LeakageReport) -> list[str]:
    rows = []
    for attack in report.attacks:
        cost = attack.cost
        found = [(attack.get(name), attack.chance_level(name)) for name in (HEADLINE, IDENTITIES)]
        cells = [cell for measure, chance in found for cell in (with_interval(measure), percent(chance, 1))]
        effort = f"{cost.target_passes} passes, {cost.target_gradients} gradients, {cost.seconds:.0f} s"
        rows.append([attack.name, "yes" if attack.adaptive else "no", attack.prior, *cells, effort])
    head = ["attack", "knows the defense", "prior", "images recognized", "by chance", "people recognized", "by chance",
            "effort"]  # fmt: skip
    models = ", ".join(markdown_text(role.replace("_", " ")) for role in report.networks if role != "target")
    return [
        table(head, rows),
        "",
        f"{report.images_per_class} images of each of {len(report.labels)} people, {percent(report.budget)} of the "
        f"published effort, seed {report.seed}, calor_hf {markdown_text(report.version)}. Evaluation models: {models}.",
    ]


def _limits(evidence: Evidence) -> str:
    training, report = evidence.training, evidence.report
    lines = [] if report is None else [f"- {markdown_text(line)}" for line in report.caveats]
    if report is None:
        lines.append(
            "- No defended model is safe. Other threats (membership inference, stolen models, poisoned data) are "
            "separate from model inversion."
        )
    if training is not None and training.target_confidence is not None:
        lines.append(
            f"- Training aims at a score of {training.target_confidence:.2f} for the true class; on training images it "
            f"is {training.result.train_confidence_correct:.2f}. Adjust thresholds that were tuned on another model."
        )
    return "\n".join(["## Limits", "", *lines])


def _about(evidence: Evidence, details: CardDetails) -> str:
    training, report = evidence.training, evidence.report
    dataset = _dataset_id(evidence, details) or (training and training.dataset)
    base = _base_model(evidence, details)
    rows = [
        f"- License: {markdown_text(details.license or 'not given')}",
        f"- Base model: {markdown_text(base or 'not named')}",
        f"- Data: {markdown_text(dataset or 'not named')}",
    ]
    if training is not None:
        stages = ", ".join(f"{steps} steps of stage `{_code(name)}`" for name, steps in training.steps.items())
        rows.append(f"- Trained with calor_hf {markdown_text(training.version)}, seed {training.seed}; {stages}")
    if report is not None:
        rows.append(
            f"- Audited with calor_hf {markdown_text(report.version)} on {markdown_text(report.created[:10])}, seed "
            f"{report.seed}; checksum of the report `{_code(evidence.report_checksum)}`"
        )
    rows.append(f"- Card written by calor_hf {__version__}; its numbers come from [`{EVIDENCE}`]({EVIDENCE})")
    citation = ["", "## Citation", "", "```bibtex", _CITATION, "```"] if evidence.model.defense == "calor" else []
    return "\n".join(["## About", "", *rows, *citation])


def _code(value: object) -> str:
    return re.sub(r"[`|<>\n\r]", "", number(value) if isinstance(value, float) else str(value))
