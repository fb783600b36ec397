"""The conclusion of an audit: the model leaks, the audit found nothing, or it had no power to find anything."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calor_hf.auditing.caveats import LEAST_FIT, beyond, caveats, least_power
from calor_hf.core.exact_interval import LEVEL
from calor_hf.core.report import (
    EMBEDDING,
    HEADLINE,
    IDENTITIES,
    LEADING,
    MATCH,
    MATCHED,
    MODE_RANKING,
    AttackResult,
    Kind,
    LeakageReport,
    Measure,
    NetworkInfo,
    PowerCheck,
    Verdict,
    decoy_hits,
    false_matches,
    guesses,
)  # fmt: skip
from calor_hf.core.report_text import POWER, interval, percent, points, with_interval
from calor_hf.metrics import paired_difference

LEAST_PEOPLE = 6
"""Identities from which an interval over identities is believed: all of five agree by chance in 1 of 16 cases."""
GOOD_EVALUATION = 0.8
"""Accuracy on held-out images of the attacked identities that an evaluation model needs to rule anything out."""
LEAST_CONFIDENCE = 0.5
"""Share of the target's confidence in its training images that attacks have to reach."""
MOST_HIDDEN = 0.5
"""Share of what the audit could have found that its interval may leave open."""
LEAST_EFFORT = 0.2
"""Share of the effort of their sources that attacks need to rule anything out."""
MOST_CHANCE = 0.5
"""Chance level that leaves no room for a difference."""
UNTESTED = "whether private identities and decoys are exchangeable was not tested (calor-hf decoys check)"
"""Sentence of a report whose data folder has no statement about exchangeability."""
ROLES = {EMBEDDING: "embedding", HEADLINE: "evaluation_model"}
LEVELS = {MATCH: MATCHED, HEADLINE: IDENTITIES}
"""Share of people recognized in at least one image, by the share of images."""
_SUBJECTS = {
    MATCH: "the person drawn is the right one",
    EMBEDDING: "the embedding recognized the right person",
    HEADLINE: "the evaluation model recognized the right person",
}
_REMEDIES = {
    "resolution": "use a prior of larger images",
    "prior": "the prior cannot draw these people; train it longer, or on images of the same kind",
    "guided": "the attack cannot find them with this prior even when the truth guides it; use a better prior",
    "control": "the same attacks do not find the people of an undefended model; use more effort or a better prior",
}


@dataclass(frozen=True)
class Finding:
    """Comparison of one attack with chance.

    Attributes:
        attack: The attack.
        measure: Share of its images that are recognized.
        chance: The same for images that know nothing of the identity; the highest of its sources, or None.
        above: Whether it is above every chance level, by the interval of the paired difference over identities.
        rebuilt: Identities recognized more often than by chance, one by one.
    """

    attack: AttackResult
    measure: Measure
    chance: Measure | None
    above: bool
    rebuilt: tuple[int, ...]

    @property
    def evidence(self) -> tuple[bool, float]:
        """Key by which the strongest attack is chosen."""
        return self.above or bool(self.rebuilt), self.measure.value - (self.chance.value if self.chance else 0.0)


def concluded(report: LeakageReport) -> LeakageReport:
    """Return the report with its verdict and caveats, computed from the rest of it.

    Their sentences are published, so those about a model with decoys say numbers of private identities rounded to 1 %.
    """
    return replace(report, verdict=verdict(report), caveats=caveats(report.rounded() if report.with_decoys else report))


