"""The model card: what the defense is, how to load the model, what was measured, and what no one looked at."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from calor_hf.core.files import read_text
from calor_hf.core.plain_text import markdown_text
from calor_hf.hub import blocks
from calor_hf.hub.card_tables import attack_table, every_number, number, other_threats, share, use_and_leakage
from calor_hf.hub.evidence import HEADLINE, IDENTITIES, chance_level_of, measure_of, strongest

CARD, CURVES, RECONSTRUCTIONS, EVIDENCE = "README.md", "curves.png", "reconstructions.png", "evidence.json"
_SHOWN_CLASSES = 100
_OURS = "calor_hf"
_CITATION = """@article{yu2024calor,
  title = {CALoR: Towards Comprehensive Model Inversion Defense},
  author = {Yu, Hongyao and others},
  journal = {arXiv preprint arXiv:2410.05814},
  year = {2024}
}"""


@dataclass(frozen=True)
class CardDetails:
    """What the files of a model do not say.

    Attributes:
        name: Of the model.
        source: What ``from_pretrained`` is told: a Hub id; None: not known yet.
        license: Id of the license, such as ``apache-2.0``.
        base_model: Hub id of the base model; None: the one in the training record.
        dataset: Hub id of the data set; None: the one in the training record.
        tags: More of them.
        class_names: Names that are published and may be people's.
        remote_code: Whether the model carries its code, for people without calor_hf.
        curves: Whether the training curves lie beside the card.
        reconstructions: Whether an image of reconstructions lies beside the card.
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


def build_card(evidence: dict[str, Any], method: str, details: CardDetails, existing: str | None = None) -> ModelCard:
    """A model card, or an existing one brought up to date.

    Args:
        evidence: As :func:`calor_hf.hub.evidence.gather` gives it; every number of the card comes from it.
        method: Docstring of the defense.
        details: What else is known.
        existing: The card so far; what a person wrote into it stays, in text and metadata.

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
    """The card to bring up to date: that of the folder, or that of the Hub where someone wrote into it.

    Raises:
        ValueError: both hold words of a person that the other lacks.
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


def _metadata(evidence: dict[str, Any], details: CardDetails, old: ModelCardData | None) -> ModelCardData:
    kept: dict[str, Any] = {} if old is None else dict(old.__dict__)
    theirs = [one for one in kept.pop("eval_results", None) or [] if _OURS not in (one.metric_args or {})]
    model = evidence["model"]
    tags = ["image-classification", "model-inversion-defense", _OURS]
    tags += [] if model["defense"] == "none" else [model["defense"]]
    given = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "license": details.license,
        "base_model": details.base_model or model["base_model"],
        "datasets": _listed(details.dataset or model["dataset"]),
        "tags": [*(kept.get("tags") or []), *tags, *details.tags],
        "model_name": kept.get("model_name") or details.name,
    }
    results = theirs + _results(evidence, details)
    values = kept | {name: value for name, value in given.items() if value is not None}
    return ModelCardData(**values, eval_results=results or None)


def _results(evidence: dict[str, Any], details: CardDetails) -> list[EvalResult]:
    record, audit, model = evidence["training"], evidence["audit"], evidence["model"]
    dataset = details.dataset or model["dataset"]
    drawn = bool((record and record["data"]) or (audit and audit["synthetic"]))
    common: dict[str, Any] = {
        "task_type": "image-classification",
        "dataset_type": dataset or ("synthetic-faces" if drawn else "private"),
        "dataset_name": dataset or ("drawn faces of calor_hf" if drawn else "private images"),
        "metric_args": {_OURS: evidence["calor_hf"]},
    }
    found = []
    if record is not None:
        result = _last(record["measured"])
        found.append(
            EvalResult(
                **common,
                dataset_split="test",
                metric_type="accuracy",
                metric_name="Test accuracy",
                metric_value=result["accuracy"],
            )
        )
    attack = None if audit is None else strongest(audit)
    if audit is not None and attack is not None:
        for name, words in (
            (HEADLINE, "Rebuilt images that an evaluation model recognizes"),
            (IDENTITIES, "People recognized"),
        ):
            measure = measure_of(attack, name)
            if measure is not None:
                title = f"{words}, strongest of {len(audit['attacks'])} attacks ({attack['name']}); lower is better"
                found.append(
                    EvalResult(
                        **common,
                        dataset_split="train",
                        metric_type=name,
                        metric_name=title,
                        metric_value=measure["value"],
                    )
                )
    return found


