"""The report in plain words: what leaked, what it is worth, and what no one looked at."""

import math

from calor_hf.auditing.report import HEADLINE, IDENTITIES, AttackResult, LeakageReport
from calor_hf.metrics import Measure

GOOD_ACCURACY = 0.9


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
    """Sentences for someone who has not read the code; the first one is the headline."""
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
        f"The {tries} ({worst.name}) rebuilt {found.images} images of {found.identities} people. An independent network "
        f"recognized the right person in {percent(found.value)} of them"
        + (f" (95 % interval {interval(found)})" if interval(found) else "")
        + "."
    ]
    identities = worst.get(IDENTITIES)
    if identities is not None:
        lines.append(
            f"{round(identities.value * identities.identities)} of {identities.identities} people were recognized in at least one of "
            f"{report.images_per_class} tries."
        )
    if not math.isnan(floor):
        lines.append(f"Images that know nothing of the person reach {percent(floor, 1)}. {_conclusion(found, floor)}")
    return lines + _agreement(worst)


def _worst_case(report: LeakageReport, ensemble: AttackResult) -> list[str]:
    """Whom at least one of several attacks gave away, beside what as many tries get by chance."""
    identities, found = ensemble.get(IDENTITIES), ensemble.get(HEADLINE)
    assert identities is not None  # as of every ensemble
    tries = report.images_per_class * len(ensemble.parts)
    floor = ensemble.floor(IDENTITIES)
    lines = [
        f"Worst case over {len(ensemble.parts)} attacks: an independent network recognized "
        f"{round(identities.value * identities.identities)} of {identities.identities} people in at least one of {tries} rebuilt images"
        + (f" (95 % interval {interval(identities)})" if interval(identities) else "")
        + "."
    ]
    if not math.isnan(floor):
        lines.append(
            f"Images that know nothing of the person hit {percent(floor, 1)} of the people in as many tries. "
            + _conclusion(identities, floor)
        )
    if found is not None:
        lines.append(f"Of all {found.images} rebuilt images, {percent(found.value)} were recognized.")
    return lines


def _conclusion(found: Measure, floor: float) -> str:
    if not math.isnan(found.low) and found.low > floor:
        return "So the model gives its training people away."
    return "So this audit found no more than chance gives; that is no proof of safety."


def _agreement(attack: AttackResult) -> list[str]:
    both = attack.get("both_evaluation_models@1")
    if both is None or math.isnan(both.value):
        return []
    return [f"Two evaluation models of different kinds agree on {percent(both.value)} of the images."]


def limits(report: LeakageReport) -> list[str]:
    """What has to be known before someone relies on the verdict."""
    lines = []
    if report.budget < 1:
        lines.append(
            f"The attacks ran with {percent(report.budget)} of their published effort: with all of it (--budget "
            "paper), more may leak."
        )
    if not any(attack.adaptive for attack in report.attacks):
        lines.append("No attack that knows the defense was run; such attacks get more out of defended models.")
    if any(attack.settings.get("fast") for attack in report.attacks):
        lines.append(
            "The ensemble stopped at each person as soon as the attacked model agreed (fast): adversarial images do "
            "that, so later attacks may have been spared where they would have told more."
        )
    accuracy = report.networks.get("evaluation_model_accuracy")
    evaluation_model = f"The evaluation model ({report.networks.get('evaluation_model')})"
    if accuracy is None:
        lines.append(f"{evaluation_model} was not tried on held-out images, so no one knows how well it judges.")
    else:
        lines.append(
            f"{evaluation_model} names the right person on {percent(accuracy, 1)} of images that are new to it."
        )
        if accuracy < GOOD_ACCURACY:
            lines.append("That is a poor evaluation model: it misses people who are there. Train a better one first.")
    second = report.networks.get("second_evaluation_model_accuracy")
    if second is not None and second < GOOD_ACCURACY:
        lines.append(
            f"The second evaluation model names the right person on {percent(second, 1)} of new images: a poor one."
        )
    if "second_evaluation_model" not in report.networks and "embedding" not in report.networks:
        lines.append(
            "One evaluation model alone can be fooled by images that look like no one; a second one (--second-evaluation-model) or face "
            "verification (--embedding) was not asked."
        )
    if any(attack.generator.get("generator") == "renderer" for attack in report.attacks):
        lines.append(
            "The attacker's prior was the very program that drew the images. No real attacker has that: the numbers "
            "bound from above what priors of this kind can do."
        )
    if report.data["identities"] > len(report.labels):
        lines.append(f"{len(report.labels)} of {report.data['identities']} people were attacked.")
    lines.append(
        "No audit proves a model safe. It shows what these attacks got with this effort, this prior and these evaluation models; "
        "other threats (who was in the training data, stolen models, poisoned data) are other matters."
    )
    return lines
