"""`calor-hf sweep`: accuracy against the rank of the head, and against the activation inside it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calor_hf._version import __version__
from calor_hf.core.files import write_figure, write_json, write_whole
from calor_hf.core.stop_request import sigterm_as_ctrl_c
from calor_hf.heads.low_rank_head import ACTIVATIONS
from calor_hf.recipes.runs import Runs, markdown, mean_and_range, percent

DEFENSES_WITH_RANK = ("loft", "calor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 for options or data that are refused; 130 after Ctrl-C or SIGTERM.
    """
    try:
        options, common = parse(list(sys.argv[1:] if argv is None else argv))
        with sigterm_as_ctrl_c():
            sweep(options, common)
    except KeyboardInterrupt:
        print("\nStopped. Go on with the same command and --resume.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"calor-hf sweep: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command, and those left for ``calor-hf train``.

    Raises:
        ValueError: a value is refused.
        SystemExit: ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog="calor-hf sweep",
        allow_abbrev=False,
        description="Train a low-rank head of every rank and activation given, and the undefended reference; write"
        " accuracy against rank. All other options are those of calor-hf train and hold for every run.",
    )
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8, 16, 32], help="default: 2 4 8 16 32")
    parser.add_argument("--activations", nargs="+", default=["tanh"], choices=list(ACTIVATIONS), help="default: tanh")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="default: 42")
    parser.add_argument("--defense", default="loft", choices=DEFENSES_WITH_RANK, help="default: loft, the head alone")
    parser.add_argument("--launcher", default="", help="starts each run, e.g. 'accelerate launch --num_processes 4'")
    parser.add_argument("--output-dir", "--output_dir", type=Path, default=Path("outputs/sweep"))
    parser.add_argument("--resume", action="store_true", help="go on with the runs in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="delete the runs in the output folder first")
    options, common = parser.parse_known_args(argv)
    if min(options.ranks) < 1:
        raise ValueError(f"--ranks must be whole numbers >= 1, got {min(options.ranks)}")
    options.ranks = sorted(set(options.ranks))
    return options, common


def sweep(options: argparse.Namespace, common: Sequence[str]) -> dict[str, Any]:
    """Everything the command does; returns what it writes to ``sweep.json``."""
    runs = Runs(options.output_dir, common, options.launcher, options.resume, options.overwrite)
    cells: list[dict[str, Any]] = []

    def add(name: str, words: list[str], **cell: Any) -> None:
        outcomes = [runs(f"{name}-seed{seed}", [*words, "--seed", str(seed)]) for seed in options.seeds]
        good = [outcome for outcome in outcomes if not outcome.error]
        keys = {"test_accuracy": "accuracy", "validation_accuracy": "validation_accuracy",
                "train_confidence": "train_confidence_correct"}  # fmt: skip
        cells.append(
            {
                **cell,
                "failed": [outcome.error for outcome in outcomes if outcome.error],
                "head_rank": [outcome.numbers["head"]["head_rank"] for outcome in good],
                **{key: [outcome.result[source] for outcome in good] for key, source in keys.items()},
                "dataset": good[0].numbers["dataset"] if good else None,
                "test_images": good[0].numbers["test_images"] if good else None,
            }
        )

    add("none", ["--defense", "none"], rank=None, activation=None)
    for activation in options.activations:
        for rank in options.ranks:
            words = ["--defense", options.defense, "--rank", str(rank), "--activation", activation]
            add(f"{options.defense}-{activation}-{rank}", words, rank=rank, activation=activation)
    found = {
        "version": __version__,
        "defense": options.defense,
        "dataset": cells[0]["dataset"],
        "test_images": cells[0]["test_images"],
        "options": list(common),
        "seeds": options.seeds,
        "cells": cells,
    }
    folder: Path = options.output_dir
    write_json(folder / "sweep.json", found, indent=2)
    write_whole(folder / "sweep.md", (table(found) + "\n").encode())
    draw(found, folder / "sweep.png")
    print(f"\n{table(found)}\n\nTable, numbers and figure: {folder / 'sweep.md'}, .json, .png")
    return found


def table(found: dict[str, Any]) -> str:
    """Accuracy by rank and activation as Markdown."""
    rows = []
    for cell in found["cells"]:
        name = ["undefended", "-"] if cell["rank"] is None else [str(cell["rank"]), cell["activation"]]
        if not cell["test_accuracy"]:
            rows.append([*name, "failed", "-", "-", "-"])
            continue
        numbers = [percent(cell["test_accuracy"]), percent(cell["validation_accuracy"])]
        confidence = f"{mean_and_range(cell['train_confidence'])[0]:.3f}"
        rows.append([*name, *numbers, confidence, "/".join(map(str, sorted(set(cell["head_rank"]))))])
    head = ["rank", "activation", "test accuracy (%)", "validation accuracy (%)", "training confidence", "head rank"]
    seeds = ", ".join(map(str, found["seeds"]))
    note = (
        f"{found['defense']} on {found['dataset']}; {found['test_images']} test images; seeds {seeds}, mean [lowest, "
    )
    return f"{markdown(head, rows)}\n\n{note}highest]; calor_hf {found['version']}."


def draw(found: dict[str, Any], path: Path) -> None:
    """Test accuracy against rank, a line an activation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    reference = found["cells"][0]["test_accuracy"]
    if reference:
        panel.axhline(mean_and_range(reference)[0], color="k", ls=":", label="undefended")
    for activation in dict.fromkeys(cell["activation"] for cell in found["cells"][1:]):
        cells = [c for c in found["cells"] if c["activation"] == activation and c["test_accuracy"]]
        points = [mean_and_range(cell["test_accuracy"]) for cell in cells]
        ranks = [cell["rank"] for cell in cells]
        if cells:
            spans = [[mean - low for mean, low, _ in points], [high - mean for mean, _, high in points]]
            panel.errorbar(ranks, [mean for mean, _, _ in points], yerr=spans, marker="o", capsize=3, label=activation)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sorted({cell["rank"] for cell in found["cells"][1:]}))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("rank of the head")
    panel.set_ylabel("test accuracy")
    panel.grid(alpha=0.3)
    panel.legend()
    write_figure(path, figure)


if __name__ == "__main__":
    sys.exit(main())
