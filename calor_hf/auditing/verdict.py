"""Verdict of a report in plain sentences, for the terminal and the top of every page."""

import math

from calor_hf.core.report import HEADLINE, IDENTITIES, AttackResult, LeakageReport, Measure
from calor_hf.core.report_text import interval, percent


def summary(report: LeakageReport) -> str:
    """Return verdict and caveats as text for a terminal."""
    return "\n".join([*verdict(report), "", *(f"- {line}" for line in report.caveats)])


def verdict(report: LeakageReport) -> list[str]:
    """Return sentences for readers who do not know the code; the first one is the headline."""
    attack = report.strongest
    if attack is None:
        return ["The audit has no attack accuracy, so it says nothing about what leaks."]
    lines = _of_ensemble(report, attack) if attack.parts else _of_attack(report, attack)
    both = attack.get("both_evaluation_models@1")
    if both is not None:
        lines.append(f"Two evaluation models of different kinds agree on {percent(both.value)} of the images.")
    return lines


def _of_attack(report: LeakageReport, attack: AttackResult) -> list[str]:
    found, identities = attack.get(HEADLINE), attack.get(IDENTITIES)
    assert found is not None  # `strongest` selects by this measure
    kind = "attack" if len(report.attacks) == 1 else f"strongest of {len(report.attacks)} attacks"
    lines = [
        f"The {kind} ({attack.name}) rebuilt {found.images} images of {found.identities} people. An independent "
        f"network recognized the right person in {percent(found.value)} of them{_bracket(found)}."
    ]
    if identities is not None:
        lines.append(f"{_count(identities)} were recognized in at least one of {report.images_per_class} tries.")
    return lines + _against_chance(found, attack.chance_level(HEADLINE), "are recognized in {} of the cases")


def _of_ensemble(report: LeakageReport, attack: AttackResult) -> list[str]:
    found, identities = attack.get(HEADLINE), attack.get(IDENTITIES)
    assert identities is not None  # `strongest` selects by this measure
    lines = [
        f"Worst case over {len(attack.parts)} attacks: an independent network recognized {_count(identities)} in at "
        f"least one of {report.images_per_class * len(attack.parts)} rebuilt images{_bracket(identities)}."
    ]
    chance = attack.chance_level(IDENTITIES)
    lines += _against_chance(identities, chance, "match {} of the people in as many tries")
    if found is not None:
        lines.append(f"Of all {found.images} rebuilt images, {percent(found.value)} were recognized.")
    return lines


def _against_chance(found: Measure, chance: float, text: str) -> list[str]:
    if math.isnan(chance):
        return []
    conclusion = (
        "The model leaks its training identities."
        if found.low > chance
        else "This audit found no more than chance; that does not prove the model safe."
    )
    return [f"Images that know nothing of the person {text.format(percent(chance, 1))}. {conclusion}"]


def _count(identities: Measure) -> str:
    return f"{round(identities.value * identities.identities)} of {identities.identities} people"


def _bracket(measure: Measure) -> str:
    return f" (95 % interval {interval(measure)})" if interval(measure) else ""
