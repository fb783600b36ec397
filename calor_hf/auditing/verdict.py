"""The report in plain words: what leaked, what it is worth, and what nobody looked at."""

import math

from calor_hf.auditing.report import HEADLINE, PEOPLE, AttackResult, LeakageReport
from calor_hf.metrics import Measure

GOOD_JUDGE = 0.9


def percent(value: float, digits: int = 0) -> str:
    """A share as a percentage; a dash for NaN."""
    return "–" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def number(measure: Measure) -> str:
    """A measure's value as its unit wants it."""
    if math.isnan(measure.value):
        return "–"
    return percent(measure.value, 1) if measure.unit == "share" else f"{measure.value:.3g}"


def interval(measure: Measure) -> str:
    """A measure's 95 % interval; nothing where there is none."""
    if math.isnan(measure.low) or math.isnan(measure.high):
        return ""
    if measure.unit == "share":
        return f"{100 * measure.low:.0f}–{100 * measure.high:.0f} %"
    return f"{measure.low:.3g}–{measure.high:.3g}"


def verdict(report: LeakageReport) -> list[str]:
    """Sentences for somebody who has not read the code; the first one is the headline."""
    if report.ensemble is not None:
        return [*_worst_case(report, report.ensemble), *_agreement(report.ensemble)]
    try:
        worst = report.worst()
    except ValueError:
        return ["The audit has no attack accuracy, so it says nothing about what leaks."]
    found = worst.get(HEADLINE)
    assert found is not None  # `worst` chose it by this measure
    floor = worst.floor(HEADLINE)
    tries = "attack" if len(report.attacks) == 1 else f"strongest of {len(report.attacks)} attacks"
    lines = [
        f"The {tries} ({worst.name}) rebuilt {found.images} pictures of {found.people} people. An independent network "
        f"recognised the right person in {percent(found.value)} of them"
        + (f" (95 % interval {interval(found)})" if interval(found) else "")
        + "."
    ]
    people = worst.get(PEOPLE)
    if people is not None:
        lines.append(
            f"{round(people.value * people.people)} of {people.people} people were recognised in at least one of "
            f"{report.images_per_class} tries."
        )
    if not math.isnan(floor):
        lines.append(f"Pictures that know nothing of the person reach {percent(floor, 1)}. {_conclusion(found, floor)}")
    return lines + _agreement(worst)


def _worst_case(report: LeakageReport, ensemble: AttackResult) -> list[str]:
    """Whom at least one of several attacks gave away, beside what as many tries get by chance."""
    people, found = ensemble.get(PEOPLE), ensemble.get(HEADLINE)
    assert people is not None  # as of every ensemble
    tries = report.images_per_class * len(ensemble.parts)
    floor = ensemble.floor(PEOPLE)
    lines = [
        f"Worst case over {len(ensemble.parts)} attacks: an independent network recognised "
        f"{round(people.value * people.people)} of {people.people} people in at least one of {tries} rebuilt pictures"
        + (f" (95 % interval {interval(people)})" if interval(people) else "")
        + "."
    ]
    if not math.isnan(floor):
        lines.append(
            f"Pictures that know nothing of the person hit {percent(floor, 1)} of the people in as many tries. "
            + _conclusion(people, floor)
        )
    if found is not None:
        lines.append(f"Of all {found.images} rebuilt pictures, {percent(found.value)} were recognised.")
    return lines


def _conclusion(found: Measure, floor: float) -> str:
    if not math.isnan(found.low) and found.low > floor:
        return "So the model gives its training people away."
    return "So this audit found no more than chance gives; that is no proof of safety."


def _agreement(attack: AttackResult) -> list[str]:
    both = attack.get("both_judges@1")
    if both is None or math.isnan(both.value):
        return []
    return [f"Two judges of different kinds agree on {percent(both.value)} of the pictures."]


def limits(report: LeakageReport) -> list[str]:
    """What has to be known before somebody relies on the verdict."""
    lines = []
    if report.budget < 1:
        lines.append(
            f"The attacks ran with {percent(report.budget)} of their published effort: with all of it (--budget "
            "paper), more may leak."
        )
    if not any(attack.adaptive for attack in report.attacks):
        lines.append("No attack that knows the defence was run; such attacks get more out of defended models.")
    if any(attack.settings.get("fast") for attack in report.attacks):
        lines.append(
            "The ensemble stopped at each person as soon as the attacked model agreed (fast): adversarial pictures do "
            "that, so later attacks may have been spared where they would have told more."
        )
    accuracy = report.networks.get("judge_accuracy")
    judge = f"The judge ({report.networks.get('judge')})"
    if accuracy is None:
        lines.append(f"{judge} was not tried on held-out pictures, so nobody knows how well it judges.")
    else:
        lines.append(f"{judge} names the right person on {percent(accuracy, 1)} of pictures that are new to it.")
        if accuracy < GOOD_JUDGE:
            lines.append(
                "That is a poor judge: it misses people who are there. Train a better one before you rely on it."
            )
    second = report.networks.get("second_judge_accuracy")
    if second is not None and second < GOOD_JUDGE:
        lines.append(f"The second judge names the right person on {percent(second, 1)} of new pictures: a poor one.")
    if "second_judge" not in report.networks and "embedding" not in report.networks:
        lines.append(
            "One judge alone can be fooled by pictures that look like nobody; a second one (--second-judge) or face "
            "verification (--embedding) was not asked."
        )
    if any(attack.generator.get("generator") == "renderer" for attack in report.attacks):
        lines.append(
            "The attacker's prior was the very program that drew the pictures. No real attacker has that: the numbers "
            "bound from above what priors of this kind can do."
        )
    if report.data["people"] > len(report.labels):
        lines.append(f"{len(report.labels)} of {report.data['people']} people were attacked.")
    lines.append(
        "No audit proves a model safe. It shows what these attacks got with this effort, this prior and these judges; "
        "other threats (who was in the training data, stolen models, poisoned data) are other matters."
    )
    return lines