def verdict(report: LeakageReport) -> Verdict:
    """Conclude from the numbers of a report.

    ``leaks``: an attack is above chance over identities, or some identities are, one by one. ``found nothing``: none
    is, and every precondition of :func:`failures` holds. ``inconclusive``: everything else.

    A model with decoys ``leaks`` if any of the k identities of a class is recognized beyond chance: decoys hide no
    face, k guesses recover the private one, and decoys are people too. What they bound, to which identity a face is
    attributed, is no reason to call that "found nothing"; the sentences say it next to 1/k. So the verdict does not
    depend on which identities are private, either, and it may be published.
    """
    name = leading(report)
    wanted = decoy_hits(name) if report.with_decoys and name else name
    found = [one for attack in report.attacks if (one := compare_with_chance(report, attack, wanted)) is not None]
    if not found:
        headline = "Inconclusive: no reconstruction was evaluated, so the audit says nothing about what leaks."
        return Verdict("inconclusive", [headline], ["Pass an evaluation model that knows the classes of the target."])
    best = max(found, key=lambda finding: finding.evidence)
    report = report.rounded() if report.with_decoys else report
    leaks, reasons = best.evidence[0], failures(report, name, found, best)
    if leaks:
        who = "its" if best.above else f"{len(best.rebuilt)} of {best.measure.identities}"
        whose = "of people and decoys" if best.above else f"of {who} classes"
        what = f"the faces {whose} that it learned" if report.with_decoys else f"{who} training identities"
        opening, reasons = f"The model leaks {what}: ", []
    elif reasons:
        opening = "Inconclusive: this audit had no power to tell whether the model leaks: "
    else:
        opening = "This audit found nothing, and would have found what its power measurements did: "
    sentences = [opening + _headline(report, best, name), *_details(report, best, name)]
    kind: Kind = "leaks" if leaks else "inconclusive" if reasons else "found nothing"
    return Verdict(kind, sentences, reasons, best.attack.name, name)


def leading(report: LeakageReport) -> str:
    """Return the measure that carries the verdict: the most trusted one whose network is good on the attacked people.

    Without any, the first that has a value; empty if none has.
    """
    known = [name for name in LEADING if any(attack.get(name) is not None for attack in report.attacks)]
    return next(
        (name for name in known if _trusted(report, name)), HEADLINE if HEADLINE in known else "".join(known[:1])
    )


def _trusted(report: LeakageReport, name: str) -> bool:
    if name == MATCH:
        return report.data.drawn
    network = report.networks.get(ROLES[name])
    return good(network) and not (name == EMBEDDING and network is not None and network.same_data)


def good(network: NetworkInfo | None) -> bool:
    """Whether a network is good on images of the attacked identities that are new to it, by its interval too."""
    accuracy = None if network is None or network.seen else network.accuracy
    return accuracy is not None and accuracy.value >= GOOD_EVALUATION and accuracy.low >= GOOD_EVALUATION / 2


def compare_with_chance(report: LeakageReport, attack: AttackResult, name: str) -> Finding | None:
    """Compare an attack with every chance level; None if it has no such measure."""
    measure = attack.get(name)
    if measure is None:
        return None
    every = [one for measures in attack.chance_levels.values() for one in measures]
    levels = [one for one in every if one.name == name and not math.isnan(one.value)]
    highest = max(levels, key=lambda one: one.value, default=None)
    tests = len(measure.by_identity) * len(report.attacks)
    return Finding(
        attack=attack,
        measure=measure,
        chance=highest,
        above=bool(levels) and all(_above(measure, level) for level in levels),
        rebuilt=rebuilt_identities(measure, levels, (1 - LEVEL) / max(1, tests)),
    )


def _above(measure: Measure, level: Measure) -> bool:
    both = measure.by_identity.keys() & level.by_identity.keys()
    return len(both) >= LEAST_PEOPLE and paired_difference(level.by_identity, measure.by_identity)[1] > 0


