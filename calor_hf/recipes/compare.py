"""Several defenses on one base model and data, at the same accuracy or with fixed settings."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from calor_hf._version import __version__
from calor_hf.core.config import setting
from calor_hf.core.files import write_figure, write_json, write_whole
from calor_hf.core.finishing import Finishing
from calor_hf.core.report_text import percent, points
from calor_hf.defenses import DEFENSES
from calor_hf.heads.low_rank_head import default_rank
from calor_hf.recipes.common import settings_of
from calor_hf.recipes.matching import Trial, best_trial, match_strength
from calor_hf.recipes.runs import Outcome, Runs, markdown, mean_and_range, with_range
from calor_hf.recipes.train_arguments import acting, defenses_of_any_data, has_low_rank_head, parse

REFERENCE = "none"
REPORT_AGAIN = "mend that, and run the same command with --resume: it trains nothing again"
RETRY = "the same command with --resume trains these again, and nothing else"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of :func:`compare`.

    Raises:
        ValueError: a value is refused.
    """

    defenses: Sequence[str] = setting(
        defenses_of_any_data,
        "names, such as mid (its strength is tuned), or with settings, such as calor:rank=8 (a given strength is not"
        " tuned) or loft:rank=8,activation=relu; none always runs; default: all but decoys, which needs data of"
        " decoys deal",
        nargs="+",
        metavar="DEFENSE[:SETTING=VALUE,...]",
        known="calor_hf.defenses",
    )
    seeds: list[int] = setting([42], "the first is also used for tuning", nargs="+")
    tuning_seeds: int = setting(1, "tune on the mean accuracy of the first N seeds", metavar="N")
    accuracy_drop: float = setting(2.0, "points of validation accuracy to give up; every defense is tuned to that")
    tolerance: float = setting(1.0, "points from that accuracy that count as reached")
    trials: int = setting(5, "maximum number of strengths tried for a defense")
    head_init: str = setting(
        "random", "start of low-rank heads: svd copies the classifier of --model", choices=("random", "svd")
    )
    launcher: str = setting("", "starts each run, e.g. 'accelerate launch --num_processes 4'")
    output_dir: Path = setting(Path("outputs/compare"), "folder of the runs and the table")
    resume: bool = setting(False, "continue the runs in the output folder, failed ones too")
    overwrite: bool = setting(False, "delete the runs in the output folder first")
    train_options: Sequence[str] = setting((), rest=True)  # of `calor-hf train`, for every run

    def __post_init__(self) -> None:
        """Refuse values before any run."""
        self.compared()
        if not 1 <= self.tuning_seeds <= len(self.seeds):
            raise ValueError(f"--tuning-seeds must be between 1 and the {len(self.seeds)} of --seeds")
        if self.trials < 1 or self.tolerance <= 0 or self.accuracy_drop < 0:
            raise ValueError("--trials must be >= 1, --tolerance > 0 and --accuracy-drop >= 0")

    def compared(self) -> list["Compared"]:
        """Return the defenses to compare, the undefended reference first."""
        return [Compared.parse(spec) for spec in dict.fromkeys([REFERENCE, *self.defenses])]


@dataclass(frozen=True)
class Compared:
    """A defense with the settings that are fixed.

    Attributes:
        spec: The defense with its settings, as the user writes it.
        defense: Registered name.
        settings: Fixed settings as ``name=value``.
    """

    spec: str
    defense: str
    settings: tuple[str, ...]

    @classmethod
    def parse(cls, spec: str) -> "Compared":
        """Read ``calor:rank=8,activation=relu``.

        Raises:
            ValueError: no such defense or setting.
        """
        name, _, rest = spec.partition(":")
        settings = re.split(r",(?=\w+=)", rest) if rest else []  # other commas separate the items of one value
        try:
            settings_of(DEFENSES.get(name).config_class, settings, spec)
        except KeyError as error:
            raise ValueError(f"--defenses: {error.args[0]}") from None
        except ValueError as error:
            raise ValueError(f"--defenses {spec}: {error}") from None
        return cls(spec, name, tuple(settings))

    def fixes(self, setting: str) -> bool:
        """Whether a setting is given."""
        return any(one.startswith(f"{setting}=") for one in self.settings)


