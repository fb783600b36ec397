"""The figure of a comparison of defenses."""

from pathlib import Path
from typing import Any

from calor_hf.core.files import write_figure


def draw_comparison(found: dict[str, Any], path: Path) -> None:
    """Test accuracy, training confidence, cost of training, and how the strengths were tuned."""
    from matplotlib.figure import Figure

    rows = [row for row in found["defenses"] if not row["failed"]]
    names = [row["name"] + ("" if row["matched"] else " *") for row in rows]
    places = list(range(len(rows)))
    figure = Figure(figsize=(13, 0.9 + 0.42 * max(4, len(rows))), layout="constrained")
    accuracy, confidence, cost, tuning = figure.subplots(1, 4)
    for panel, key, title in (
        (accuracy, "test_accuracy", "test accuracy"),
        (confidence, "train_confidence", "training confidence"),
    ):
        for place, row in zip(places, rows, strict=True):
            values = row[key]
            panel.plot([min(values), max(values)], [place, place], color="C0", lw=2)
            panel.plot([sum(values) / len(values)], [place], "o", color="C0")
        panel.set_title(title)
        panel.set_yticks(places, names if panel is accuracy else [""] * len(rows))
    base = sum(rows[0]["train_seconds"]) / len(rows[0]["train_seconds"])
    times = [sum(row["train_seconds"]) / len(row["train_seconds"]) / base for row in rows]
    cost.barh(places, times, color="C1")
    cost.set_yticks(places, [""] * len(rows))
    cost.set_title("training time / undefended")
    for panel in (accuracy, confidence, cost):
        panel.invert_yaxis()
        panel.grid(alpha=0.3, axis="x")
    target, tolerance = found["target_validation_accuracy"], found["tolerance"]
    tuning.axhspan(target - tolerance, target + tolerance, color="k", alpha=0.1, lw=0)
    for row in rows:
        points = sorted((t["share"], t["accuracy"]) for t in row["trials"] if t["accuracy"] is not None)
        if points:
            tuning.plot(*zip(*points, strict=True), marker="o", ms=4, label=row["name"])
    tuning.set_title("validation accuracy of the trials")
    tuning.set_xlabel("strength: weakest 0, strongest 1")
    tuning.grid(alpha=0.3)
    if any(row["trials"] for row in rows):
        tuning.legend(fontsize=7)
    if any(not row["matched"] for row in rows):
        accuracy.set_xlabel("* not at the common validation accuracy")
    write_figure(path, figure)
