"""`calor-hf decoys`: data with decoy identities."""

import sys
from collections.abc import Sequence

from calor_hf.cli._command import Command
from calor_hf.recipes.decoys import DealOptions, deal_decoys
from calor_hf.recipes.exchangeability import CheckOptions, check_decoys
from calor_hf.recipes.private_accuracy import AccuracyOptions, private_accuracy

COMMANDS = {
    "deal": Command(
        "decoys deal",
        "Merge private images with decoys into one data folder of neutral identities, for train --defense decoys. Which"
        " of them are private is drawn once, and kept apart.",
        DealOptions,
        deal_decoys,
    ),
    "check": Command(
        "decoys check",
        "Test whether private identities and decoys can be told apart, from the data that decoys deal wrote and its"
        " secret.",
        CheckOptions,
        check_decoys,
    ),
    "accuracy": Command(
        "decoys accuracy",
        "Measure the test accuracy of a model on private identities and on decoys, for the secret folder.",
        AccuracyOptions,
        private_accuracy,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns as :func:`~calor_hf.cli._command.run_command`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]].main(words[1:])
    asked = bool(words) and words[0] in ("-h", "--help")
    lines = "\n".join(f"  {name:<9} {command.description}" for name, command in COMMANDS.items())
    usage = f"usage: calor-hf decoys {{{','.join(COMMANDS)}}} [options]\n\n{lines}"
    print(usage, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2
