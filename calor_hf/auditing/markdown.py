"""The report as Markdown."""

import math
import re

from calor_hf.auditing.report import LeakageReport
from calor_hf.auditing.verdict import interval, limits, number, verdict
from calor_hf.core.plain_text import one_line
from calor_hf.metrics import Measure

DIRECTIONS = {"leakage": "more leaks more", "privacy": "more leaks less", "neither": ""}


def measure_rows(report: LeakageReport) -> list[list[str]]:
    """Attack, measure, value, interval, chance level, images and people of every number, as text."""
    rows = []
    for attack in report.attacks:
        for measure in attack.measures:
            chance_levels = [
                m for measures in attack.chance_levels.values() for m in measures if m.name == measure.name
            ]
            rows.append(
                [
                    attack.name,
                    measure.name,
                    number(measure),
                    interval(measure),
                    ", ".join(number(floor) for floor in chance_levels),
                    str(measure.images),
                    str(measure.identities),
                    DIRECTIONS[measure.more_is],
                ]
            )
    return rows


def to_markdown(report: LeakageReport) -> str:
    """A page of Markdown: verdict, limits, every number."""
    head = ["attack", "measure", "value", "95 % interval", "chance_levels", "images", "identities", ""]
    parts = [
        f"# Leakage report: {_safe(report.target['name'] or report.target['model'])}",
        *(_safe(line) for line in verdict(report)),
        "## Before you rely on it",
        "\n".join(f"- {_safe(line)}" for line in limits(report)),
        "## Numbers",
        _table(head, measure_rows(report)),
        "Chance levels: "
        + _safe("; ".join(dict.fromkeys(name for a in report.attacks for name in a.chance_levels)))
        + ".",
        *_measures("## The model on held-out images", report.utility),
        *_measures("## Other threats, for orientation", report.other_threats),
        "## How",
        _table(
            ["attack", "seconds", "images through the target", "with gradient"],
            [
                [a.name, f"{a.cost['seconds']:.0f}", f"{a.cost['target_passes']:,}", f"{a.cost['target_gradients']:,}"]
                for a in report.attacks
            ],
        ),
        f"Seed {report.seed}, {report.images_per_class} images a person, {len(report.labels)} people, "
        f"budget {report.budget:g}; data: {_safe(report.data['name'])}; calor_hf "
        f"{_safe(report.version)}, {_safe(report.created)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _measures(title: str, measures: list[Measure]) -> list[str]:
    if not measures:
        return []
    rows = [[m.name, number(m), interval(m), m.note] for m in measures if not math.isnan(m.value) or m.note]
    return [title, _table(["measure", "value", "95 % interval", ""], rows)]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_safe(cell) for cell in line) + " |" for line in lines)


def _safe(text: str) -> str:
    """Text that stays text: no tag, link, code or cell comes of it; names of measures stay readable in the source."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])|[\\`*\[\]|]", r"\\\g<0>", line)
