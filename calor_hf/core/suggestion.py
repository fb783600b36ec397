"""The nearest of some known names, for errors about an unknown one."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'NAME'?`` with the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message of an error about an unknown name, with the nearest known one and all others."""
    names = sorted(known)
    return f"unknown {kind} '{name}'.{did_you_mean(name, names)} Known: {', '.join(names)}"
