"""`calor-hf study`: the paper's analyses."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from calor_hf.core.stop_request import sigterm_as_ctrl_c
from calor_hf.recipes.common import log_to_terminal, settings_of
from examples.paper.run_study import TABLE
from examples.paper.studies import STUDIES, LabOptions, run_study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 when an attack or training met numbers that are not finite; 2 for options or data that are refused, or a
        library that is missing; 130 after Ctrl-C or SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    if options.name is None:
        print("studies (calor-hf list NAME shows the settings, calor-hf study NAME runs one):")
        for name in STUDIES.names():
            print(f"  {name:<20} {STUDIES.get(name).claim}")
        return 0
    try:
        with sigterm_as_ctrl_c():
            _run(options, rest)
    except KeyboardInterrupt:
        print("\nStopped. Go on with the same command and --resume.", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"calor-hf study: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        print(f"calor-hf study: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf study",
        allow_abbrev=False,
        description="Repeat an analysis of the paper: train what it needs, measure, and write study.json, study.png and"
        " study.md. Without a name: the list. On the drawn faces nothing but the name is needed. All other options are"
        " those of calor-hf train (--model, --num-train-epochs ...) and hold for every model trained.",
    )
    add = parser.add_argument
    add("name", nargs="?", help=f"one of {', '.join(STUDIES.names())}")
    add("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the study (calor-hf list STUDY)")
    add("--dataset", help="private images, as for calor-hf train; default: the drawn faces")
    add("--prior", default="renderer", help="what attacks paint with: folder or Hub id of a trained prior, or renderer,"
        " the program that drew the faces; default: renderer")  # fmt: skip
    add("--evaluation-model", help="image classifier of another architecture, trained on the same people (calor-hf"
        " train --role evaluation); for the drawn faces one is trained if none is given")  # fmt: skip
    add("--models-dir", "--models_dir", type=Path, help="folder of the trained models, which several studies may share;"
        " default: inside the output folder")  # fmt: skip
    add("--seed", type=int, default=0, help="of attacks and other draws; trainings have the setting seeds; default: 0")
    add("--launcher", default="", help="starts each training, e.g. 'accelerate launch --num_processes 4'")
    add("--quick", action="store_true", help="a try: next to no training, next to no attack; the numbers mean nothing")
    add("--output-dir", "--output_dir", type=Path, help="default: outputs/study-NAME")
    add("--resume", action="store_true", help="go on with the study in the output folder")
    add("--overwrite", action="store_true", help="delete the study in the output folder first")
    return parser


def _run(options: argparse.Namespace, rest: Sequence[str]) -> None:
    if options.name not in STUDIES.names():
        near = difflib.get_close_matches(options.name, STUDIES.names(), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"unknown study '{options.name}'.{hint} Known: {', '.join(STUDIES.names())}")
    if options.seed < 0:
        raise ValueError(f"--seed must be >= 0, got {options.seed}")
    log_to_terminal()
    kind = STUDIES.get(options.name)
    settings = settings_of(kind.config_class, options.settings, "--settings")
    folder: Path = options.output_dir or Path("outputs") / f"study-{options.name}"
    lab = LabOptions(
        dataset=options.dataset,
        prior=options.prior,
        evaluation_model=options.evaluation_model,
        models=options.models_dir,
        train_words=tuple(rest),
        launcher=options.launcher,
        seed=options.seed,
        quick=options.quick,
    )
    run_study(options.name, settings, folder, lab, options.resume, options.overwrite)
    print(
        f"\n{(folder / TABLE).read_text(encoding='utf-8')}\nTable, numbers and figure: {folder}/study.md, .json, .png"
    )


if __name__ == "__main__":
    sys.exit(main())
