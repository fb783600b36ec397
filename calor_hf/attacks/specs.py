"""Attacks as a user writes them: ``gmi``, ``plg@calor`` (a preset), ``plg:objective=ce,steps=300`` (settings)."""

from collections.abc import Sequence
from typing import Any

from calor_hf.attacks.base import ATTACKS, Attack


def attack_of(
    word: str, preset: str = "original", budget: str | float = "paper", settings: Sequence[str] = ()
) -> tuple[str, str, Attack[Any]]:
    """An attack from a word.

    Args:
        word: As above.
        preset: Where the word names none.
        budget: ``paper``, ``demo``, or a factor.
        settings: Words ``name=value``; those of the word itself come later and win.

    Returns:
        Its name as tables and folders have it, its registered name, and the attack.

    Raises:
        ValueError: unknown attack, preset, budget or setting.
    """
    head, _, own = word.partition(":")
    kind_name, at, own_preset = head.partition("@")
    try:
        kind = ATTACKS.get(kind_name)
    except KeyError as error:
        raise ValueError(error.args[0]) from error
    words = [*settings, *(part for part in own.split(",") if part)]
    try:
        values = kind.config_class.parse(words)
        attack = kind(kind.configure(own_preset if at else preset, budget, **values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"attack {word}: {error}") from error
    # A folder is named so: of a setting that is a path, the last part.
    pairs = [part.partition("=") for part in own.split(",")] if own else []
    words = [f"{key}-{value.rstrip('/').rpartition('/')[2]}" for key, _, value in pairs]
    return "-".join([head.replace("@", "-"), *words]), kind_name, attack
