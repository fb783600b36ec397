"""Which attacks an audit runs, as a user writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calor_hf.attacks import Attack
from calor_hf.attacks.specs import attack_of

DEFAULT_ATTACKS = ("auto",)


@dataclass(frozen=True)
class PlannedAttack:
    """One attack of an audit.

    Attributes:
        name: As the tables print it, and the name of its folder.
        kind: Registered name.
        attack: Ready to run.
    """

    name: str
    kind: str
    attack: Attack[Any]


def plan_attacks(
    words: Sequence[str | PlannedAttack] | None = None,
    preset: str = "original",
    budget: str | float = "paper",
    settings: Sequence[str] = (),
) -> list[PlannedAttack]:
    """Attacks from words such as ``gmi``, ``plg@calor`` (a preset) or ``plg:objective=ce,steps=300`` (settings).

    Args:
        words: One an attack, or attacks that are planned already; None: :data:`DEFAULT_ATTACKS`.
        preset: Of the attacks whose word names none.
        budget: ``paper``, ``demo``, or a factor.
        settings: Words ``name=value`` for all of them; those of a word itself come later and win.

    Raises:
        ValueError: unknown attack, preset, budget or setting, or the same attack twice.
    """
    planned = [
        word if isinstance(word, PlannedAttack) else PlannedAttack(*attack_of(word, preset, budget, settings))
        for word in (DEFAULT_ATTACKS if words is None else words)
    ]
    if not planned:
        raise ValueError("no attacks to run; pass at least one (calor-hf list)")
    names = [one.name for one in planned]
    if len(set(names)) < len(names):
        raise ValueError(f"every attack once, got {', '.join(names)}; give one of them other settings")
    return planned
