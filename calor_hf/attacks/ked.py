"""KED: a Gaussian of latents for each class, instead of points."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig
from calor_hf.core.config import setting
from calor_hf.generators import Generator


@dataclass(frozen=True, kw_only=True)
class KEDConfig(GradientAttackConfig):
    """Settings of :class:`KED`."""

    steps: int = setting(2400, "Optimization steps; the paper's text says 1500.")
    lr: float = setting(0.02, "Learning rate of Adam.")
    draws: int = setting(1, "Samples of each class's Gaussian a step.", ge=1)
    start_mean: str = setting("zero", "Where the means start: zero, or random latents.", choices=("zero", "random"))
    start_log_variance: float = setting(1.0, "Logarithm of the variance at the start.")
    clip: float | None = setting(None, "Samples are cut to ± this; none: as they are.")
    identity_weight: float = 100.0


@ATTACKS.register("ked")
class KED(GradientAttack[KEDConfig]):
    """Fit one Gaussian of latents per class; the images are draws from it (Chen et al., ICCV 2021).

    Source:
        Chen et al., ICCV 2021, arXiv:2010.04092; SCccc21/Knowledge-Enriched-DMI `recovery.py`. Preset ``calor``:
        MIBench, whose means start from random latents.
    """

    config_class = KEDConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"calor": {"start_mean": "random"}}

    def group(self, images_per_class: int) -> int:
        """Samples per class in each step."""
        return self.config.draws

    def start(self, generator: Generator[Any], latents: Tensor, batch: Batch) -> Tensor:
        """(classes, 2, latent_dim): mean and log-variance of each class."""
        mean = latents[:: batch.group]  # with initial candidates: the best of them
        if self.config.start_mean == "zero" and self.config.initial_candidates == 0:
            mean = torch.zeros_like(mean)
        return torch.stack([mean, torch.full_like(mean, self.config.start_log_variance)], dim=1)

    def latents(self, variables: Tensor, batch: Batch) -> Tensor:
        """A fresh sample for every row."""
        mean, log_variance = variables.repeat_interleave(batch.group, dim=0).unbind(dim=1)
        # Reparametrized, so that the gradient passes through the sample to mean and variance.
        sample = mean + (0.5 * log_variance).exp() * batch.normal("attacks/ked/latents", mean.shape[1])
        # The authors' code seems to clip samples, but clips a copy that only logging sees: no clip by default.
        return sample if self.config.clip is None else sample.clamp(-self.config.clip, self.config.clip)

    def prior(self, generator: Generator[Any], images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``prior``: minus the realism, if the generator has one."""
        # Minibatch discrimination within a class only; the authors' compares all classes of a batch, so that the result
        # of a class depends on its neighbors.
        return {"prior": -generator.realism(images, batch.labels, batch.group)} if generator.has_realism else {}
