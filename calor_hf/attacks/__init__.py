"""Attacks that rebuild training images from a classifier; one file each."""

from calor_hf.attacks._base import ATTACKS, Attack, AttackConfig
from calor_hf.attacks._gradient import GradientAttack, GradientAttackConfig

__all__ = ["ATTACKS", "Attack", "AttackConfig", "GradientAttack", "GradientAttackConfig"]
