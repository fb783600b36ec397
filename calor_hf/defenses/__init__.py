"""One defense per file; the registry finds them by import."""

from calor_hf.defenses.base import DEFENSES, Defense

__all__ = ["DEFENSES", "Defense"]