# Text


def _summary(evidence: dict[str, Any], method: str, details: CardDetails) -> str:
    model = evidence["model"]
    base = f" around a {markdown_text(model['base_class'])}" if model["base_class"] else ""
    lines = [f"An image classifier with {model['classes']} classes: `{_code(model['class'])}`{base}."]
    if model["defense"] == "none":
        lines += ["", "**It has no defense against model inversion.** It is an undefended reference."]
    else:
        lines += ["", f"It was trained with the defense `{_code(model['defense'])}` against model inversion attacks, "
                  "which rebuild the images that a classifier has learned from its weights."]  # fmt: skip
        lines += ["", *_method_lines(method)]
        settings = ", ".join(f"`{_code(name)}={_code(value)}`" for name, value in model["settings"].items())
        lines += ["", f"Settings: {settings}."] if settings else []
    if details.class_names:
        lines += ["", *_class_warning(details.class_names)]
    return "\n".join(lines)


def _class_warning(names: Sequence[str]) -> list[str]:
    shown = [markdown_text(name) for name in names[:_SHOWN_CLASSES]]
    more = len(names) - len(shown)
    return [
        "> **The names of the classes are published with this model.** If they are people's names, the model tells "
        "everybody whom it was trained on, whatever its defense.",
        "",
        f"<details><summary>{len(names)} class names</summary>",
        "",
        ", ".join(shown) + (f" and {more} more" if more else ""),
        "",
        "</details>",
    ]


def _method_lines(method: str) -> list[str]:
    prose = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", method).replace("``", "`")
    description, _, source = prose.partition("\nSource:")
    first = description.strip().split("\n\n")[0]
    lines = [" ".join(first.split())]
    return lines + (["", "Source: " + markdown_text(source)] if source.strip() else [])


def _load(evidence: dict[str, Any], details: CardDetails) -> str:
    source = details.source or details.name
    ours = evidence["model"]["class"].startswith(("CALoRFor", "DefendedFor"))
    lines = ["## How to load", "", "```python"]
    lines += ["import calor_hf  # makes transformers know models of this kind"] if ours else []
    lines += [
        "from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline",
        "",
        f"model = AutoModelForImageClassification.from_pretrained({source!r})",
        f"processor = AutoImageProcessor.from_pretrained({source!r})",
        f'classify = pipeline("image-classification", {source!r})',
        "```",
    ]
    if ours and details.remote_code:
        lines += ["", "Without calor_hf, the code that comes with the model does the same: leave out the import, and "
                  "pass `trust_remote_code=True`."]  # fmt: skip
    elif not ours:
        lines += ["", "This is a stock model of transformers; nothing else is needed."]
    return "\n".join(lines)


def _measured(evidence: dict[str, Any], details: CardDetails) -> str:
    record, audit = evidence["training"], evidence["audit"]
    lines = ["## Use and leakage", ""]
    if record is None and audit is None:
        lines += ["No one measured what this model is good for."]
    else:
        lines += use_and_leakage(evidence)
    if details.curves:
        lines += ["", f"![Loss, accuracy and confidence while training]({CURVES})"]
    if audit is None:
        return "\n".join([*lines, "", "**Not audited.** This card knows of no attack on this model, so it says nothing "
                          "about what can be rebuilt from it."])  # fmt: skip
    lines += ["", "### Attacks that were tried", "", *attack_table(audit)]
    lines += ["", *other_threats(audit)]
    if details.reconstructions:
        lines += ["", "### What was rebuilt", "", f"![A row a person: images rebuilt of them]({RECONSTRUCTIONS})"]
        if audit["synthetic"]:
            lines += ["", "The people are drawn; they do not exist."]
    return "\n".join([*lines, "", *every_number(audit)])


