"""Running attacks against a model, and keeping what they rebuild."""

from calor_hf.auditing._store import load_reconstruction, save_reconstruction
from calor_hf.auditing.run import AttackRecord, run_attack

__all__ = ["AttackRecord", "load_reconstruction", "run_attack", "save_reconstruction"]
