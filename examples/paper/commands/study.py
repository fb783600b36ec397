"""One of the paper's analyses: ``python -m examples.paper NAME``."""

import argparse
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calor_hf.recipes.common import settings_of
from examples.paper.lab import LabOptions
from examples.paper.run_study import TABLE, failures, run_study
from examples.paper.study import STUDIES, Study


def run(name: str, argv: Sequence[str]) -> int:
    """Run the study, and print its table; return 1 if cells failed."""
    kind = STUDIES.get(name)
    options, rest = _parser(name, kind).parse_known_args(argv)
    if options.seed < 0:
        raise ValueError(f"--seed must be >= 0, got {options.seed}")
    settings = settings_of(kind.config_class, options.settings, "--settings")
    folder: Path = options.output_dir or Path("outputs") / f"study-{name}"
    lab = LabOptions(
        dataset=options.dataset,
        prior=options.prior,
        evaluation_model=options.evaluation_model,
        models=options.models_dir,
        train_options=tuple(rest),
        launcher=options.launcher,
        seed=options.seed,
        quick=options.quick,
    )
    found = run_study(name, settings, folder, lab, options.resume, options.overwrite)
    table = (folder / TABLE).read_text(encoding="utf-8")
    print(f"\n{table}\nTable, numbers and figure: {folder}/study.md, .json, .png")
    return int(bool(failures(found)))


def _parser(name: str, kind: type[Study[Any]]) -> argparse.ArgumentParser:
    about = (
        f"The paper: {kind.claim} ({kind.source}). Train the models, measure, and write study.json, study.png and"
        " study.md. The embedded synthetic faces need no options. All other options are those of calor-hf train"
        " (--model, --num-train-epochs ...) and apply to every model that is trained."
    )
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.paper {name}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.fill(about, 100),
        epilog=describe_settings(kind),
    )
    add = parser.add_argument
    add("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the study, listed below")
    add("--dataset", help="private images, as for calor-hf train; default: synthetic faces")
    add("--prior", default="renderer", help="generator of the attacks: folder or Hub id of a trained prior, or"
        " renderer, the program that draws the synthetic faces; default: renderer")  # fmt: skip
    add("--evaluation-model", help="image classifier of another architecture, trained on the same identities"
        " (calor-hf train --role evaluation); for the synthetic faces one is trained if none is given")  # fmt: skip
    add("--models-dir", "--models_dir", type=Path, help="folder of the trained models, which several studies may share;"
        " default: inside the output folder")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of attacks and other draws outside training; default: 0")
    add("--launcher", default="", help="starts each training, e.g. 'accelerate launch --num_processes 4'")
    add("--quick", action="store_true", help="a trial with minimal training and attacks; its numbers mean nothing")
    add("--output-dir", "--output_dir", type=Path, help="default: outputs/study-NAME")
    add("--resume", action="store_true", help="continue the study in the output folder; failed cells too")
    add("--overwrite", action="store_true", help="delete the study in the output folder first")
    return parser


def describe_settings(kind: type[Study[Any]]) -> str:
    """Names, defaults and help of a study's settings."""
    lines = ["settings:"]
    for field in dataclasses.fields(kind.config_class):
        lines.append(f"  {field.name} = {field.default!r}\n      {field.metadata.get('help', '')}")
    return "\n".join(lines).replace("%", "%%")
