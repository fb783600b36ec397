"""The report as Markdown."""

from calor_hf.auditing.verdict import verdict
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import LeakageReport, Measure
from calor_hf.core.report_text import interval, measure_table, table, value_of


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
        *_measures("## The model on held-out images", report.utility),
        *_measures("## Other threats, for orientation", report.other_threats),
        "## How",
        table(["attack", "seconds", "images through the target", "with gradient"], cost),
        f"Seed {report.seed}, {report.images_per_class} images per person, {len(report.labels)} people, budget "
        f"{report.budget:g}; data: {markdown_text(report.data.name)}; calor_hf {markdown_text(report.version)}, "
        f"{markdown_text(report.created)}.",
    ]
    return "\n\n".join(parts) + "\n"


def _measures(title: str, measures: list[Measure]) -> list[str]:
    rows = [[one.name, value_of(one), interval(one), one.note] for one in measures]
    return [title, table(["measure", "value", "95 % interval", ""], rows)] if rows else []
