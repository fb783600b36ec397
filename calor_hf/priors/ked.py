"""The prior of KED: a semi-supervised GAN whose discriminator learns the target's labels of public images."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.generators.dcgan import DCGAN, DCGANConfig
from calor_hf.priors.base import PRIORS, PriorConfig, PriorTraining, TrainDraws
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class KEDPriorConfig(PriorConfig):
    """Settings of :class:`KEDPriorTraining`."""

    steps: int = field(default=10_000, metadata={"help": "Updates of the generator."})
    latent_dim: int = field(default=100, metadata={"help": "Width of the latents."})
    entropy: float = field(default=1e-4, metadata={"help": "Weight of the summed entropy of labels of fakes."})


@PRIORS.register("ked")
class KEDPriorTraining(PriorTraining[KEDPriorConfig]):
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
        if target is None:
            raise ValueError("the prior 'ked' asks the model under attack for labels; pass target=")
        return DCGAN(
            DCGANConfig(
                image_size=image_size,
                latent_dim=self.config.latent_dim,
                width=self.config.width,
                discriminator="ked",
                num_classes=target.num_classes,
            )
        )

    def discriminator_loss(
        self, generator: Any, target: Target | None, real: tuple[Tensor, Tensor], draws: TrainDraws
    ) -> dict[str, Tensor]:
        """``labels``: cross-entropy to the target's soft labels; ``realness``: real images are a class, fakes none."""
        if target is None:
            raise ValueError("the prior 'ked' asks the model under attack for labels; pass target=")
        labeled, unlabeled = real[0].chunk(2)
        with torch.no_grad():
            soft = target(labeled).float().softmax(dim=1)
            fake = generator(draws.normal(generator.latent_dim))
        on_labeled = generator.discriminator(labeled)[1]
        on_real = generator.discriminator(unlabeled)[1].logsumexp(dim=1)
        on_fake = generator.discriminator(fake)[1].logsumexp(dim=1)
        realness = F.softplus(on_real).mean() - on_real.mean() + F.softplus(on_fake).mean()
        return {"labels": F.cross_entropy(on_labeled, soft), "realness": 0.5 * realness}

    def generator_loss(
        self, generator: Any, target: Target | None, real: tuple[Tensor, Tensor], draws: TrainDraws
    ) -> dict[str, Tensor]:
        """``features``: the fakes' mean features are the real ones'; ``entropy``: each fake is someone."""
        unlabeled = real[0].chunk(2)[1]
        fake = generator(draws.normal(generator.latent_dim))
        with torch.no_grad():
            on_real = generator.discriminator(unlabeled)[0]
        on_fake, logits = generator.discriminator(fake)
        distance = (on_fake.mean(dim=0) - on_real.mean(dim=0)).abs().mean()
        entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        # A sum over the whole batch, of which this process may hold a share.
        return {"features": distance, "entropy": self.config.entropy * self.config.batch_size * entropy}
