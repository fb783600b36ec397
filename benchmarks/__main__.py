"""Run the benchmarks named on the command line, or all short ones; keep their ratios, or compare them with kept ones.

python -m benchmarks                       # the short ones
python -m benchmarks attacks --check       # exits with 1 if a ratio is worse than the kept one
python -m benchmarks attacks --save        # keeps the ratios, and docs/performance.md has to be written anew
python -m benchmarks --table               # the table of that page
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from benchmarks import ratios
from benchmarks._paired import SHOWN

SHORT = ("imports", "training")
LONG = ("attacks", "attack_processes", "decoy_cost", "defenses", "default_accuracy", "identities", "loading", "plan",
        "svd_start", "every_model", "training_modes")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run them in order; 1 where one became slower."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join((*SHORT, *LONG))}")
    parser.add_argument("--save", action="store_true", help="keep the ratios in benchmarks/ratios.json")
    parser.add_argument("--check", action="store_true", help="compare with the kept ratios")
    parser.add_argument("--table", action="store_true", help="print the kept ratios and run nothing")
    options = parser.parse_args(argv)
    if options.table:
        print(ratios.table(ratios.load()))
        return 0
    unknown = [name for name in options.names if name not in SHORT + LONG]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(SHORT + LONG)}")
    slower = []
    for name in options.names or SHORT:
        SHOWN.clear()
        importlib.import_module(f"benchmarks.{name}").main()
        if options.check:
            slower += ratios.worse(SHOWN, ratios.load().get(name, {}).get("ratios", []))
        if options.save and SHOWN:
            ratios.save(name, SHOWN)
    for line in slower:
        print(f"worse than before: {line}", file=sys.stderr)
    return bool(slower)


if __name__ == "__main__":
    sys.exit(main())
