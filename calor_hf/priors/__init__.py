"""How the generators are trained on public images; one file each."""

from calor_hf.priors._base import PRIORS, Prior, PriorConfig
from calor_hf.priors._loop import train_prior

__all__ = ["PRIORS", "Prior", "PriorConfig", "train_prior"]
