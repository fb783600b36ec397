"""The report as one self-contained page."""

import io
import math
import textwrap
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from calor_hf.auditing.gallery import Gallery
from calor_hf.auditing.several_reports import model_rows
from calor_hf.core.decoy_sentences import SECRET
from calor_hf.core.plain_text import unturned
from calor_hf.core.report import AttackResult, LeakageReport, Measure
from calor_hf.core.report_text import (
    DIRECTIONS,
    POWER_HEAD,
    SHARES,
    chance_levels,
    interval,
    percent,
    power_rows,
    value_of,
)  # fmt: skip


def to_html(report: LeakageReport, gallery: Gallery | None = None, others: Sequence[LeakageReport] = ()) -> str:
    """Return a page that requests nothing: text, tables that sort and filter, plot, images.

    Args:
        report: The report.
        gallery: Its images; None means no images.
        others: Reports of other models on the same data, for the plot and a table of the models.
    """
    return rendered(
        "page.html",
        report=report,
        name=report.target.name or report.target.model,
        attacks=[_tables(one) for one in sorted(report.attacks, key=lambda one: one is not report.strongest)],
        people=_people(report, gallery),
        private=bool(gallery and gallery.private),
        plot=_plot([report, *others]),
        share=SHARES.get(report.verdict.measure, ""),
        models=model_rows([report, *others]),
        others=others,
        power_head=POWER_HEAD,
        power_rows=power_rows(report),
        percent=percent,
        value_of=value_of,
        interval=interval,
        chance_levels=chance_levels,
        directions=DIRECTIONS,
        secret=SECRET,
    )


def rendered(template: str, **values: Any) -> str:
    """Fill in a template of this folder; names are escaped and cannot change the direction of what follows."""
    from jinja2 import Environment

    source = files("calor_hf.auditing").joinpath(template).read_text(encoding="utf-8")
    # The plot is our own markup, which the template marks as safe.
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=lambda v: unturned(v) if type(v) is str else v
    )
    return environment.from_string(source).render(**values)


def _tables(attack: AttackResult) -> dict[str, Any]:
    """The attack's measures; those of one attribute or one part of an ensemble, named ``whole[part]``, separately."""
    tables: dict[str, list[Measure]] = {"whole": [], "parts": []}
    for measure in attack.measures:
        tables["parts" if "[" in measure.name else "whole"].append(measure)
    return {"attack": attack, **tables}


def _people(report: LeakageReport, gallery: Gallery | None) -> list[dict[str, Any]]:
    """One row per identity: share of recognized images by attack, and images of the strongest attack."""
    rows, strongest = [], report.strongest
    # Images of an ensemble form one block per part: show one of each.
    step = report.images_per_class if strongest and strongest.parts else 1
    shown = strongest.name if strongest else ""
    lead = report.verdict.measure
    by_attack = [measure.by_identity if (measure := attack.get(lead)) else {} for attack in report.attacks]
    for label, name in zip(report.labels, report.label_names, strict=True):
        row = {"label": label, "name": name, "shares": [values.get(label, math.nan) for values in by_attack]}
        if gallery is not None:
            row |= {
                "private": gallery.private.get(label),
                "rebuilt": gallery.rebuilt.get(shown, {}).get(label, [])[::step],
                "nearest": gallery.nearest.get(shown, {}).get(label, [])[::step],
            }
        rows.append(row)
    return rows


def _plot(reports: list[LeakageReport]) -> str:
    """Test accuracy of the models against the measure of the first verdict, as SVG text; empty without an accuracy."""
    points, lead = [], reports[0].verdict.measure
    for report in reports:
        accuracy = next((m for m in report.utility if m.name == "accuracy"), None)
        for attack in report.attacks:
            measure = attack.get(lead)
            if accuracy is not None and measure is not None:
                points.append((report, attack, accuracy, measure))
    if not points:
        return ""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.2), layout="constrained", facecolor="none")
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
            label=f"{attack.name} ({report.target.defense}, {report.verdict.kind})".replace("$", r"\$"),
        )
    chance = [level for _, attack, _, _ in points if not math.isnan(level := attack.chance_level(lead))]
    if chance:
        axes.axhline(100 * max(chance), color="gray", linestyle=":", label="highest chance level")
    axes.set(xlabel="test accuracy of the model (%)", ylabel="\n".join(textwrap.wrap(f"{SHARES[lead]} (%)", 32)))
    axes.set_xlim(right=min(101, axes.get_xlim()[1]))
    axes.set_ylim(-3, 103)
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.02), framealpha=0)  # over no point
    buffer = io.StringIO()
    axes.set_facecolor("none")
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
