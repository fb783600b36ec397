"""`calor-hf list`: what is registered, and the settings of a method."""

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Sequence

from calor_hf.defenses import DEFENSES


def main(argv: Sequence[str]) -> int:
    """Print each registered name with the first line of its description; of one name, all of it and its settings.

    Returns:
        0; 2 for an unknown name.
    """
    parser = argparse.ArgumentParser(prog="calor-hf list", description="Show what is registered.")
    parser.add_argument("name", nargs="?", help="a defence, to see its settings")
    name = parser.parse_args(argv).name
    if name is None:
        print("defences (calor-hf list NAME shows the settings):")
        for known in DEFENSES.names():
            summary = (inspect.getdoc(DEFENSES.get(known)) or "").partition("\n")[0]
            print(f"  {known:<16} {summary}")
        return 0
    try:
        method = DEFENSES.get(name)
    except KeyError as error:
        print(f"calor-hf list: {error.args[0]}", file=sys.stderr)
        return 2
    print(f"{name}: {inspect.getdoc(method)}\n\nsettings:")
    for field in dataclasses.fields(method.config_class):
        print(f"  {field.name} = {field.default!r}\n      {field.metadata.get('help', '')}")
    return 0