def rebuilt_identities(measure: Measure, levels: Sequence[Measure], error: float) -> tuple[int, ...]:
    """Return the identities that are recognized more often than by chance, each tested alone.

    The images of an identity are compared with all images of a chance level by Fisher's exact test, which counts the
    uncertainty of both; their share must also be more than twice that of the same identity by chance, since some
    evaluation models take many images for one person. Images of one identity are alike, so a few identities may be hit
    in all images by chance: the share of identities found must itself be above the share of images hit by chance (the
    same test), and more of them must be found than a chance level has.

    Args:
        measure: Share of recognized images, with its value for each identity.
        levels: Chance levels of the same measure.
        error: Probability of an error that each test may have.
    """
    from scipy.stats import hypergeom  # here, as scipy.stats takes a second to import

    if not levels or not measure.by_identity:
        return ()
    each = measure.images // len(measure.by_identity)
    by_chance = [(round(level.value * level.images), level.images) for level in levels]
    found = []
    for label, share in measure.by_identity.items():
        hits = round(share * each)
        tails = [hypergeom.sf(hits - 1, each + count, hits + right, each) for right, count in by_chance]
        if max(tails) < error and all(share > 2 * level.by_identity.get(label, 0.0) for level in levels):
            found.append(label)
    least = min((measure.by_identity[label] for label in found), default=1.0)
    alike = max(sum(share >= least for share in level.by_identity.values()) for level in levels)
    people = len(measure.by_identity)
    together = max(hypergeom.sf(len(found) - 1, people + count, len(found) + hit, people) for hit, count in by_chance)
    return tuple(found) if len(found) > alike and together < people * error else ()


def failures(report: LeakageReport, name: str, found: Sequence[Finding], best: Finding) -> list[str]:
    """Return the reasons why an audit that found nothing rules nothing out, each with a remedy."""
    reasons = []
    if name != MATCH:
        network = report.networks.get(ROLES[name])
        accuracy = None if network is None else network.accuracy
        if accuracy is None or math.isnan(accuracy.value):
            reasons.append(
                "The evaluation model was not tested on held-out images of the attacked people. Pass data with a test "
                "split."
            )
        elif network is not None and network.seen:
            reasons.append(
                f"The evaluation model was trained on {network.seen} of the held-out images that test it. Train it on "
                "the training split alone."
            )
        elif not good(network):
            reasons.append(
                f"The evaluation model recognizes {with_interval(accuracy)} of held-out images of the attacked people, "
                f"and {percent(GOOD_EVALUATION)} are needed. Train a better one, or pass --embedding, a network that "
                "tells such people apart."
            )
    fit, confidence = (next((one.value for one in report.utility if one.name == wanted), math.nan)
                       for wanted in ("train_accuracy", "train_confidence"))  # fmt: skip
    if not fit >= LEAST_FIT:
        reasons.append(
            f"The attacked model recognizes {percent(fit)} of the images that it is said to have learned. Pass the "
            "images and the order of classes that it was trained on."
        )
    wanted = LEAST_CONFIDENCE * (1.0 if math.isnan(confidence) else confidence)
    attacks = [finding.attack for finding in found]
    both = (one for one in attacks if one.target_confidence >= wanted and one.effort >= LEAST_EFFORT)
    able = next(both, max(attacks, key=lambda one: one.effort))  # one attack has to meet both
    reached, effort = able.target_confidence, able.effort
    if not reached >= wanted:
        reasons.append(
            f"The attacks did not convince the attacked model: its confidence in their images is {percent(reached)}, "
            f"and {percent(wanted)} are needed. Use more effort, other attacks or a better prior."
        )
    if not effort >= LEAST_EFFORT:
        reasons.append(
            f"The attacks ran with {percent(effort)} of their sources' effort, and {percent(LEAST_EFFORT)} are needed. "
            "Use a larger --budget."
        )
    if any(finding.attack.settings.get("fast") for finding in found):
        reasons.append("The ensemble left out attacks that could have recovered more (fast mode). Run it without fast.")
    people = len(best.measure.by_identity) or best.measure.identities
    if people < LEAST_PEOPLE or math.isnan(best.measure.low) or math.isnan(best.measure.high):
        reasons.append(
            f"An interval over {people} people says nothing about others. Attack {LEAST_PEOPLE} people or more."
        )
    if best.chance is None:
        reasons.append("The chance level is unknown. Audit again with this version.")
    elif best.chance.value >= MOST_CHANCE:
        reasons.append(
            f"The chance level, {percent(best.chance.value)}, leaves no room for a difference. Attack more people."
        )
    return reasons + _without_power(report, name, best)