def compare(options: CompareOptions) -> dict[str, Any]:
    """Train the reference and every defense; write ``comparison.json``, ``.md`` and ``.png``.

    Returns:
        Content of ``comparison.json``.

    Raises:
        ValueError: an option that ``train`` refuses, or that these runs set themselves.
        FileExistsError: the output folder is used, and is neither to be resumed nor overwritten.
        FinishingError: all runs are done, and the numbers saved, but the table or figure failed.
        RuntimeError: a run ended for a reason other than its training.
        KeyboardInterrupt: Ctrl-C; the current run has saved a checkpoint.
    """
    runs = Runs(options.output_dir, options.train_options, options.launcher, options.resume, options.overwrite)
    compared = options.compared()
    check_defenses(compared, options)
    undefended = []
    for seed in options.seeds[: options.tuning_seeds]:
        reference = runs(f"{REFERENCE}-seed{seed}", train_argv(REFERENCE, seed, (), options.head_init))
        if reference.validation_accuracy is None:
            raise RuntimeError(f"the undefended reference failed: {reference.error}")
        undefended.append(reference.validation_accuracy)
    accuracy = sum(undefended) / len(undefended)
    target = accuracy - options.accuracy_drop / 100
    print(
        f"undefended validation accuracy {percent(accuracy, 2)}: strengths that are not given are tuned to "
        f"{100 * target:.2f} ± {options.tolerance:g} %",
        flush=True,
    )
    rows = []
    undefended_runs: dict[int, Outcome] = {}
    for one in compared:
        row, outcomes = compare_one(runs, one, options, target, reference)
        undefended_runs = undefended_runs or outcomes  # the first is the reference
        rows.append(row | {"accuracy_difference": accuracy_difference(undefended_runs, outcomes)})
        found: dict[str, Any] = {
            "version": __version__,
            "dataset": reference.numbers["dataset"],
            "options": list(options.train_options),
            "seeds": list(options.seeds),
            "test_images": reference.numbers["images"],
            "target_validation_accuracy": target,
            "tolerance": options.tolerance / 100,
            "tuning_seeds": list(options.seeds[: options.tuning_seeds]),
            "defenses": rows,
        }
        found["complete"] = len(rows) == len(compared) and not failures(found)
        write_json(options.output_dir / "comparison.json", found, indent=2)
        finishing = Finishing(f"the numbers are in {options.output_dir / 'comparison.json'}", REPORT_AGAIN)
        with finishing.step("writing the table"):
            write_whole(options.output_dir / "comparison.md", (table(found) + "\n").encode())
    with finishing.step("drawing the figure"):
        draw_comparison(found, options.output_dir / "comparison.png")
    finishing.end()
    print(f"\n{table(found)}\n\nTable, numbers and figure: {options.output_dir / 'comparison.md'}, .json, .png")
    if failed := failures(found):
        print("\n".join(["", f"{len(failed)} failed; {RETRY}:", *failed]))
    return found


def check_defenses(compared: Sequence[Compared], options: CompareOptions) -> None:
    """Refuse, before the first run, a defense that does not fit the data or the base model.

    Raises:
        ValueError: the message names the defense.
    """
    from calor_hf.recipes.train import check_defense, load_base  # here, as a training takes seconds to import

    model, data, *_ = parse(options.train_options)
    splits = data.load(data.num_identities, stream=data.stream)
    base, _ = load_base(model, splits)
    for one in compared:
        argv = [*options.train_options, *train_argv(one.defense, 0, one.settings, options.head_init)]
        try:
            chosen, data, _, args = parse(acting(argv))
            check_defense(base, splits, chosen, data, args)
        except ValueError as error:
            raise ValueError(f"--defenses {one.spec}: {error}") from error


