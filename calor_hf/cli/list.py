"""`calor-hf list`: registered methods and their settings."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

from calor_hf.attacks import ATTACKS
from calor_hf.cli._command import Command
from calor_hf.core.config import setting
from calor_hf.core.registry import Registry
from calor_hf.core.suggestion import did_you_mean
from calor_hf.defenses import DEFENSES
from calor_hf.generators import GENERATORS
from calor_hf.priors import PRIORS

KINDS: dict[str, Registry[Any]] = {"defenses": DEFENSES, "attacks": ATTACKS, "generators": GENERATORS, "priors": PRIORS}


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of :func:`show`."""

    name: str | None = setting(None, "a defense, attack, generator or prior, to see its settings", positional=True)


def show(options: ListOptions) -> None:
    """Print each registered name with its summary; for one name, its description and settings.

    Raises:
        ValueError: an unknown name.
    """
    name = options.name
    if name is None:
        for kind, registry in KINDS.items():
            print(f"{kind} (calor-hf list NAME shows the settings):")
            for known in registry.names():
                summary = (inspect.getdoc(registry.get(known)) or "").partition("\n")[0]
                print(f"  {known:<16} {summary}")
        return
    found = [(kind, registry.get(name)) for kind, registry in KINDS.items() if name in registry.names()]
    if not found:
        known_names = sorted({known for registry in KINDS.values() for known in registry.names()})
        hint = did_you_mean(name, known_names)
        raise ValueError(f"unknown name '{name}'.{hint} Known: {', '.join(known_names)}")
    for kind, method in found:
        print(f"{name} ({kind}): {inspect.getdoc(method)}\n\nsettings:")
        for field in dataclasses.fields(method.config_class):
            default = "(no default)" if field.default is dataclasses.MISSING else repr(field.default)
            print(f"  {field.name} = {default}\n      {field.metadata.get('help', '')}")
        for preset, values in getattr(method, "presets", {}).items():
            print(f"preset {preset}: {', '.join(f'{k}={v}' for k, v in values.items())}")
        print()


main = Command("list", "Show the registered methods and their settings.", ListOptions, show).main