def _without_power(report: LeakageReport, name: str, best: Finding) -> list[str]:
    reasons = [
        f"{POWER[check.name]}: {with_interval(check.images)} recognized, by chance {percent(check.chance)}. Remedy: "
        f"{_remedy(check)}."
        for check in report.power
        if not clear(check)
    ]
    if not any(check.name in ("guided", "control") for check in report.power):
        reasons.append(
            "It was not measured whether this audit could have found anything. Audit without --skip-power, or pass "
            "--control, an undefended model."
        )
    ceiling = _ceiling(report, name)
    if ceiling is not None and best.chance is not None and not reasons:
        most = (best.measure.high - best.chance.value) / (ceiling.images.value - ceiling.chance)
        if most > MOST_HIDDEN:
            reasons.append(
                f"The interval reaches {percent(min(most, 1))} of what this audit could have found. Attack more "
                "people, or rebuild more images of each."
            )
    return reasons


def clear(check: PowerCheck) -> bool:
    """Whether a power measurement is clearly above its chance level, by its interval too."""
    return check.images.low > least_power(check)


def _remedy(check: PowerCheck) -> str:
    wide = check.images.value > least_power(check)
    return "attack more people, as the interval is too wide to tell" if wide else _REMEDIES[check.name]


def _ceiling(report: LeakageReport, name: str) -> PowerCheck | None:
    """The highest clear ceiling that was measured as the attack was."""
    checks = [one for one in report.power if one.name in ("prior", "guided") and one.images.name == name and clear(one)]
    return max(checks, key=lambda check: check.images.value, default=None)


def _headline(report: LeakageReport, best: Finding, name: str) -> str:
    measure, subject = best.measure, _SUBJECTS[name]
    if report.with_decoys:
        whose = f"one of the {report.data.identities_per_class} people of its class"
        subject = f"{subject.replace('the right one', whose).replace('the right person', whose)}, private or decoy"
    chance = "" if best.chance is None else f"; by chance {with_interval(best.chance)}"
    bracket = f"95 % interval {interval(measure)}" if interval(measure) else "too few people for an interval"
    text = (
        f"in {percent(measure.value)} of {measure.images} rebuilt images of {measure.identities} "
        f"{'classes' if report.with_decoys else 'people'}, {subject} ({bracket}{chance})."
    )
    network = report.networks.get(ROLES.get(name, ""))
    if network is None:
        return text
    if not network.same_data:
        text += " That network did not learn the private images as the attacked model did."
    else:
        text += " By a same-data evaluation model alone: it learned the images that the attacked model learned."
    if network.accuracy is not None and beyond(measure, network.accuracy):
        text += (
            f" That is more than the {percent(network.accuracy.value)} of real held-out images that it recognizes: a "
            "sign of transferred adversarial features, so the number overstates what leaks."
        )
    return text


def _details(report: LeakageReport, best: Finding, name: str) -> list[str]:
    measure, attack = best.measure, next(one for one in report.attacks if one.name == best.attack.name)
    lines = [_about_control(check.images, check.difference) for check in report.power if check.difference is not None]
    lines.append(f"{len(report.labels)} of {report.target.classes} people were attacked, by {_listed(report)}.")
    if best.rebuilt:
        shares = [measure.by_identity[label] for label in best.rebuilt]
        lines.append(
            f"{len(best.rebuilt)} of {len(measure.by_identity)} {'classes' if report.with_decoys else 'people'} are "
            "recognized beyond chance, each taken alone: "
            f"in {percent(sum(shares) / len(shares))} of their images."
        )
    once = attack.get(LEVELS.get(name, ""))
    if once is not None:
        level = attack.chance_level(once.name)
        lines.append(
            f"{round(once.value * once.identities)} of {once.identities} people were recognized in at least one of "
            f"{measure.images // measure.identities} images"
            + ("." if math.isnan(level) else f"; by chance {percent(level)}.")
            + (" So many tries succeed by chance alone." if level >= MOST_CHANCE else "")
        )
    guess = attack.get(guesses(name))
    if guess is not None:
        lines.append(
            f"In the one image of each person that an attacker would submit, by how sure the attacked model is, "
            f"{round(guess.value * guess.identities)} of {guess.identities} people are recognized; by chance "
            f"{percent(attack.chance_level(guess.name))}."
        )
    if report.with_decoys:
        lines += _about_decoys(report, attack, name)
    for other in LEADING:
        if other != name and (seen := attack.get(other)) is not None:
            network = report.networks.get(ROLES.get(other, ""))
            same = " It is a same-data model, which tends to overstate." if network and network.same_data else ""
            lines.append(
                f"For comparison: {_SUBJECTS[other]} in {with_interval(seen)} of the images, by chance "
                f"{percent(attack.chance_level(other))}.{same}"
            )
    both = attack.get("both_evaluation_models@1")
    if both is not None:
        lines.append(f"Both evaluation models recognize the right person in {percent(both.value)} of the images.")
    ceiling = _ceiling(report, name)
    if ceiling is not None and best.chance is not None and not report.with_decoys:
        share = (measure.value - best.chance.value) / (ceiling.images.value - ceiling.chance)
        lines.append(
            f"Leakage share: {percent(share)} of what could be found ({POWER[ceiling.name]}: "
            f"{percent(ceiling.images.value)})."
        )
    return lines


