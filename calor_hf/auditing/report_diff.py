"""Two reports of the same people, compared person by person."""

import math

from calor_hf.auditing.report import HEADLINE, IDENTITIES, AttackResult, LeakageReport
from calor_hf.auditing.verdict import number, percent
from calor_hf.metrics import Measure, paired_difference


def compare_reports(first: LeakageReport, second: LeakageReport) -> str:
    """Paired differences of the measures that both have, attack by attack, and whether the data resolve them.

    Raises:
        ValueError: other people or data, or no attack in both.
    """
    if first.labels != second.labels or first.data != second.data:
        raise ValueError(
            f"the reports are about other people ({len(first.labels)} of {first.data.get('name')} and "
            f"{len(second.labels)} of {second.data.get('name')}); compare audits of the same classes and data"
        )
    lines = [f"A: {_name(first)}", f"B: {_name(second)}", ""]
    for name in ("evaluation_model", "seed", "budget", "images_per_class", "version"):
        a, b = (r.networks.get(name) if name == "evaluation_model" else getattr(r, name) for r in (first, second))
        if a != b:
            lines.append(f"Mind: {name.replace('_', ' ')} differs ({a} and {b}).")
    accuracies = [next((m.value for m in r.utility if m.name == "accuracy"), math.nan) for r in (first, second)]
    if not any(map(math.isnan, accuracies)):
        lines.append(f"Test accuracy: {percent(accuracies[0], 1)} and {percent(accuracies[1], 1)}.")
        if abs(accuracies[0] - accuracies[1]) > 0.01:
            lines.append("Mind: they lie more than a point apart, and a weaker model leaks less under any defense.")
    common = [a for a in first.attacks if any(b.name == a.name for b in second.attacks)]
    if not common:
        raise ValueError("no attack is in both reports; run the same attacks on both models")
    for attack in common:
        other = next(b for b in second.attacks if b.name == attack.name)
        lines += ["", f"{attack.name}: B − A, 95 % interval over people", *_rows(attack, other)]
    lines += _utilities(first, second)
    lines += ["", f"Worst case: {_worst(first)} in A, {_worst(second)} in B."]
    return "\n".join(lines)


def _utilities(first: LeakageReport, second: LeakageReport) -> list[str]:
    """Both models on held-out images: thresholds that were tuned on one mean something else on the other."""
    others = {measure.name: measure for measure in [*second.utility, *second.other_threats]}
    pairs = [(a, others[a.name]) for a in [*first.utility, *first.other_threats] if a.name in others]
    rows = [f"  {a.name:<24} {number(a):>9} {number(b):>9}" for a, b in pairs]
    return ["", f"{'On held-out images':<26} {'A':>9} {'B':>9}", *rows] if rows else []


def _rows(first: AttackResult, second: AttackResult) -> list[str]:
    rows = []
    for a in first.measures:
        b = second.get(a.name)
        if b is None or not set(a.by_identity) & set(b.by_identity):
            continue
        difference, low, high = paired_difference(a.by_identity, b.by_identity)
        identities = len(set(a.by_identity) & set(b.by_identity))
        rows.append(f"  {a.name:<24} {_change(a, difference, low, high)}  ({identities} people)")
    return rows


def _change(measure: Measure, difference: float, low: float, high: float) -> str:
    scale, unit = (100, " points") if measure.unit == "share" else (1, "")
    text = f"{scale * difference:+.3g}{unit} [{scale * low:+.3g}, {scale * high:+.3g}]"
    if math.isnan(low):
        return f"{text}: one person says nothing about others"
    if low <= 0 <= high:
        return f"{text}: not resolved by these people"
    if measure.more_is == "neither":
        return text
    leaks_more = (difference > 0) == (measure.more_is == "leakage")
    return f"{text}: {'B leaks more' if leaks_more else 'B leaks less'}"


def _name(report: LeakageReport) -> str:
    name = report.target["name"] or report.target["model"]
    return f"{name} ({report.target['defense']}), {report.created}"


def _worst(report: LeakageReport) -> str:
    worst = report.ensemble or report.worst()
    measure = worst.get(IDENTITIES if worst.parts else HEADLINE)
    return f"{percent(measure.value, 1) if measure else '–'} by {worst.name}"
