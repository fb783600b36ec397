"""How the generators are trained on public images; one file each."""

from calor_hf.priors._loop import train_prior
from calor_hf.priors.base import PRIORS, PriorConfig, PriorTraining
from calor_hf.priors.budget import size_for, time_step

__all__ = ["PRIORS", "PriorConfig", "PriorTraining", "size_for", "time_step", "train_prior"]
