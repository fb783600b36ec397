"""Several reports at once: differences of two, spread over seeds, and one report from parts of an audit."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from calor_hf.auditing.verdict import LEAST_PEOPLE, LEVELS, by_chance, concluded
from calor_hf.core.report import (
    AttackResult,
    DataInfo,
    LeakageReport,
    Measure,
    NetworkInfo,
    PowerCheck,
    decoy_hits,
    guesses,
)  # fmt: skip
from calor_hf.core.report_text import DASH, SHARES, number, percent, points, power_rows, value_of, with_interval
from calor_hf.metrics import paired_difference

_SHOWN = 200  # characters of a difference


def merge_reports(parts: Sequence[LeakageReport]) -> LeakageReport:
    """Return one report with the attacks of several audits of the same model, identities and seed.

    Raises:
        ValueError: nothing to merge, the parts are of different audits, or an attack appears twice with different
            numbers.
    """
    if not parts:
        raise ValueError("no reports to merge")
    first = parts[0]
    for name in ("target", "data", "networks", "labels", "images_per_class", "seed", "version"):
        if any(repr(getattr(part, name)) != repr(getattr(first, name)) for part in parts):
            raise ValueError(f"the reports differ in {name}, so their attacks cannot be in one table")
    attacks: dict[str, AttackResult] = {}
    for attack in (attack for part in parts for attack in part.attacks):
        if repr(attacks.setdefault(attack.name, attack).measures) != repr(attack.measures):
            raise ValueError(f"the attack {attack.name!r} appears twice, with different numbers")
    power: dict[str, PowerCheck] = {}
    for check in (check for part in parts for check in part.power):  # of two, the one that promises less
        power[check.name] = min(power.get(check.name, check), check, key=lambda one: one.images.value)
    return concluded(replace(first, attacks=list(attacks.values()), power=list(power.values())))


def differences(first: LeakageReport, second: LeakageReport) -> list[str]:
    """Return the differences between two audits other than the model; any of them makes the numbers incomparable.

    People, data, evaluation models and their accuracy, images of each person; and of each attack in both, its settings
    and its prior with settings.
    """

    def compared(report: LeakageReport) -> dict[str, object]:
        networks = {
            role.replace("_", " "): f"{_content(one)}, {value_of(one.accuracy)} right on held-out images"
            for role, one in report.networks.items()
            if role != "target"
        }
        data = {name: value for name, value in asdict(report.data).items() if name not in ("name", "digest")}
        return {
            "people": f"{len(report.labels)} of {report.target.classes}: {', '.join(map(str, report.labels))}",
            "data": ", ".join([_content(report.data), *(f"{name.replace('_', ' ')} {data[name]}" for name in data)]),
            "images of each person": report.images_per_class,
            **networks,
        }

    one, two = compared(first), compared(second)
    found = [
        f"{name} ({str(one.get(name, DASH))[:_SHOWN]} and {str(two.get(name, DASH))[:_SHOWN]})"
        for name in dict.fromkeys([*one, *two])
        if one.get(name) != two.get(name)
    ]
    others = {attack.name: attack for attack in second.attacks}
    for attack in first.attacks:
        other = others.get(attack.name, attack)
        for name in ("attack", "settings", "prior", "prior_settings", "prior_digest", "effort"):
            a, b = getattr(attack, name), getattr(other, name)
            if isinstance(a, dict):
                keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key, DASH) != b.get(key, DASH)]
                a, b = ({key: side.get(key, DASH) for key in keys} for side in (a, b))
            if a != b:
                found.append(f"{name.replace('_', ' ')} of {attack.name} ({a} and {b})")
    return found


def model_rows(reports: Sequence[LeakageReport]) -> list[list[str]]:
    """Return titles, and a row for each model: test accuracy, verdict, and the measures that summarize its attack.

    They are those of the first verdict's network, and those of models with decoys are rounded to 1 %. The last column
    lists the differences from the first audit other than the model.
    """
    first, *_ = reports
    lead = first.verdict.measure
    names = [name for name in (lead, LEVELS.get(lead, ""), guesses(lead), decoy_hits(lead)) if name] if lead else []
    names = [name for name in names if any(one.strongest and one.strongest.get(name) for one in reports)]
    titles = [title for name in names for title in (SHARES.get(name, name), "by chance")]
    rows = [["model", "defense", "test accuracy", "verdict", *titles, "differs in"]]
    for one in reports:
        differs = "; ".join(differences(first, one)) or ("nothing else" if rows[1:] else DASH)
        shown = one.rounded() if one.with_decoys else one
        accuracy = next((measure for measure in shown.utility if measure.name == "accuracy"), None)
        cells = [one.target.name or one.target.model, one.target.defense, with_interval(accuracy), one.verdict.kind]
        for name in names:
            attack = shown.strongest
            measure = None if attack is None else attack.get(name)
            chance = by_chance(shown, attack, name) if attack is not None and measure is not None else math.nan
            cells += [with_interval(measure), percent(chance)]
        rows.append([*cells, differs])
    return rows


def _content(one: DataInfo | NetworkInfo) -> str:
    """Return what identifies data or a network: the digest, or the name if no digest is known."""
    return one.name if one.digest is None else f"content {one.digest[:16]}"


def compare_reports(first: LeakageReport, second: LeakageReport) -> str:
    """Return paired differences of the measures that both have, attack by attack, and whether they are resolved.

    Nothing is concluded from audits that differ in more than the model, or if neither of them had power.

    Raises:
        ValueError: other identities or data, or no attack in both.
    """
    if first.labels != second.labels or _content(first.data) != _content(second.data):
        raise ValueError(
            f"the reports are about other people ({len(first.labels)} of {first.data.name} and "
            f"{len(second.labels)} of {second.data.name}) or other images; compare audits of the same classes and data"
        )
    others = {attack.name: attack for attack in second.attacks}
    pairs = [(attack, others[attack.name]) for attack in first.attacks if attack.name in others]
    if not pairs:
        raise ValueError("no attack is in both reports; run the same attacks on both models")
    lines, differs = [], differences(first, second)
    for name, report in (("A", first), ("B", second)):
        lines += [f"{name}: {_title(report)}", *(f"   {line}" for line in _conclusion(report)), ""]
    reason = ""
    if first.verdict.kind == second.verdict.kind == "inconclusive":
        reason = "no claim, as neither audit had power"
        lines.append("Neither audit had power, so their difference says nothing about the models.")
    if differs:
        reason = "no claim, as the audits differ"
        lines.append("NOT COMPARABLE: the audits differ in more than the model:")
        lines += [f"- {line}" for line in differs]
    for name in ("seed", "version"):
        if (a := getattr(first, name)) != (b := getattr(second, name)):
            lines.append(f"Note: {name} differs ({a} and {b}).")
    accuracies = [
        next((m.value for m in report.utility if m.name == "accuracy"), math.nan) for report in (first, second)
    ]
    if not any(map(math.isnan, accuracies)):
        lines.append(f"Test accuracy: {percent(accuracies[0])} and {percent(accuracies[1])}.")
        if abs(accuracies[0] - accuracies[1]) > 0.01:
            lines.append("Note: they are more than a point apart; a weaker model leaks less under any defense.")
    for a, b in pairs:
        lines += ["", f"{a.name}: B − A, 95 % interval over people", *_differences(a, b, reason)]
    measures = {one.name: one for one in [*second.utility, *second.other_threats]}
    both = [(one, measures[one.name]) for one in [*first.utility, *first.other_threats] if one.name in measures]
    if both:
        lines += ["", f"{'On private images':<26} {'A':>9} {'B':>9}"]
        lines += [f"  {a.name:<24} {value_of(a):>9} {value_of(b):>9}" for a, b in both]
    for name, report in (("A", first), ("B", second)):
        lines += ["", f"Caveats of {name}:", *(f"- {line}" for line in report.caveats)]
    return "\n".join(lines)


def across_seeds(reports: Sequence[LeakageReport]) -> str:
    """Return a table of every measure that all reports have: mean, standard deviation, minimum and maximum.

    The audits may differ in their own seed, or in the target, trained again with another one. Bootstrap intervals
    measure the uncertainty over identities; the spread here measures that over training and attack.

    Raises:
        ValueError: fewer than two reports, audits that differ in more than seed and model or in nothing, or no attack
            in all of them.
    """
    if len(reports) < 2:
        raise ValueError(f"expected two reports or more, of other seeds, got {len(reports)}")
    first = reports[0]
    common = [a.name for a in first.attacks if all(any(b.name == a.name for b in r.attacks) for r in reports)]
    if not common:
        raise ValueError("no attack is in all reports; run the same attacks")
    for report in reports[1:]:
        differs = differences(first, report)
        differs += [] if report.version == first.version else [f"version ({first.version} and {report.version})"]
        if differs:
            raise ValueError(
                f"the reports differ in {'; '.join(differs)}; compare audits that differ only in their seed"
            )
    if len({repr((report.seed, report.target.weights, report.attacks)) for report in reports}) < len(reports):
        raise ValueError("two of the reports are the same audit, which counts once; pass audits of other seeds")
    seeds = ", ".join(str(report.seed) for report in reports)
    lines = [
        f"{len(reports)} audits (seeds {seeds}), {len(first.labels)} people × {first.images_per_class} images each",
        f"verdicts: {', '.join(report.verdict.kind for report in reports)}",
        f"{'':<28} {'mean':>9} {'± sd':>9} {'lowest':>9} {'highest':>9}",
    ]
    for name in common:
        found = [next(a for a in report.attacks if a.name == name) for report in reports]
        lines += ["", name, *_spread([attack.measures for attack in found])]
    lines += ["", "The model on private images", *_spread([report.utility for report in reports])]
    lacking = dict.fromkeys(a.name for report in reports for a in report.attacks if a.name not in common)
    lines += [f"{name}: left out, as it is not in every audit" for name in lacking]
    shared = dict.fromkeys(line for report in reports for line in report.caveats)
    return "\n".join([*lines, "", *(f"- {line}" for line in shared)])


def _title(report: LeakageReport) -> str:
    return f"{report.target.name or report.target.model} ({report.target.defense}), {report.created}"


def _conclusion(report: LeakageReport) -> list[str]:
    power = [f"{name}: {images} recognized, by chance {chance}" for name, _, images, chance, *_ in power_rows(report)]
    return [*report.verdict.sentences, *(f"- {line}" for line in report.verdict.reasons), *power]


def _differences(first: AttackResult, second: AttackResult, reason: str) -> list[str]:
    rows = []
    for a in first.measures:
        b = second.get(a.name)
        shared = set() if b is None else set(a.by_identity) & set(b.by_identity)
        if b is None or not shared:
            continue
        difference, low, high = paired_difference(a.by_identity, b.by_identity)
        if len(shared) < LEAST_PEOPLE:
            low = high = math.nan
        rows.append(f"  {a.name:<24} {_change(a, difference, low, high, reason)}  ({len(shared)} people)")
    return rows


def _change(measure: Measure, difference: float, low: float, high: float, reason: str) -> str:
    share = measure.unit == "share"
    value, *ends = (points(one) if share else f"{one:+.3g}" for one in (difference, low, high))
    text = value + " points" * share
    if math.isnan(low):
        return f"{text}: too few people for an interval"
    text += f" [{', '.join(ends)}]"
    if reason:
        return f"{text}: {reason}"
    if low <= 0 <= high:
        return f"{text}: not resolved by these people"
    if measure.direction == "neither":
        return text
    leaks_more = (difference > 0) == (measure.direction == "leakage")
    return f"{text}: {'B leaks more' if leaks_more else 'B leaks less'}"


def _spread(parts: list[list[Measure]]) -> list[str]:
    rows = []
    for measure in parts[0]:
        values = [next((m.value for m in part if m.name == measure.name), math.nan) for part in parts]
        if lacking := sum(map(math.isnan, values)):
            rows.append(f"  {measure.name:<26} left out: no value in {lacking} of {len(values)} audits")
        else:
            numbers = np.array(values)
            cells = (numbers.mean(), numbers.std(ddof=1), numbers.min(), numbers.max())
            rows.append(f"  {measure.name:<26}" + "".join(f" {number(cell, measure.unit):>9}" for cell in cells))
    return rows