def compare_one(
    runs: Runs, compared: Compared, options: CompareOptions, target: float, reference: Outcome
) -> tuple[dict[str, Any], dict[int, Outcome]]:
    """Tune one defense on the first seeds unless its strength is given, then train it on the others.

    Returns:
        Its row of the comparison, and its successful runs by seed.
    """
    name, method = compared.defense, DEFENSES.get(compared.defense)
    width, classes = reference.numbers["head"]["layers"][0]["in_features"], reference.numbers["classes"]
    strength = method.strength(width, classes)
    tuned = None if strength is None or compared.fixes(strength.setting) else strength
    made: dict[tuple[float | None, int], Outcome] = {}

    def run(value: float | None, seed: int) -> Outcome:
        if (value, seed) not in made:
            settings = [*compared.settings, *([] if tuned is None else [f"{tuned.setting}={value}"])]
            folder = "-".join([name, *(one.replace("/", "_") for one in settings)])
            made[value, seed] = runs(f"{folder}-seed{seed}", train_argv(name, seed, settings, options.head_init))
        return made[value, seed]

    def accuracy_of(value: float) -> float | None:
        accuracies = [run(value, seed).validation_accuracy for seed in options.seeds[: options.tuning_seeds]]
        return None if None in accuracies else sum(filter(None, accuracies)) / len(accuracies)

    trials: list[Trial] = []
    if tuned is not None:
        start = getattr(method.config_class(), tuned.setting)
        start = default_rank(width, classes) if start is None else start
        trials = match_strength(tuned, start, accuracy_of, target, options.tolerance / 100, options.trials)
    best = best_trial(trials, target)
    value = best.value if best is not None else None
    outcomes = {seed: run(value, seed) for seed in options.seeds} if best is not None or tuned is None else {}
    good = {seed: outcome for seed, outcome in outcomes.items() if not outcome.error}
    failed = {str(seed): outcome.error for seed, outcome in outcomes.items() if outcome.error}
    row = {
        "name": compared.spec,
        "defense": name,
        "failed": not good,
        "failed_seeds": failed,
        "trials": [asdict(trial) for trial in trials],
        "errors": [outcome.error for outcome in made.values() if outcome.error],
    }
    if not good:
        return row, {}
    first, *_ = good.values()
    accuracies = [outcome.result["validation_accuracy"] for outcome in good.values()]
    matched = abs(sum(accuracies) / len(accuracies) - target) <= options.tolerance / 100
    row |= {
        "setting": strength.setting if strength is not None else None,
        "value": value,
        "matched": (matched or name == REFERENCE) and not failed,  # the seeds that are left are those that went well
        "settings": first.numbers["settings"],
        "head": first.numbers["head"],
        "head_rank": [outcome.numbers["head"]["head_rank"] for outcome in good.values()],
        "seeds": list(good),
        "validation_accuracy": accuracies,
        "test_accuracy": [outcome.result["accuracy"] for outcome in good.values()],
        "test_confidence": [outcome.result["confidence"] for outcome in good.values()],
        "train_confidence": [outcome.result["train_confidence_correct"] for outcome in good.values()],
        "train_seconds": [outcome.numbers["train_seconds"] for outcome in good.values()],
        "peak_memory_bytes": [outcome.numbers["peak_memory_bytes"] for outcome in good.values()],
    }
    return row, good


def failures(found: dict[str, Any]) -> list[str]:
    """Name each row without a result, and each seed that a row lacks, with its error."""
    lines = []
    for row in found["defenses"]:
        if row["failed"] and not row["failed_seeds"]:
            lines.append(f"{row['name']}, every strength: {row['errors'][-1]}")
        lines += [f"{row['name']}, seed {seed}: {error}" for seed, error in row["failed_seeds"].items()]
    return lines


