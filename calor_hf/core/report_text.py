"""A report as text, the same on every page: numbers, verdict, caveats, Markdown."""

import math
from collections.abc import Sequence

from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import HEADLINE, IDENTITIES, AttackResult, LeakageReport, Measure

DASH = "–"
DIRECTIONS = {"leakage": "more leaks more", "privacy": "more leaks less", "neither": ""}
TABLE_HEAD = ("attack", "measure", "value", "95 % interval", "chance level", "images", "people", "")
GOOD_ACCURACY = 0.9
"""Accuracy on held-out images below which an evaluation model is called weak."""


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


def summary(report: LeakageReport) -> str:
    """Return verdict and caveats as text for a terminal."""
    return "\n".join([*verdict(report), "", *(f"- {line}" for line in report.caveats)])


def verdict(report: LeakageReport) -> list[str]:
    """Return sentences for readers who do not know the code; the first one is the headline."""
    attack = report.strongest
    if attack is None:
        return ["The audit has no attack accuracy, so it says nothing about what leaks."]
    headline = IDENTITIES if attack.parts else HEADLINE
    found, identities, both = (attack.get(name) for name in (HEADLINE, IDENTITIES, "both_evaluation_models@1"))
    measure, chance = attack.get(headline), attack.chance_level(headline)
    assert measure is not None  # `strongest` selects by this measure
    bracket = f" (95 % interval {interval(measure)})" if interval(measure) else ""
    recognized, tries = "", report.images_per_class * max(1, len(attack.parts))
    if identities is not None:
        recognized = f"{round(identities.value * identities.identities)} of {identities.identities} people"
    if attack.parts:
        lines = [
            f"Worst case over {len(attack.parts)} attacks: an independent network recognized {recognized} in at "
            f"least one of {tries} rebuilt images{bracket}."
        ]
        by_chance = f"match {percent(chance, 1)} of the people in as many tries"
    else:
        kind = "attack" if len(report.attacks) == 1 else f"strongest of {len(report.attacks)} attacks"
        lines = [
            f"The {kind} ({attack.name}) rebuilt {measure.images} images of {measure.identities} people. An "
            f"independent network recognized the right person in {percent(measure.value)} of them{bracket}."
        ]
        lines += [f"{recognized} were recognized in at least one of {tries} tries."] if recognized else []
        by_chance = f"are recognized in {percent(chance, 1)} of the cases"
    if not math.isnan(chance):
        leaks = "The model leaks its training identities."
        safe = "This audit found no more than chance; that does not prove the model safe."
        conclusion = leaks if measure.low > chance else safe
        lines.append(f"Images that know nothing of the person {by_chance}. {conclusion}")
    if attack.parts and found is not None:
        lines.append(f"Of all {found.images} rebuilt images, {percent(found.value)} were recognized.")
    if both is not None:
        lines.append(f"Two evaluation models of different kinds agree on {percent(both.value)} of the images.")
    return lines


def caveats(report: LeakageReport) -> list[str]:
    """Return the caveats of a report as sentences that may be published: without paths, names of models or classes."""
    roles, found = report.networks, []
    for attack in report.attacks:
        if attack.effort < 1:
            found.append(
                f"{attack.name} ran with {percent(attack.effort, 1)} of its source's effort; with all of it more may "
                "leak."
            )
        if attack.changed:
            found.append(f"{attack.name} ran with other settings than its source: {', '.join(attack.changed)}.")
    if not any(attack.adaptive for attack in report.attacks):
        found.append("No attack that knows the defense was run; such attacks recover more from defended models.")
    if any(attack.settings.get("fast") for attack in report.attacks):
        found.append(
            "The ensemble stopped at each person as soon as the attacked model agreed (fast mode). Adversarial images "
            "achieve that too, so attacks that would have recovered more may have been skipped."
        )
    accuracy = accuracy_of(report, "evaluation_model")
    if math.isnan(accuracy):
        found.append("The evaluation model was not tested on held-out images, so its reliability is unknown.")
    else:
        found.append(f"The evaluation model recognizes the right person in {percent(accuracy, 1)} of held-out images.")
    if accuracy < GOOD_ACCURACY:
        found.append(
            "This evaluation model is weak: it misses people who are shown, so more leaks than the numbers say. Train "
            "a better one before relying on them."
        )
    second = accuracy_of(report, "second_evaluation_model")
    if second < GOOD_ACCURACY:
        found.append(
            f"The second evaluation model is weak: it recognizes the right person in {percent(second, 1)} of held-out "
            "images."
        )
    if not {"second_evaluation_model", "embedding"} & set(roles):
        found.append(
            "A single evaluation model can be fooled by images that resemble no one; neither a second one "
            "(--second-evaluation-model) nor face verification (--embedding) was used."
        )
    if any(attack.prior == "renderer" for attack in report.attacks):
        found.append(
            "The attacker's prior was the program that drew the images. No real attacker has it, so the numbers are an "
            "upper bound for priors of this kind."
        )
    if report.data.identities > len(report.labels):
        found.append(f"{len(report.labels)} of {report.data.identities} people were attacked.")
    found.append(
        "No audit proves a model safe: it shows what these attacks recovered with this effort, prior and evaluation "
        "models. Other threats (membership inference, stolen models, poisoned data) are separate."
    )
    return found


def accuracy_of(report: LeakageReport, role: str) -> float:
    """Return the accuracy of a network on held-out images of the attacked people; NaN if unknown."""
    network = report.networks.get(role)
    return math.nan if network is None or network.accuracy is None else network.accuracy.value


def to_markdown(report: LeakageReport) -> str:
    """Return verdict, caveats and every number as Markdown."""
    sources = "; ".join(dict.fromkeys(name for attack in report.attacks for name in attack.chance_levels))
    cost = [
        [one.name, f"{one.cost.seconds:.0f}", f"{one.cost.target_passes:,}", f"{one.cost.target_gradients:,}"]
        for one in report.attacks
    ]
    parts = [
        f"# Leakage report: {markdown_text(report.target.name or report.target.model)}",
        *map(markdown_text, verdict(report)),
        "## Before you rely on it",
        "\n".join(f"- {markdown_text(line)}" for line in report.caveats),
        "## Numbers",
        measure_table(report),
        f"Chance levels: {markdown_text(sources)}.",
    ]
    for title, measures in (
        ("## The model on held-out images", report.utility), ("## Other threats, for orientation", report.other_threats)
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
    return "\n\n".join(parts) + "\n"
