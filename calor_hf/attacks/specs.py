"""Attack specs: ``gmi``, ``plg@calor`` (with a preset), ``plg:objective=ce,steps=300`` (with settings)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calor_hf.attacks.base import ATTACKS, Attack

DEFAULT_ATTACKS = ("auto",)


@dataclass(frozen=True)
class NamedAttack:
    """Attack made from a spec.

    Attributes:
        name: Name in tables, and of its folder; tells settings apart.
        kind: Registered name.
        attack: Ready to run.
        effort: Least ratio of a setting that sets the effort to that of the preset, 1 for all of it.
        changed: Other settings that differ from the preset's.
    """

    name: str
    kind: str
    attack: Attack[Any]
    effort: float = 1.0
    changed: tuple[str, ...] = ()


def parse_attacks(
    specs: Sequence[str] = DEFAULT_ATTACKS,
    preset: str = "original",
    budget: str | float = "paper",
    settings: Sequence[str] = (),
) -> list[NamedAttack]:
    """Make attacks from specs.

    Args:
        specs: One for each attack.
        preset: Preset of the specs that name none.
        budget: ``paper``, ``demo``, or a factor of the published effort.
        settings: ``name=value`` for all attacks; settings of a spec take precedence.

    Raises:
        ValueError: unknown attack, preset, budget or setting, no attack, or the same attack twice.
    """
    attacks = [parse_attack(spec, preset, budget, settings) for spec in specs]
    if not attacks:
        raise ValueError("no attacks to run; pass at least one (calor-hf list)")
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names):
        raise ValueError(f"expected every attack once, got {', '.join(names)}; give one of them other settings")
    return attacks


def parse_attack(
    spec: str, preset: str = "original", budget: str | float = "paper", settings: Sequence[str] = ()
) -> NamedAttack:
    """Make an attack from its spec; arguments and errors as :func:`parse_attacks`."""
    head, _, own = spec.partition(":")
    kind_name, at, own_preset = head.partition("@")
    try:
        kind = ATTACKS.get(kind_name)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    pairs = [pair for pair in own.split(",") if pair]
    try:
        values = kind.config_class.parse([*settings, *pairs])
        if {"preset", "budget"} & values.keys():
            raise ValueError(f"preset and budget are no settings; pass {kind_name}@PRESET, and the option --budget")
        attack = kind(kind.configure(own_preset if at else preset, budget, **values))
        # Against the published settings, as `gmi:steps=100` weakens an attack as much as a small budget.
        source, scaled = (kind(kind.configure(own_preset if at else preset, one)) for one in ("paper", budget))
        effort, changed = attack.effort(source, scaled)
    except (TypeError, ValueError) as error:
        raise ValueError(f"attack {spec}: {error}") from error
    # The name is a folder's: of a setting that is a path, the last part.
    parts = [(key, value.rstrip("/").rpartition("/")[2]) for key, _, value in (pair.partition("=") for pair in pairs)]
    name = "-".join([head.replace("@", "-"), *(f"{key}-{value}" for key, value in parts)])
    return NamedAttack(name, kind_name, attack, effort, changed)