def accuracy_difference(first: Mapping[int, Outcome], second: Mapping[int, Outcome]) -> dict[str, float | None] | None:
    """Compare the test accuracy of two defenses, image by image, over the seeds that both have.

    Args:
        first: Runs by seed.
        second: Runs by seed, on the same data.

    Returns:
        As :class:`~calor_hf.metrics.AccuracyDifference`, ``second`` minus ``first``; None if no seed has predictions of
        both.
    """
    from calor_hf.metrics import AccuracyDifference  # here, as `evaluate` takes seconds to import

    pairs = [(first[seed].predictions, second[seed].predictions) for seed in second if seed in first]
    pairs = [(one, two) for one, two in pairs if one and two and one["labels"] == two["labels"]]
    if not pairs:
        return None
    with TemporaryDirectory() as folder:
        comparison = AccuracyDifference(cache_dir=folder)
        for one, two in pairs:
            comparison.add_batch(
                predictions1=one["predictions"], predictions2=two["predictions"], references=one["labels"]
            )
        found = comparison.compute()
    return {name: None if math.isnan(value) else value for name, value in found.items()}


def train_argv(defense: str, seed: int, settings: Sequence[str], head_init: str) -> list[str]:
    """Options of ``calor-hf train`` for one run; ``head_init`` is for a low-rank head."""
    start = ["--head-init", head_init] if has_low_rank_head(defense) else []
    return ["--defense", defense, "--seed", str(seed), *(["--defense-settings", *settings] if settings else []), *start]


def table(found: dict[str, Any]) -> str:
    """Return the comparison as Markdown, with notes on how to read it."""
    base = next(row for row in found["defenses"] if not row["failed"])
    rows = []
    for row in found["defenses"]:
        if row["failed"]:
            tried = ", ".join(f"{trial['value']:g}" for trial in row["trials"])
            rows.append([row["name"], f"failed at {tried}" if tried else "failed", *["-"] * 8])
            continue
        head, is_reference = row["head"], row["name"] == REFERENCE
        widths = [head["layers"][0]["in_features"], *(layer["out_features"] for layer in head["layers"])]
        seconds, memory = (
            mean_and_range(row[key])[0] / mean_and_range(base[key])[0] for key in ("train_seconds", "peak_memory_bytes")
        )
        rows.append([
            shown_name(row),
            f"{row['setting']} = {row['value']:g}" if row["value"] is not None else "-",
            with_range(row["validation_accuracy"]),
            ("-" if is_reference else "yes") if row["matched"] else "**no**",
            with_range(row["test_accuracy"]),
            difference_cell(None if is_reference else row["accuracy_difference"]),
            f"{mean_and_range(row['train_confidence'])[0]:.3f}",
            f"{'/'.join(map(str, sorted(set(row['head_rank']))))} ({' → '.join(map(str, widths))})",
            f"{seconds:.2f}",
            f"{memory:.2f}",
        ])  # fmt: skip
    columns = ["defense", "tuned strength", "validation accuracy (%)", "matched", "test accuracy (%)",
               "difference to none (points)", "training confidence", "head rank (widths)", "time",
               "memory"]  # fmt: skip
    seeds, tuned = (", ".join(map(str, found[key])) for key in ("seeds", "tuning_seeds"))
    target, tolerance = 100 * found["target_validation_accuracy"], 100 * found["tolerance"]
    notes = (
        f"{found['dataset']}; {found['test_images']} test images; seeds {seeds}, mean [lowest, highest]. Matched: "
        f"mean validation accuracy (tuned on seed {tuned}) within {target:.2f} ± {tolerance:g} %; rows "
        "that are not matched must not be compared by leakage. Difference: of test accuracy, on the same images, with "
        "its 95 % interval over classes. Training confidence: mean true-class score of correctly classified "
        "training images. Time of training and peak memory of the process: relative to the undefended run. "
        f"calor_hf {found['version']}."
    )
    failed = [f"Failed: {line}" for line in failures(found)]
    return "\n\n".join([markdown(columns, rows), notes, *failed])


