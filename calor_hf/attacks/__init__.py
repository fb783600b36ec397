"""Attacks that rebuild training images from a classifier; one file each."""

from calor_hf.attacks.base import ATTACKS, Attack, AttackConfig
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig

__all__ = ["ATTACKS", "Attack", "AttackConfig", "GradientAttack", "GradientAttackConfig"]
