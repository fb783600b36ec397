"""The prior of KED: a semi-supervised GAN whose discriminator learns the target's labels of public images."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.generators.dcgan import DCGAN, DCGANConfig
from calor_hf.priors.base import PRIORS, Batch, GANPriorConfig, GANPriorTraining, TrainDraws
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class KEDPriorConfig(GANPriorConfig):
    """Settings of :class:`KEDPriorTraining`."""

    steps: int = 10_000
    latent_dim: int = setting(100, "Width of the latents.")
    entropy: float = setting(1e-4, "Weight of the summed entropy of labels of fakes.")


@PRIORS.register("ked")
class KEDPriorTraining(GANPriorTraining[KEDPriorConfig]):
    """Faces as the target knows them: it labels the public images, the discriminator learns the labels.

    The authors train 120 epochs; 10 000 generator updates are MIBench's length.

    Source:
        Chen et al., ICCV 2021, arXiv:2010.04092; SCccc21/Knowledge-Enriched-DMI.
    """

    config_class = KEDPriorConfig
    needs_target = True
    batches_per_update = 2  # the labeled images and the unlabeled ones

    def build(self, image_size: int, target: Target | None) -> DCGAN:
        """DCGAN with KED's discriminator, for the target's classes."""
        classes, c = self.asked(target).num_classes, self.config
        return DCGAN(
            DCGANConfig(
                image_size=image_size, latent_dim=c.latent_dim, width=c.width, discriminator="ked", num_classes=classes
            )
        )

    def discriminator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``labels``: cross-entropy to the target's soft labels; ``realness``: real images are a class, fakes none."""
        labeled, unlabeled = real[0].chunk(2)
        with torch.no_grad():
            soft = self.asked(target)(labeled).float().softmax(dim=1)
            fake = generator(draws.normal(generator.latent_dim))
        on_labeled = generator.discriminator(labeled)[1]
        on_real = generator.discriminator(unlabeled)[1].logsumexp(dim=1)
        on_fake = generator.discriminator(fake)[1].logsumexp(dim=1)
        realness = F.softplus(on_real).mean() - on_real.mean() + F.softplus(on_fake).mean()
        return {"labels": F.cross_entropy(on_labeled, soft), "realness": 0.5 * realness}

    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``features``: the fakes' mean features are the real ones'; ``entropy``: a fake is clearly of one class."""
        unlabeled = real[0].chunk(2)[1]
        fake = generator(draws.normal(generator.latent_dim))
        with torch.no_grad():
            on_real = generator.discriminator(unlabeled)[0]
        on_fake, logits = generator.discriminator(fake)
        distance = (on_fake.mean(dim=0) - on_real.mean(dim=0)).abs().mean()
        entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        # A sum over the whole batch, of which this process may hold a share.
        return {"features": distance, "entropy": self.config.entropy * self.config.batch_size * entropy}