def _about_decoys(report: LeakageReport, attack: AttackResult, name: str) -> list[str]:
    """Sentences on attribution: the private identity among the k, against a face of the k chosen at random."""
    k, level = report.data.identities_per_class, by_chance(report, attack, guesses(name))
    lines = [
        f"Each class has {k} identities. A face among them, chosen at random, is taken for the private one in "
        f"{percent(level)}: the recognition rate / {k}, and {percent(_wrong(report, name))} false matches of real "
        "images of decoys."
    ]
    several = attack.get(guesses(name, k))
    if several is not None:
        lines.append(f"With {k} guesses the private person is found for {percent(several.value)} of the classes.")
    ranked = next((one for attack in report.attacks if (one := attack.get(MODE_RANKING)) is not None), None)
    if ranked is not None:
        lines.append(
            f"Of the {k} faces rebuilt of each class by an attack that knows of decoys, the one that the model is "
            f"surest of is the private one in {with_interval(ranked)} of the classes; by chance {percent(1 / k)}."
        )
    others = [one for attack in report.attacks for one in attack.measures if one.name.startswith(f"{MODE_RANKING}[")]
    if others:
        shares = [one.value for one in others]
        names = ", ".join(one.name.removeprefix(MODE_RANKING).strip("[]").replace("_", " ") for one in others)
        lines.append(
            f"Ranked by {len(others)} other statistics ({names}), the first one is the private one in "
            f"{percent(min(shares))} to {percent(max(shares))}."
        )
    tested = report.data.exchangeability or UNTESTED
    return [*lines, f"{tested[0].upper()}{tested[1:]}."]


def by_chance(report: LeakageReport, attack: AttackResult, name: str) -> float:
    """Return the chance level of a measure; NaN if it is unknown.

    That of the single guess at the private identity of a class with decoys is right for a face of the class chosen at
    random: the recognition rate / k, and the false matches of real images of decoys.
    """
    for leading in LEADING:
        hits = attack.get(decoy_hits(leading))
        if name == guesses(leading) and hits is not None:
            return round(hits.value / report.data.identities_per_class + _wrong(report, leading), 2)
    return attack.chance_level(name)


def _wrong(report: LeakageReport, name: str) -> float:
    return next((one.value for one in report.other_threats if one.name == false_matches(name)), 0.0)


def _about_control(control: Measure, difference: Measure) -> str:
    text = f"The undefended control gives {percent(control.value)}; control minus model, by person: "
    text += f"{points(difference.value)} points"
    low, high = difference.low, difference.high
    if math.isnan(low) or difference.identities < LEAST_PEOPLE:
        return f"{text} (too few people for an interval)."
    less = "this model leaks less" if low > 0 else "this model leaks more" if high < 0 else "no difference is resolved"
    return f"{text} [{points(low)}, {points(high)}], so {less}."


def _listed(report: LeakageReport) -> str:
    attacks = report.attacks
    return f"the attack {attacks[0].name}" if len(attacks) == 1 else f"{len(attacks)} attacks"