def _limits(evidence: dict[str, Any]) -> str:
    audit, record = evidence["audit"], evidence["training"]
    lines = ["## Limits", "", "- No defended model is safe. An audit shows what some attacks got with some effort, and "
             "nothing about others."]  # fmt: skip
    if audit is not None:
        lines += _limits_of(audit)
    target = None if record is None else record["target_confidence"]
    reached = None if record is None else _last(record["measured"])["train_confidence_correct"]
    if target is not None and reached is not None:
        lines.append(
            f"- Training aims at a score of {target:.2f} for the true class; on training images it is {reached:.2f}. "
            "Thresholds tuned on another model have to move."
        )
    lines.append(
        "- It is about rebuilding what a class looks like. Who was in the training data, stolen copies of the model "
        "and poisoned data are other matters."
    )
    return "\n".join(lines)


def _limits_of(audit: dict[str, Any]) -> list[str]:
    lines = []
    if audit["budget"] < 1:
        effort = share(audit["budget"], 0)
        lines.append(f"- The attacks ran with {effort} of their published effort; with all of it more may leak.")
    if not any(attack["adaptive"] for attack in audit["attacks"]):
        lines.append("- No attack that knows the defense was run; such attacks get more out of defended models.")
    accuracy = audit["networks"].get("evaluation_model_accuracy")
    if accuracy is not None:
        lines.append(
            f"- The evaluation model names the right person on {share(accuracy)} of images that are new to it."
        )
    elif "evaluation_model" in audit["evaluation_models"]:
        lines.append("- The evaluation model was not tried on held-out images, so no one knows how well it judges.")
    if not {"second_evaluation_model", "embedding"} & set(audit["evaluation_models"]):
        lines.append("- One evaluation model alone can be fooled; a second one or face verification was not asked.")
    if any(attack["prior"] == "renderer" for attack in audit["attacks"]):
        lines.append("- The attacker's prior was the program that drew the people: stronger than any real one.")
    if audit["identities"] > audit["identities_attacked"]:
        lines.append(f"- {audit['identities_attacked']} of {audit['identities']} people were attacked.")
    attack = strongest(audit)
    floor = None if attack is None else chance_level_of(attack, HEADLINE)
    if floor is not None:
        lines.append(
            f"- Images that know nothing of the person are recognized in {share(floor)} of the cases: read the "
            "numbers against that."
        )
    return lines


def _about(evidence: dict[str, Any], details: CardDetails) -> str:
    record, audit, model = evidence["training"], evidence["audit"], evidence["model"]
    dataset = details.dataset or model["dataset"] or (record and record["data"])
    base = details.base_model or model["base_model"]
    rows = [
        f"- License: {markdown_text(details.license) if details.license else 'none was given'}",
        f"- Base model: {markdown_text(base) if base else 'not named'}",
        f"- Data: {markdown_text(dataset) if dataset else 'not named'}",
    ]
    if record is not None:
        stages = ", ".join(f"{steps} steps of stage `{_code(name)}`" for name, steps in record["steps"].items())
        rows.append(f"- Trained with calor_hf {markdown_text(record['version'])}, seed {record['seed']}; {stages}")
    if audit is not None:
        rows.append(f"- Audited with calor_hf {markdown_text(audit['version'])} on "
                    f"{markdown_text(audit['created'][:10])}, "
                    f"seed {audit['seed']}; checksum of the report `{_code(audit['checksum'])}`")  # fmt: skip
    rows.append(f"- Card written by calor_hf {evidence['calor_hf']}; its numbers come from [`{EVIDENCE}`]({EVIDENCE})")
    citation = ["", "## Citation", "", "```bibtex", _CITATION, "```"] if model["defense"] == "calor" else []
    return "\n".join(["## About", "", *rows, *citation])


def _last(measured: dict[str, dict[str, float]]) -> dict[str, float]:
    return measured[next(reversed(measured))]


def _listed(value: str | None) -> list[str] | None:
    return None if value is None else [value]


def _code(value: object) -> str:
    return re.sub(r"[`|<>\n\r]", "", number(value) if isinstance(value, float) else str(value))