def shown_name(row: dict[str, Any]) -> str:
    """Return the name of a row, with the number of seeds that it stands for if some failed."""
    done, failed = len(row["seeds"]), len(row["failed_seeds"])
    return f"{row['name']} ({done} of {done + failed} seeds)" if failed else str(row["name"])


def difference_cell(difference: dict[str, float | None] | None) -> str:
    """A difference of accuracies and its interval in percentage points."""
    if difference is None:
        return "-"
    value, *ends = ("-" if number is None else points(number, 2) for number in difference.values())
    return value if "-" in ends else f"{value} [{', '.join(ends)}]"


def draw_comparison(found: dict[str, Any], path: Path) -> None:
    """Draw accuracy, training confidence, training time, and the trials or, without any, accuracy against rank.

    Rows that failed are named below.
    """
    from matplotlib.figure import Figure

    rows = [row for row in found["defenses"] if not row["failed"]]
    names = [shown_name(row) + ("" if row["matched"] else " *") for row in rows]
    heights = list(range(len(rows)))
    figure = Figure(figsize=(13, 0.9 + 0.42 * max(4, len(rows))), layout="constrained")
    accuracy, confidence, cost, last = figure.subplots(1, 4)
    for panel, key in ((accuracy, "test_accuracy"), (confidence, "train_confidence")):
        means, lows, highs = np.transpose([mean_and_range(row[key]) for row in rows])
        panel.hlines(heights, lows, highs, color="C0", lw=2)
        panel.plot(means, heights, "o", color="C0")
    seconds = np.array([mean_and_range(row["train_seconds"])[0] for row in rows])
    cost.barh(heights, seconds / seconds[0], color="C1")
    titles = ("test accuracy", "training confidence", "training time / undefended")
    for panel, title in zip((accuracy, confidence, cost), titles, strict=True):
        panel.set_title(title)
        panel.set_yticks(heights, names if panel is accuracy else [""] * len(rows))
        panel.invert_yaxis()
        panel.grid(alpha=0.3, axis="x")
    notes = ["* not at the common validation accuracy"] if any(not row["matched"] for row in rows) else []
    notes += [f"failed: {row['name']}" for row in found["defenses"] if row["failed"]]
    accuracy.set_xlabel("\n".join(notes))
    if any(row["trials"] for row in rows):
        _draw_trials(last, found, rows)
    else:
        _draw_ranks(last, rows)
    last.grid(alpha=0.3)
    write_figure(path, figure)


def _draw_trials(panel: Any, found: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    target, tolerance = found["target_validation_accuracy"], found["tolerance"]
    panel.axhspan(target - tolerance, target + tolerance, color="k", alpha=0.1, lw=0)
    for row in rows:
        points = sorted((t["share"], t["accuracy"]) for t in row["trials"] if t["accuracy"] is not None)
        if points:
            panel.plot(*zip(*points, strict=True), marker="o", ms=4, label=row["name"])
    panel.set_title("validation accuracy of the trials")
    panel.set_xlabel("strength: weakest 0, strongest 1")
    panel.legend(fontsize=7)


def _draw_ranks(panel: Any, rows: list[dict[str, Any]]) -> None:
    """Test accuracy against the rank that was set, one line for each combination of the other settings."""
    panel.axhline(mean_and_range(rows[0]["test_accuracy"])[0], color="k", ls=":", lw=1, label="undefended")
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["settings"].get("rank") is not None:
            others = [one for one in Compared.parse(row["name"]).settings if not one.startswith("rank=")]
            lines.setdefault(" ".join([row["defense"], *others]), []).append(row)
    for label, of_line in lines.items():
        points = sorted((row["settings"]["rank"], *mean_and_range(row["test_accuracy"])) for row in of_line)
        ranks, means, lows, highs = map(np.array, zip(*points, strict=True))
        panel.errorbar(ranks, means, yerr=[means - lows, highs - means], marker="o", capsize=3, label=label)
    if lines:
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:g}")
    panel.set_title("test accuracy")
    panel.set_xlabel("rank of the head")
    panel.legend(fontsize=7)
