"""How the generators are trained on public images; one file each."""

from calor_hf.priors._loop import train_prior
from calor_hf.priors.base import PRIORS, PriorConfig, PriorTraining

__all__ = ["PRIORS", "PriorConfig", "PriorTraining", "train_prior"]
