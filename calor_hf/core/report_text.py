"""Numbers of a report as text, the same on every page: terminal, Markdown, HTML, model card."""

import math
from collections.abc import Sequence

from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import AttackResult, LeakageReport, Measure

DASH = "–"
DIRECTIONS = {"leakage": "more leaks more", "privacy": "more leaks less", "neither": ""}
TABLE_HEAD = ("attack", "measure", "value", "95 % interval", "chance level", "images", "people", "")


def percent(value: float, digits: int = 0) -> str:
    """Return a share as a percentage; a dash for NaN."""
    return DASH if math.isnan(value) else f"{100 * value:.{digits}f} %"


def number(value: float, unit: str = "") -> str:
    """Return a number in its unit: one decimal for shares, four significant digits for others; a dash for NaN."""
    if math.isnan(value):
        return DASH
    return percent(value, 1) if unit == "share" else f"{value:.4g}"


def value_of(measure: Measure | None) -> str:
    """Return a measure's value; a dash for None or NaN."""
    return DASH if measure is None else number(measure.value, measure.unit)


def interval(measure: Measure) -> str:
    """Return a measure's 95 % interval, or an empty string."""
    low, high = measure.low, measure.high
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{100 * low:.0f}–{100 * high:.0f} %" if measure.unit == "share" else f"{low:.4g} to {high:.4g}"


def with_interval(measure: Measure | None) -> str:
    """Return value and interval of a measure."""
    text = "" if measure is None else interval(measure)
    return f"{value_of(measure)} ({text})" if text else value_of(measure)


def chance_levels(attack: AttackResult, measure: Measure) -> dict[str, str]:
    """Return the chance levels of one measure by their source; empty for a source that has none."""
    return {
        source: next((value_of(one) for one in measures if one.name == measure.name), "")
        for source, measures in attack.chance_levels.items()
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are escaped."""
    lines = [[markdown_text(cell) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_table(report: LeakageReport) -> str:
    """Return every number of every attack as a Markdown table."""
    rows = []
    for attack in report.attacks:
        for one in attack.measures:
            chance = ", ".join(filter(None, chance_levels(attack, one).values()))
            note = "; ".join(filter(None, (DIRECTIONS[one.direction], one.note)))
            numbers = [value_of(one), interval(one), chance, str(one.images), str(one.identities)]
            rows.append([attack.name, one.name, *numbers, note])
    return table(TABLE_HEAD, rows)
