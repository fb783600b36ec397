"""Several audits of the same people that differ in luck: mean and range over them."""

import math
from collections.abc import Sequence

import numpy as np

from calor_hf.auditing.report import LeakageReport
from calor_hf.metrics import Measure


def across_seeds(reports: Sequence[LeakageReport]) -> str:
    """A table of every measure that all reports have: mean, standard deviation, lowest and highest.

    The audits may differ in their own seed, or in the target, trained anew with another one. Their bootstrap intervals
    say how sure one audit is of its people; the spread here says how much the luck of training and attack is worth.

    Raises:
        ValueError: fewer than two reports, other people, data or effort, another evaluation model, or no attack in all
            of them.
    """
    if len(reports) < 2:
        raise ValueError(f"expected two reports or more, of other seeds, got {len(reports)}")
    first = reports[0]
    for name in ("labels", "data", "images_per_class", "budget", "version"):
        if any(getattr(report, name) != getattr(first, name) for report in reports):
            raise ValueError(f"the reports differ in {name}; compare audits that differ in their seed alone")
    evaluation_models = {report.networks.get("evaluation_model") for report in reports}
    if len(evaluation_models) > 1:
        raise ValueError(
            f"the reports have different evaluation models: {', '.join(map(str, evaluation_models))}; use the same one for all"
        )
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
        lines += ["", name, *_rows([attack.measures for attack in found])]
    lines += ["", "The model on held-out images", *_rows([report.utility for report in reports])]
    return "\n".join(lines)


def _rows(parts: list[list[Measure]]) -> list[str]:
    rows = []
    for measure in parts[0]:
        values = [next((m.value for m in part if m.name == measure.name), math.nan) for part in parts]
        if not any(map(math.isnan, values)):
            scale = 100 if measure.unit == "share" else 1
            numbers = np.array(values) * scale
            cells = (numbers.mean(), numbers.std(ddof=1), numbers.min(), numbers.max())
            rows.append(f"  {measure.name:<26}" + "".join(f" {cell:>9.4g}" for cell in cells) + " %" * (scale > 1))
    return rows
