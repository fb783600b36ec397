"""Tables of a model card."""

from typing import Any

from calor_hf.core.plain_text import markdown_text
from calor_hf.hub.evidence import HEADLINE, IDENTITIES, chance_level_of, measure_of, strongest

DASH = "–"
_USE = (
    ("Test accuracy", "accuracy", True),
    ("Test negative log-likelihood, nats", "nll", False),
    ("Test calibration error", "ece", False),
    ("Training accuracy", "train_accuracy", True),
    ("Training confidence, correct images", "train_confidence_correct", False),
)


def share(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash for none."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None) -> str:
    """A number with four digits; a dash for none."""
    return DASH if value is None else f"{value:.4g}"


def shown(measure: dict[str, Any] | None) -> str:
    """A measure's value, and its interval where there is one."""
    if measure is None or measure["value"] is None:
        return DASH
    form = share if measure["unit"] == "share" else number
    low, high = measure["low"], measure["high"]
    interval = "" if low is None or high is None else f" ({form(low)} to {form(high)})"
    return form(measure["value"]) + interval


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; cells are escaped already."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def use_and_leakage(evidence: dict[str, Any]) -> list[str]:
    """What the model is good for, and what was rebuilt from it, in one table."""
    record, audit = evidence["training"], evidence["audit"]
    measured = {} if record is None else record["measured"]
    columns = list(measured) or ["this model"]
    rows = []
    for title, name, is_share in _USE if record is not None else ():
        form = share if is_share else number
        rows.append([title, *(form(measured[column][name]) for column in columns)])
    if audit is not None:
        empty = [DASH] * (len(columns) - 1)
        if record is None:
            rows += [
                [f"{markdown_text(one['name'])}, on images new to the model", shown(one)] for one in audit["utility"]
            ]
        attack = strongest(audit)
        for title, name in (("Rebuilt images recognized", HEADLINE), ("People recognized at least once", IDENTITIES)):
            found = None if attack is None else measure_of(attack, name)
            if attack is not None and found is not None:
                rows.append([f"{title}, by {markdown_text(attack['name'])}", *empty, shown(found)])
                if chance_level_of(attack, name) is not None:
                    rows.append([f"{title}, by chance", *empty, share(chance_level_of(attack, name))])
    words = ["In brackets: 95 % intervals over people."] if audit is not None else []
    if record is not None:
        words = [f"On {record['test_images']} test images.", *words]
    return [*table(["", *map(markdown_text, columns)], rows), "", " ".join(words)]


def attack_table(audit: dict[str, Any]) -> list[str]:
    """Every attack with its effort, what it got, and what chance gets."""
    rows = [
        [
            markdown_text(attack["name"]),
            "yes" if attack["adaptive"] else "no",
            markdown_text(attack["prior"] or DASH),
            shown(measure_of(attack, HEADLINE)),
            share(chance_level_of(attack, HEADLINE)),
            shown(measure_of(attack, IDENTITIES)),
            share(chance_level_of(attack, IDENTITIES)),
            _effort(attack["cost"]),
        ]
        for attack in audit["attacks"]
    ]
    head = ["attack", "knows the defense", "prior", "images recognized", "by chance", "people recognized",
            "by chance", "effort"]  # fmt: skip
    return [
        *table(head, rows),
        "",
        f"{audit['images_per_class']} images of each of {audit['identities_attacked']} people, "
        f"{share(audit['budget'], 0)} of the published effort, seed {audit['seed']}, calor_hf "
        f"{markdown_text(audit['version'])}. Evaluation models: {', '.join(map(markdown_text, audit['evaluation_models'])) or 'none'}.",
    ]


def other_threats(audit: dict[str, Any]) -> list[str]:
    """Numbers of other threats, if there are any."""
    rows = [[markdown_text(one["name"]), shown(one)] for one in audit["other_threats"]]
    return ["### Other threats", "", *table(["measure", "value"], rows)] if rows else []


def every_number(audit: dict[str, Any]) -> list[str]:
    """Every number of the audit, folded away."""
    rows = [
        [
            markdown_text(attack["name"]),
            markdown_text(measure["name"]),
            shown(measure),
            {"leakage": "more leaks more", "privacy": "more leaks less"}.get(measure["more_is"], ""),
            str(measure["images"]),
            str(measure["identities"]),
        ]
        for attack in audit["attacks"]
        for measure in attack["measures"]
    ]
    head = ["attack", "measure", "value", "", "images", "identities"]
    return ["<details><summary>Every number</summary>", "", *table(head, rows), "", "</details>"]


def _effort(cost: dict[str, float]) -> str:
    words = {"target_passes": "passes", "target_gradients": "gradients", "seconds": "s"}
    return ", ".join(f"{cost[name]:.0f} {word}" for name, word in words.items() if cost.get(name))
