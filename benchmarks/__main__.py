"""Run the benchmarks named on the command line, or all short ones."""

import importlib
import sys

SHORT = ("imports", "training")
LONG = ("attacks", "defenses", "default_accuracy", "svd_start", "every_model")


def main() -> None:
    """Run them in order."""
    names = sys.argv[1:] or list(SHORT)
    unknown = [name for name in names if name not in SHORT + LONG]
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(SHORT + LONG)}")
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
