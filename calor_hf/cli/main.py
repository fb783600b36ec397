"""The `calor-hf` command; a sub-command's module is imported when it is called."""

import importlib
import sys
from collections.abc import Sequence

from calor_hf._version import __version__
from calor_hf.cli._command import run_command
from calor_hf.cli._usage import check_usage
from calor_hf.core.own_errors import TRACEBACK_HELP
from calor_hf.core.suggestion import unknown

COMMANDS = {
    "train": "fine-tune a classifier with CALoR, another defense, or undefended as the reference",
    "plan": "estimate time, memory and disk of a training run, an audit or a prior",
    "compare": "train several defenses, tuned to the same accuracy or with fixed settings, and write one table",
    "decoys": "deal decoy identities for private ones (data for train --defense decoys), test them, measure accuracy",
    "prior": "train the generator of an attack on public images",
    "audit": "attack a model, evaluate the reconstructions, and write a report",
    "robustness": "evaluate robustness to adversarial examples and backdoors",
    "export": "write a model as one ONNX or torch.export file, checked against the model",
    "report": "show the report of an audit, or compare two",
    "card": "write the model card: measurements, audit, how to load the model",
    "push": "publish a model with its card, and no other file of its folder",
    "list": "show defenses, attacks, generators and priors, their sources and settings",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: Arguments after ``calor-hf``; defaults to those of the process.

    Returns:
        Exit status: 0 for success, 2 for wrong use, 130 after Ctrl-C; see ``run_command`` for others.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"calor-hf {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        print(f"calor-hf: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    loaded = []

    def load(words: list[str]) -> None:
        check_usage(name, words)
        loaded.append(importlib.import_module(f"calor_hf.cli.{name}"))

    return run_command(name, load, argv[1:]) or int(loaded[0].main(argv[1:]))


def _help() -> str:
    lines = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    return f"""usage: calor-hf [--version] <command> [options]

Fine-tune image classifiers on private images so that less of them can be reconstructed from the weights.

commands:
{lines}

calor-hf <command> --help explains its options. {TRACEBACK_HELP}"""
