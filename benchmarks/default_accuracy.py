"""Accuracy and confidence of the embedded default over three seeds, undefended and with CALoR.

Writes docs/results/embedded_default.md; takes about ten minutes on two cores.
"""

import tempfile
from pathlib import Path

from calor_hf._version import __version__
from calor_hf.recipes.train import train
from calor_hf.recipes.train_arguments import parse

SEEDS = (0, 1, 2)
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "embedded_default.md"
_ROWS = (
    ("test accuracy", "accuracy", 100, " %"),
    ("test NLL (nats)", "nll", 1, ""),
    ("test calibration error", "ece", 1, ""),
    ("training confidence*", "train_confidence_correct", 1, ""),
)


def main() -> None:
    """Train all, print and write the table."""
    found: dict[str, list[dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {"none": [], "calor": []}
    rank, images = 0, 0
    for seed in SEEDS:
        for defense in ("none", "calor"):
            with tempfile.TemporaryDirectory() as folder:
                words = ["--output-dir", folder, "--overwrite", "--seed", str(seed), "--defense", defense]
                result = train(*parse([*words, "--report-to", "none"]))
            for name, metrics in result.record["measured"].items():
                found.setdefault(name, []).append(metrics)
            seconds[defense].append(result.record["wall_seconds"])
            images = result.record["images"]
            rank = getattr(result.model.config, "rank", rank)
    lines = [
        "# The embedded default",
        "",
        f"`python -m benchmarks default_accuracy`, version {__version__}: 64 drawn people, 20 training, 5 validation "
        f"and 10 test images each ({images} test images), ResNet from random weights, rank {rank}, seeds "
        f"{', '.join(map(str, SEEDS))}: mean [lowest, highest].",
        "",
        "| | " + " | ".join(found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for title, key, factor, unit in _ROWS:
        cells = []
        for runs in found.values():
            values = [factor * entry[key] for entry in runs]
            digits = 2 if factor == 100 else 4
            low, high = min(values), max(values)
            cells.append(f"{sum(values) / len(values):.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    minutes = {name: sum(times) / len(times) / 60 for name, times in seconds.items()}
    lines += [
        "",
        "\\* mean true-class score of correctly classified training images, evaluation mode, no augmentation; "
        "the target is e^(−1/8) = 0.8825.",
        "",
        f"Wall time of a run on 2 cores: {minutes['none']:.1f} minutes undefended, {minutes['calor']:.1f} with CALoR.",
    ]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
