"""The prior of GMI: a Wasserstein GAN with gradient penalty."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.generators.dcgan import DCGAN, DCGANConfig
from calor_hf.priors.base import PRIORS, Batch, GANPriorConfig, GANPriorTraining, TrainDraws
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class GMIPriorConfig(GANPriorConfig):
    """Settings of :class:`GMIPriorTraining`."""

    latent_dim: int = setting(100, "Width of the latents.")
    penalty: float = setting(10.0, "Weight of the gradient penalty.")


@PRIORS.register("gmi")
class GMIPriorTraining(GANPriorTraining[GMIPriorConfig]):
    """Faces of no one in particular: the target is not asked, so one prior serves every target.

    The authors train 280 epochs; 30 000 generator updates are the length in MIBench, with which CALoR's tables were
    made.

    Source:
        Zhang et al., CVPR 2020, arXiv:1911.07135; AI-secure/GMI-Attack; MIBench.
    """

    config_class = GMIPriorConfig

    def build(self, image_size: int, target: Target | None) -> DCGAN:
        """DCGAN with the GMI discriminator."""
        config = self.config
        return DCGAN(DCGANConfig(image_size=image_size, latent_dim=config.latent_dim, width=config.width))

    def discriminator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``wasserstein`` E[D(fake)] − E[D(real)], and ``penalty`` on the gradient between real and fake."""
        images = real[0]
        with torch.no_grad():
            fake = generator(draws.normal(generator.latent_dim))
        share = draws.uniform(1)[:, :, None, None]
        between = (share * images + (1 - share) * fake).requires_grad_(True)
        # No batch norm: each image is evaluated for itself. The gradient of a gradient, which is dear, is kept to a
        # third.
        on_real, on_fake = generator.discriminator(torch.cat([images, fake])).chunk(2)
        (slope,) = torch.autograd.grad(generator.discriminator(between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return {"wasserstein": on_fake.mean() - on_real.mean(), "penalty": self.config.penalty * penalty}

    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``adversarial`` −E[D(fake)]."""
        return {"adversarial": -generator.discriminator(generator(draws.normal(generator.latent_dim))).mean()}
