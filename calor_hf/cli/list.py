"""`calor-hf list`: what is registered."""

import argparse
import inspect
from collections.abc import Sequence

from calor_hf.defenses import DEFENSES


def main(argv: Sequence[str]) -> int:
    """Print each registered name with the first line of its description."""
    parser = argparse.ArgumentParser(prog="calor-hf list", description="Show what is registered.")
    parser.parse_args(argv)
    print("defences:")
    for name in DEFENSES.names():
        summary = (inspect.getdoc(DEFENSES.get(name)) or "").partition("\n")[0]
        print(f"  {name:<10} {summary}")
    return 0
