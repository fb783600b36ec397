"""Robustness to adversarial examples and to backdoors in the training data."""

from calor_hf.robustness.adversarial import ADVERSARIAL, AdversarialResult, adversarial, caveats
from calor_hf.robustness.backdoor import TRIGGERS, BackdoorResult, BadNets, Blended, Trigger, backdoor_rates
from calor_hf.robustness.poisoned_dataset import PoisonedDataset
from calor_hf.robustness.robust_accuracy import RADII, robust_accuracy
from calor_hf.robustness.share import Share

__all__ = [
    "ADVERSARIAL", "RADII", "TRIGGERS", "AdversarialResult", "BackdoorResult", "BadNets", "Blended", "PoisonedDataset",
    "Share", "Trigger", "adversarial", "backdoor_rates", "caveats", "robust_accuracy",
]  # fmt: skip
