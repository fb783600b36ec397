"""`calor-hf list`: registered methods and their settings."""

import dataclasses
import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from calor_hf.cli._command import Command
from calor_hf.core.config import setting
from calor_hf.core.registry import Registry
from calor_hf.core.sources import summaries
from calor_hf.core.suggestion import unknown

KINDS = ("defenses", "attacks", "generators", "priors")  # packages, whose registry is their name in capitals


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of :func:`show`."""

    name: str | None = setting(None, "a defense, attack, generator or prior, to see its settings", positional=True)


def show(options: ListOptions) -> None:
    """Print each registered name with its summary; for one name, its description and settings.

    Raises:
        ValueError: an unknown name.
    """
    known = {kind: summaries(f"calor_hf.{kind}") for kind in KINDS}  # from the files: importing them takes seconds
    name = options.name
    if name is None:
        for kind, methods in known.items():
            print(f"{kind} (calor-hf list NAME shows the settings):")
            for known_name, summary in methods.items():
                print(f"  {known_name:<16} {summary}")
        return
    kinds = [kind for kind, methods in known.items() if name in methods]
    if not kinds:
        raise ValueError(unknown("name", name, {one for methods in known.values() for one in methods}))
    for kind in kinds:
        registry: Registry[Any] = getattr(importlib.import_module(f"calor_hf.{kind}"), kind.upper())
        method = registry.get(name)
        print(f"{name} ({kind}): {inspect.getdoc(method)}\n\nsettings:")
        for field in dataclasses.fields(method.config_class):
            default = "(no default)" if field.default is dataclasses.MISSING else repr(field.default)
            print(f"  {field.name} = {default}\n      {field.metadata.get('help', '')}")
        for preset, values in getattr(method, "presets", {}).items():
            print(f"preset {preset}: {', '.join(f'{k}={v}' for k, v in values.items())}")
        print()


main = Command("list", "Show the registered methods and their settings.", ListOptions, show).main
