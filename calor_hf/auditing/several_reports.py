"""Several reports at once: differences of two, spread over seeds, and one report from parts of an audit."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calor_hf.auditing.verdict import concluded
from calor_hf.core.report import HEADLINE, IDENTITIES, AttackResult, LeakageReport, Measure
from calor_hf.core.report_text import DASH, percent, value_of
from calor_hf.metrics import paired_difference


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
    merged = replace(first, attacks=list(attacks.values()))
    return concluded(merged)


def compare_reports(first: LeakageReport, second: LeakageReport) -> str:
    """Return paired differences of the measures that both have, attack by attack, and whether they are resolved.

    Raises:
        ValueError: other identities or data, or no attack in both.
    """
    if first.labels != second.labels or first.data != second.data:
        raise ValueError(
            f"the reports are about other people ({len(first.labels)} of {first.data.name} and "
            f"{len(second.labels)} of {second.data.name}); compare audits of the same classes and data"
        )
    others = {attack.name: attack for attack in second.attacks}
    pairs = [(attack, others[attack.name]) for attack in first.attacks if attack.name in others]
    if not pairs:
        raise ValueError("no attack is in both reports; run the same attacks on both models")
    lines = [f"A: {_title(first)}", f"B: {_title(second)}", ""]
    models = [_evaluation_model(report) for report in (first, second)]
    settings = [("evaluation model", *models)]
    settings += [(n.replace("_", " "), getattr(first, n), getattr(second, n)) for n in _SETTINGS]
    lines += [f"Note: {name} differs ({a} and {b})." for name, a, b in settings if a != b]
    accuracies = [
        next((m.value for m in report.utility if m.name == "accuracy"), math.nan) for report in (first, second)
    ]
    if not any(map(math.isnan, accuracies)):
        lines.append(f"Test accuracy: {percent(accuracies[0], 1)} and {percent(accuracies[1], 1)}.")
        if abs(accuracies[0] - accuracies[1]) > 0.01:
            lines.append("Note: they are more than a point apart; a weaker model leaks less under any defense.")
    for a, b in pairs:
        lines += ["", f"{a.name}: B − A, 95 % interval over people", *_differences(a, b)]
    measures = {one.name: one for one in [*second.utility, *second.other_threats]}
    both = [(one, measures[one.name]) for one in [*first.utility, *first.other_threats] if one.name in measures]
    if both:
        lines += ["", f"{'On held-out images':<26} {'A':>9} {'B':>9}"]
        lines += [f"  {a.name:<24} {value_of(a):>9} {value_of(b):>9}" for a, b in both]
    lines += ["", f"Worst case: {_worst(first)} in A, {_worst(second)} in B."]
    for name, mine, theirs in (("A", first.caveats, second.caveats), ("B", second.caveats, first.caveats)):
        own = [line for line in mine if line not in theirs]
        lines += ["", f"Caveats of {name} alone:", *(f"- {line}" for line in own)] if own else []
    return "\n".join(lines)


def across_seeds(reports: Sequence[LeakageReport]) -> str:
    """Return a table of every measure that all reports have: mean, standard deviation, minimum and maximum.

    The audits may differ in their own seed, or in the target, trained again with another one. Bootstrap intervals
    measure the uncertainty over identities; the spread here measures that over training and attack.

    Raises:
        ValueError: fewer than two reports, other identities, data or effort, another evaluation model, or no attack in
            all of them.
    """
    if len(reports) < 2:
        raise ValueError(f"expected two reports or more, of other seeds, got {len(reports)}")
    first = reports[0]
    for name in ("labels", "data", "images_per_class", "effort", "version"):
        if any(getattr(report, name) != getattr(first, name) for report in reports):
            raise ValueError(f"the reports differ in {name}; compare audits that differ only in their seed")
    models = sorted({_evaluation_model(report) for report in reports})
    if len(models) > 1:
        raise ValueError(f"the reports have the evaluation models {', '.join(models)}; use the same one for all")
    common = [a.name for a in first.attacks if all(any(b.name == a.name for b in r.attacks) for r in reports)]
    if not common:
        raise ValueError("no attack is in all reports; run the same attacks")
    seeds = ", ".join(str(report.seed) for report in reports)
    lines = [
        f"{len(reports)} audits (seeds {seeds}), {len(first.labels)} people × {first.images_per_class} images each",
        f"{'':<28} {'mean':>9} {'± sd':>9} {'lowest':>9} {'highest':>9}",
    ]
    for name in common:
        found = [next(a for a in report.attacks if a.name == name) for report in reports]
        lines += ["", name, *_spread([attack.measures for attack in found])]
    lines += ["", "The model on held-out images", *_spread([report.utility for report in reports])]
    return "\n".join(lines)


_SETTINGS = ("seed", "effort", "images_per_class", "version")


def _evaluation_model(report: LeakageReport) -> str:
    network = report.networks.get("evaluation_model")
    return DASH if network is None else network.name


def _title(report: LeakageReport) -> str:
    return f"{report.target.name or report.target.model} ({report.target.defense}), {report.created}"


def _worst(report: LeakageReport) -> str:
    attack = report.strongest
    if attack is None:
        return DASH
    measure = attack.get(IDENTITIES if attack.parts else HEADLINE)
    return f"{value_of(measure)} by {attack.name}"


def _differences(first: AttackResult, second: AttackResult) -> list[str]:
    rows = []
    for a in first.measures:
        b = second.get(a.name)
        shared = set() if b is None else set(a.by_identity) & set(b.by_identity)
        if b is None or not shared:
            continue
        change = _change(a, *paired_difference(a.by_identity, b.by_identity))
        rows.append(f"  {a.name:<24} {change}  ({len(shared)} people)")
    return rows


def _change(measure: Measure, difference: float, low: float, high: float) -> str:
    scale, unit = (100, " points") if measure.unit == "share" else (1, "")
    text = f"{scale * difference:+.3g}{unit} [{scale * low:+.3g}, {scale * high:+.3g}]"
    if math.isnan(low):
        return f"{text}: one person says nothing about others"
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
        if not any(map(math.isnan, values)):
            scale = 100 if measure.unit == "share" else 1
            numbers = np.array(values) * scale
            cells = (numbers.mean(), numbers.std(ddof=1), numbers.min(), numbers.max())
            rows.append(f"  {measure.name:<26}" + "".join(f" {cell:>9.4g}" for cell in cells) + " %" * (scale > 1))
    return rows
