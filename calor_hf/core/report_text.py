"""A report as text, the same on every page: numbers, verdict, caveats, Markdown."""

import math
from collections.abc import Sequence

from calor_hf.core.decoy_sentences import SECRET
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import (
    EMBEDDING,
    HEADLINE,
    IDENTITIES,
    LEADING,
    MATCH,
    MATCHED,
    AttackResult,
    LeakageReport,
    Measure,
    decoy_hits,
    guesses,
)  # fmt: skip

DASH = "–"
DIRECTIONS = {"leakage": "more leaks more", "privacy": "more leaks less", "neither": ""}
TABLE_HEAD = ("attack", "measure", "value", "95 % interval", "chance level", "images", "people", "")
POWER_HEAD = ("images", "measure", "recognized", "by chance", "people recognized", "by chance", "")
POWER = {
    "resolution": "private images at the size of the prior",
    "prior": "private images projected onto the prior",
    "guided": "reconstructions guided by the truth",
    "control": "reconstructions from the undefended control",
}
"""Titles of the measurements of power."""
SHARES = {
    MATCH: "rebuilt images that show the right person",
    EMBEDDING: "rebuilt images recognized by the embedding",
    HEADLINE: "rebuilt images recognized by the evaluation model",
    MATCHED: "people shown in at least one image",
    IDENTITIES: "people recognized by the evaluation model in at least one image",
    **{guesses(name): "people recognized in the attacker's single guess" for name in LEADING},
    **{decoy_hits(name): "rebuilt images that show any of a class's people" for name in LEADING},
}
"""Titles of the measures that summarize an attack."""


def percent(value: float, digits: int = 1) -> str:
    """Return a share as a percentage, never rounded to all or nothing; a dash for NaN."""
    if math.isnan(value):
        return DASH
    text, least = f"{100 * value:.{digits}f}", 10.0**-digits
    if value > 0 and float(text) == 0:
        return f"< {least:g} %"
    return f"> {100 - least:g} %" if value < 1 and float(text) == 100 else f"{text} %"


def points(value: float, digits: int = 1) -> str:
    """Return a signed difference of shares in percentage points, with more digits if it would look like 0 or 100."""
    text = f"{100 * value:+.{digits}f}"
    return text if abs(float(text)) not in (0, 100) else f"{100 * value:+.6g}"


def number(value: float, unit: str = "") -> str:
    """Return a number in its unit: a percentage for shares, four significant digits for others; a dash for NaN."""
    if math.isnan(value):
        return DASH
    return percent(value) if unit == "share" else f"{value:.4g}"


def value_of(measure: Measure | None) -> str:
    """Return a measure's value; a dash for None or NaN."""
    return DASH if measure is None else number(measure.value, measure.unit)


def interval(measure: Measure, digits: int = 1) -> str:
    """Return a measure's 95 % interval, or an empty string; ``digits`` are those of a share."""
    low, high = measure.low, measure.high
    if math.isnan(low) or math.isnan(high):
        return ""
    if measure.unit == "share":
        return f"{percent(low, digits).removesuffix(' %')}–{percent(high, digits)}"
    return f"{low:.4g} to {high:.4g}"


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


def power_rows(report: LeakageReport) -> list[list[str]]:
    """Return one row of :data:`POWER_HEAD` for each measurement of the audit's power."""
    return [
        [
            POWER[one.name], one.images.name, with_interval(one.images), percent(one.chance),
            with_interval(one.identities), percent(one.chance_identities), one.note,
        ]
        for one in report.power
    ]  # fmt: skip


def summary(report: LeakageReport) -> str:
    """Return verdict, power and caveats as text for a terminal."""
    lines = [*[SECRET] * report.secret, *report.verdict.sentences, *(f"- {line}" for line in report.verdict.reasons)]
    for name, _, images, chance, identities, chance_identities, note in power_rows(report):
        lines.append(
            f"{name}: {images} of images recognized, by chance {chance}; {identities} of people, by chance "
            f"{chance_identities}" + (f" ({note})" if note else "")
        )
    return "\n".join([*lines, "", *(f"- {line}" for line in report.caveats)])


def to_markdown(report: LeakageReport) -> str:
    """Return verdict, caveats and every number as Markdown."""
    sources = "; ".join(dict.fromkeys(name for attack in report.attacks for name in attack.chance_levels))
    cost = [
        [one.name, f"{one.cost.seconds:.0f}", f"{one.cost.target_passes:,}", f"{one.cost.target_gradients:,}"]
        for one in report.attacks
    ]
    parts = [
        f"# Leakage report: {markdown_text(report.target.name or report.target.model)}",
        *map(markdown_text, [SECRET] * report.secret + report.verdict.sentences),
        "\n".join(f"- {markdown_text(line)}" for line in report.verdict.reasons),
        *(["## Could this audit have found anything?", table(POWER_HEAD, power_rows(report))] if report.power else []),
        "## Before you rely on it",
        "\n".join(f"- {markdown_text(line)}" for line in report.caveats),
        "## Numbers",
        measure_table(report),
        f"Chance levels: {markdown_text(sources)}.",
    ]
    for title, measures in (
        ("## The model on private images", report.utility), ("## Other threats, for orientation", report.other_threats)
    ):  # fmt: skip
        rows = [[one.name, value_of(one), interval(one), one.note] for one in measures]
        parts += [title, table(["measure", "value", "95 % interval", ""], rows)] if rows else []
    parts += [
        "## How",
        table(["attack", "seconds", "images through the target", "with gradient"], cost),
        f"Seed {report.seed}, {report.images_per_class} images per person, {len(report.labels)} people, effort "
        f"{percent(report.effort)}; data: {markdown_text(report.data.name)}; calor_hf {markdown_text(report.version)}, "
        f"{markdown_text(report.created)}.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"
