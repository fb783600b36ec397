"""How the generators are trained on public images; one file each."""

from calor_hf.priors._loop import train_prior
from calor_hf.priors.base import PRIORS, Prior, PriorConfig

__all__ = ["PRIORS", "Prior", "PriorConfig", "train_prior"]
