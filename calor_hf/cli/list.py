"""`calor-hf list`: what is registered, and the settings of a method."""

import argparse
import dataclasses
import difflib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

from calor_hf.attacks import ATTACKS
from calor_hf.core.registry import Registry
from calor_hf.defenses import DEFENSES
from calor_hf.generators import GENERATORS
from calor_hf.priors import PRIORS

KINDS: dict[str, Registry[Any]] = {
    "defenses": DEFENSES,
    "attacks": ATTACKS,
    "generators": GENERATORS,
    "priors": PRIORS,
}


def main(argv: Sequence[str]) -> int:
    """Print each registered name with the first line of its description; of one name, all of it and its settings.

    Returns:
        0; 2 for an unknown name.
    """
    parser = argparse.ArgumentParser(prog="calor-hf list", description="Show what is registered.")
    parser.add_argument("name", nargs="?", help="a defense, attack, generator or prior, to see its settings")
    name = parser.parse_args(argv).name
    if name is None:
        for kind, registry in KINDS.items():
            print(f"{kind} (calor-hf list NAME shows the settings):")
            for known in registry.names():
                summary = (inspect.getdoc(registry.get(known)) or "").partition("\n")[0]
                print(f"  {known:<16} {summary}")
        return 0
    found = [(kind, registry.get(name)) for kind, registry in KINDS.items() if name in registry.names()]
    if not found:
        known_names = sorted({known for registry in KINDS.values() for known in registry.names()})
        near = difflib.get_close_matches(name, known_names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        print(f"calor-hf list: unknown name '{name}'.{hint} Known: {', '.join(known_names)}", file=sys.stderr)
        return 2
    for kind, method in found:
        print(f"{name} ({kind}): {inspect.getdoc(method)}\n\nsettings:")
        for field in dataclasses.fields(method.config_class):
            default = "(no default)" if field.default is dataclasses.MISSING else repr(field.default)
            print(f"  {field.name} = {default}\n      {field.metadata.get('help', '')}")
        for preset, values in getattr(method, "presets", {}).items():
            print(f"preset {preset}: {', '.join(f'{k}={v}' for k, v in values.items())}")
        print()
    return 0
