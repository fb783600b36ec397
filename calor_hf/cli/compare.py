"""`calor-hf compare`: several defenses on one base and data, each as strong as the same accuracy allows."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from calor_hf._version import __version__
from calor_hf.core.files import write_json, write_whole
from calor_hf.core.stop_request import sigterm_as_ctrl_c
from calor_hf.defenses import DEFENSES
from calor_hf.heads.low_rank_head import default_rank
from calor_hf.recipes.compare_figure import draw_comparison
from calor_hf.recipes.matching import Trial, best_trial, match_strength
from calor_hf.recipes.runs import Outcome, Runs, markdown, percent

REFERENCE = "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 for options or data that are refused; 130 after Ctrl-C or SIGTERM.
    """
    try:
        options, common = parse(list(sys.argv[1:] if argv is None else argv))
        with sigterm_as_ctrl_c():
            compare(options, common)
    except KeyboardInterrupt:
        print("\nStopped. Go on with the same command and --resume.", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"calor-hf compare: {error}", file=sys.stderr)
        return 2
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of this command, and those left for ``calor-hf train``.

    Raises:
        ValueError: a value is refused.
        SystemExit: ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog="calor-hf compare",
        allow_abbrev=False,
        description="Train several defenses on the same base model and data, each tuned to the same validation"
        " accuracy, and write one table. All other options are those of calor-hf train and hold for every run.",
    )
    parser.add_argument(
        "--defenses", nargs="+", default=DEFENSES.names(), help="names (calor-hf list); default: all. none always runs"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help="the first one serves for tuning too")
    parser.add_argument(
        "--tuning-seeds",
        type=int,
        default=1,
        metavar="N",
        help="tune on the mean accuracy of the first N seeds: one is noisy where validation images are few (default 1)",
    )
    parser.add_argument(
        "--accuracy-drop",
        type=float,
        default=2.0,
        help="points of validation accuracy that a defense may cost; all are tuned to that (default 2)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1.0, help="points from that accuracy that count as reached (default 1)"
    )
    parser.add_argument("--trials", type=int, default=5, help="most strengths tried for a defense (default 5)")
    parser.add_argument(
        "--settings", nargs="+", default=[], metavar="NAME.SETTING=VALUE", help="e.g. mid.sample_at_eval=false"
    )
    parser.add_argument(
        "--head-init", "--head_init", choices=["random", "svd"], default="random", help="start of low-rank heads: svd"
        " keeps what the classifier of a finished --model knows (default random)"
    )  # fmt: skip
    parser.add_argument("--launcher", default="", help="starts each run, e.g. 'accelerate launch --num_processes 4'")
    parser.add_argument("--output-dir", "--output_dir", type=Path, default=Path("outputs/compare"))
    parser.add_argument("--resume", action="store_true", help="go on with the runs in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="delete the runs in the output folder first")
    options, common = parser.parse_known_args(argv)
    for name in options.defenses:
        try:
            DEFENSES.get(name)
        except KeyError as error:
            raise ValueError(f"--defenses: {error.args[0]}") from None
    options.defenses = [REFERENCE, *dict.fromkeys(name for name in options.defenses if name != REFERENCE)]
    if not 1 <= options.tuning_seeds <= len(options.seeds):
        raise ValueError(f"--tuning-seeds must be between 1 and the {len(options.seeds)} of --seeds")
    if options.trials < 1 or options.tolerance <= 0 or options.accuracy_drop < 0:
        raise ValueError("--trials must be >= 1, --tolerance > 0 and --accuracy-drop >= 0")
    for word in options.settings:
        name, dot, setting = word.partition(".")
        if not dot or name not in options.defenses:
            raise ValueError(f"--settings: expected NAME.SETTING=VALUE of a compared defense, got {word!r}")
        method = DEFENSES.get(name).config_class
        method.from_dict(method.parse([setting]))
    return options, common


def compare(options: argparse.Namespace, common: Sequence[str]) -> dict[str, Any]:
    """Everything the command does; returns what it writes to ``comparison.json``."""
    runs = Runs(options.output_dir, common, options.launcher, options.resume, options.overwrite)
    settings = {
        name: [word.partition(".")[2] for word in options.settings if word.startswith(f"{name}.")]
        for name in options.defenses
    }
    undefended = []
    for seed in options.seeds[: options.tuning_seeds]:
        reference = runs(f"{REFERENCE}-seed{seed}", words_for(REFERENCE, seed, settings[REFERENCE]))
        if reference.validation_accuracy is None:
            raise RuntimeError(f"the undefended reference failed: {reference.error}")
        undefended.append(reference.validation_accuracy)
    accuracy = sum(undefended) / len(undefended)
    target = accuracy - options.accuracy_drop / 100
    print(
        f"undefended validation accuracy {100 * accuracy:.2f} %: every defense is tuned to "
        f"{100 * target:.2f} ± {options.tolerance:g} %",
        flush=True,
    )
    rows = []
    for name in options.defenses:
        rows.append(compare_one(runs, name, settings[name], options, target, reference))
        found: dict[str, Any] = {
            "version": __version__,
            "dataset": reference.numbers["dataset"],
            "options": list(common),
            "seeds": options.seeds,
            "test_images": reference.numbers["test_images"],
            "target_validation_accuracy": target,
            "tolerance": options.tolerance / 100,
            "tuning_seeds": options.seeds[: options.tuning_seeds],
            "complete": len(rows) == len(options.defenses),
            "defenses": rows,
        }
        write(found, options.output_dir)
    print(f"\n{table(found)}\n")
    print(f"Table, numbers and figure: {options.output_dir / 'comparison.md'}, .json, .png")
    return found


def compare_one(
    runs: Runs,
    name: str,
    settings: Sequence[str],
    options: argparse.Namespace,
    target: float,
    reference: Outcome,
) -> dict[str, Any]:
    """Tune one defense on the first seed, then train it on the others: a row of the table."""
    method = DEFENSES.get(name)
    audit = reference.numbers["head"]["layers"]
    width, classes = audit[0]["in_features"], reference.numbers["classes"]
    strength = method.strength(width, classes)
    fixed = strength is None or any(word.startswith(f"{strength.setting}=") for word in settings)
    low_rank = ["--head-init", options.head_init] if "rank" in {f.name for f in fields(method.config_class)} else []
    done: dict[float, Outcome] = {}
    trials: list[Trial] = []
    value: float | None = None
    seed = options.seeds[0]

    def run(value: float | None, seed: int) -> Outcome:
        chosen = [] if value is None or strength is None else [f"{strength.setting}={value}"]
        label = "".join(f"-{word}" for word in chosen)
        return runs(f"{name}{label}-seed{seed}", [*words_for(name, seed, [*settings, *chosen]), *low_rank])

    def accuracy_of(value: float) -> float | None:
        found = [run(value, seed) for seed in options.seeds[: options.tuning_seeds]]
        done[value] = found[0]
        accuracies = [outcome.validation_accuracy for outcome in found]
        return None if None in accuracies else sum(filter(None, accuracies)) / len(accuracies)

    if strength is None or fixed:
        first = run(None, seed)
    else:
        start = getattr(method.config_class(), strength.setting)
        start = default_rank(width, classes) if start is None else start
        trials = match_strength(strength, start, accuracy_of, target, options.tolerance / 100, options.trials)
        best = best_trial(trials, target)
        if best is None:
            return {"name": name, "failed": True, "trials": [asdict(trial) for trial in trials],
                    "errors": [outcome.error for outcome in done.values()]}  # fmt: skip
        value, first = best.value, done[best.value]
    outcomes = {seed: first} | {other: run(value, other) for other in options.seeds[1:]}
    good = {number: outcome for number, outcome in outcomes.items() if not outcome.error}
    if not good:
        return {"name": name, "failed": True, "trials": [], "errors": [first.error]}
    accuracies = [outcome.result["validation_accuracy"] for outcome in good.values()]
    matched = abs(sum(accuracies) / len(accuracies) - target) <= options.tolerance / 100
    return {
        "name": name,
        "failed": False,
        "setting": strength.setting if strength is not None else None,
        "value": value,
        "matched": matched or name == REFERENCE,
        "trials": [asdict(trial) for trial in trials],
        "errors": [outcome.error for outcome in (*done.values(), *outcomes.values()) if outcome.error],
        "settings": first.numbers["settings"],
        "head": first.numbers["head"],
        "seeds": list(good),
        "validation_accuracy": accuracies,
        "test_accuracy": [outcome.result["accuracy"] for outcome in good.values()],
        "test_confidence": [outcome.result["confidence"] for outcome in good.values()],
        "train_confidence": [outcome.result["train_confidence_correct"] for outcome in good.values()],
        "train_seconds": [outcome.numbers["train_seconds"] for outcome in good.values()],
        "peak_memory_bytes": [outcome.numbers["peak_memory_bytes"] for outcome in good.values()],
    }


def words_for(name: str, seed: int, settings: Sequence[str]) -> list[str]:
    """Options of ``train`` for one run; the settings that have options of their own are passed as those."""
    words = ["--defense", name, "--seed", str(seed)]
    rest = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in ("rank", "activation", "input_norm"):
            words += ["--" + key.replace("_", "-"), value]
        else:
            rest.append(setting)
    return [*words, "--defense-settings", *rest] if rest else words


def write(found: dict[str, Any], folder: Path) -> None:
    """``comparison.json``, ``comparison.md`` and ``comparison.png``."""
    write_json(folder / "comparison.json", found, indent=2)
    write_whole(folder / "comparison.md", (table(found) + "\n").encode())
    draw_comparison(found, folder / "comparison.png")


def table(found: dict[str, Any]) -> str:
    """The comparison as Markdown, with what one has to know to read it."""
    done = [row for row in found["defenses"] if not row["failed"]]
    base = done[0]
    rows = []
    for row in found["defenses"]:
        if row["failed"]:
            tried = ", ".join(f"{trial['value']:g}" for trial in row["trials"])
            rows.append([row["name"], f"failed at {tried}" if tried else "failed", *["-"] * 7])
            continue
        setting = f"{row['setting']} = {row['value']:g}" if row["value"] is not None else "-"
        layers = " → ".join(
            [str(row["head"]["layers"][0]["in_features"])] + [str(x["out_features"]) for x in row["head"]["layers"]]
        )
        seconds, memory = (
            sum(row[key]) / len(row[key]) / (sum(base[key]) / len(base[key]))
            for key in ("train_seconds", "peak_memory_bytes")
        )
        rows.append(
            [
                row["name"],
                setting,
                percent(row["validation_accuracy"]),
                ("-" if row["name"] == REFERENCE else "yes") if row["matched"] else "**no**",
                percent(row["test_accuracy"]),
                f"{sum(row['train_confidence']) / len(row['train_confidence']):.3f}",
                f"{row['head']['head_rank']} ({layers})",
                f"{seconds:.2f}",
                f"{memory:.2f}",
            ]
        )
    head = ["defense", "strength", "validation accuracy (%)", "matched", "test accuracy (%)", "training confidence",
            "head rank (widths)", "time", "memory"]  # fmt: skip
    seeds = ", ".join(map(str, found["seeds"]))
    target, tolerance = 100 * found["target_validation_accuracy"], 100 * found["tolerance"]
    tuned = "seed " + ", ".join(map(str, found["tuning_seeds"]))
    notes = (
        f"{found['dataset']}; {found['test_images']} test images; seeds {seeds}, mean [lowest, highest]. Matched: "
        f"mean validation accuracy (tuned on {tuned}) within {target:.2f} ± {tolerance:g} %; rows "
        "that are not matched must not be compared by leakage. Training confidence: mean true-class score of correctly "
        "classified training images. Time of training and peak memory of the process: times the undefended run's. "
        f"calor_hf {found['version']}."
    )
    return f"{markdown(head, rows)}\n\n{notes}"


if __name__ == "__main__":
    sys.exit(main())
