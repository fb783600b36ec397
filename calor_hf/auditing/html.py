"""The report as one page that asks no one for anything."""

import io
import math
from importlib.resources import files
from typing import Any

from calor_hf.auditing.gallery import Gallery
from calor_hf.auditing.markdown import DIRECTIONS
from calor_hf.auditing.report import HEADLINE, AttackResult, LeakageReport
from calor_hf.auditing.verdict import interval, limits, number, percent, verdict
from calor_hf.core.plain_text import unturned


def to_html(report: LeakageReport, gallery: Gallery | None = None, others: tuple[LeakageReport, ...] = ()) -> str:
    """A page with everything in it: text, tables that sort and filter, plot, images.

    Args:
        report: The report.
        gallery: Its images; None: no images.
        others: Reports of other models on the same data, for the plot.
    """
    from jinja2 import Environment

    source = files("calor_hf.auditing").joinpath("page.html").read_text(encoding="utf-8")
    # Names are escaped, and cannot turn the direction of what follows; the plot is markup of ours.
    shown = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=lambda v: unturned(v) if type(v) is str else v
    )
    page = shown.from_string(source)
    return page.render(
        report=report,
        name=report.target["name"] or report.target["model"],
        verdict=verdict(report),
        limits=limits(report),
        attacks=[_attack(attack) for attack in sorted(report.attacks, key=_share, reverse=True)],
        identities=_identities(report, gallery),
        attack_names=[attack.name for attack in report.attacks],
        evaluation_models={role: network for role, network in report.networks.items() if role != "target"},
        private=bool(gallery and gallery.private),
        plot=_plot([report, *others]),
        number=number,
        interval=interval,
        directions=DIRECTIONS,
    )


def _share(attack: AttackResult) -> float:
    measure = attack.get(HEADLINE)
    return -1.0 if measure is None or math.isnan(measure.value) else measure.value


def _attack(attack: AttackResult) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for measure in attack.measures:
        chance_levels = {
            name: next((m for m in ms if m.name == measure.name), None) for name, ms in attack.chance_levels.items()
        }
        rows.append(
            {"measure": measure, "chance_levels": {k: number(m) if m else "" for k, m in chance_levels.items()}}
        )
    # Numbers of one attribute, or one attack of several, are named whole[part].
    parts = [row for row in rows if "[" in row["measure"].name]
    return {"attack": attack, "rows": [row for row in rows if row not in parts], "parts": parts}


def _identities(report: LeakageReport, gallery: Gallery | None) -> list[dict[str, Any]]:
    """A row a person: share of recognized images by attack, and images of the strongest one."""
    rows = []
    worst = report.worst() if any(a.get(HEADLINE) for a in report.attacks) else None
    # Of an ensemble, whose images lie in a block an attack, one by each.
    every = report.images_per_class if worst and worst.parts else 1
    name_of = worst.name if worst else ""
    for label, name in zip(report.labels, report.label_names, strict=True):
        shares = []
        for attack in report.attacks:
            measure = attack.get(HEADLINE)
            value = math.nan if measure is None else measure.by_identity.get(label, math.nan)
            shares.append((value if not math.isnan(value) else -1, percent(value)))
        rows.append(
            {
                "label": label,
                "name": name,
                "shares": shares,
                "highest": max((value for value, _ in shares), default=-1),
                "private": gallery.private.get(label) if gallery else None,
                "rebuilt": gallery.rebuilt.get(name_of, {}).get(label, [])[::every] if gallery else [],
                "nearest": gallery.nearest.get(name_of, {}).get(label, [])[::every] if gallery else [],
            }
        )
    return rows


def _plot(reports: list[LeakageReport]) -> str:
    """Accuracy of the models against what their worst attack got, as SVG text; nothing without an accuracy."""
    points = []
    for report in reports:
        accuracy = next((m for m in report.utility if m.name == "accuracy"), None)
        for attack in report.attacks:
            measure = attack.get(HEADLINE)
            if accuracy is not None and measure is not None and not math.isnan(measure.value):
                points.append((report, attack, accuracy, measure))
    if not points:
        return ""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    marks = dict(zip([id(report) for report in reports], "osD^v<>PX*" * (1 + len(reports) // 10), strict=False))
    for report, attack, accuracy, measure in points:
        low, high = (end if not math.isnan(end) else measure.value for end in (measure.low, measure.high))
        axes.errorbar(
            100 * accuracy.value,
            100 * measure.value,
            yerr=[[100 * max(0.0, measure.value - low)], [100 * max(0.0, high - measure.value)]],
            fmt=marks[id(report)],
            capsize=3,
            label=f"{attack.name} ({report.target['defense']})".replace("$", r"\$"),
        )
    floor = max((f for r, a, _, _ in points if not math.isnan(f := a.floor(HEADLINE))), default=math.nan)
    if not math.isnan(floor):
        axes.axhline(100 * floor, color="gray", linestyle=":", label="floor")
    axes.set(xlabel="test accuracy of the model (%)", ylabel="people recognized in rebuilt images (%)")
    axes.set_xlim(right=min(101, axes.get_xlim()[1]))
    axes.set_ylim(-3, 103)
    axes.legend(fontsize=8)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
