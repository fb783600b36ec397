"""`calor-hf train`: fine-tune a classifier with a defense."""

import sys
from collections.abc import Sequence

from calor_hf.cli._command import GO_ON, run_command
from calor_hf.recipes.train import train
from calor_hf.recipes.train_arguments import parse
from calor_hf.training.calor_trainer import NotAdaptedError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns as :func:`~calor_hf.cli._command.run_command`, 1 also if adapting cost the accuracy."""
    return run_command("train", lambda words: train(*parse(words)), argv, GO_ON, {NotAdaptedError: 1})


if __name__ == "__main__":
    sys.exit(main())
