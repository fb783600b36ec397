"""The prior of LOKT: an auxiliary-classifier GAN whose fakes the target labels, by its labels alone."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.generators.conditional import Conditional, ConditionalConfig
from calor_hf.priors.base import PRIORS, Batch, GANPriorConfig, GANPriorTraining, TrainDraws
from calor_hf.targets.base import LabelTarget, Target


@dataclass(frozen=True, kw_only=True)
class LOKTPriorConfig(GANPriorConfig):
    """Settings of :class:`LOKTPriorTraining`."""

    steps: int = 21_000
    batch_size: int = 256
    beta1: float = 0.0
    beta2: float = 0.9
    latent_dim: int = setting(128, "Width of the latents.")
    warm_up: int = setting(1000, "Updates of the generator without the target.", ge=0)
    class_weight: float = setting(1.5, "Weight of the classes' cross-entropy afterwards.")


@PRIORS.register("lokt")
class LOKTPriorTraining(GANPriorTraining[LOKTPriorConfig]):
    """Faces by class: the discriminator learns the target's labels of the fakes, and the generator from it.

    The target is asked for labels alone, through a view that gives nothing else; the images have none. Length and
    warm-up are MIBench's, 105 000 and 5000 updates of the discriminator, of which every fifth is one of the generator.

    Source:
        Nguyen et al., "Label-Only Model Inversion Attacks via Knowledge Transfer", NeurIPS 2023, arXiv:2310.19342, with
        the numbers of MIBench.
    """

    config_class = LOKTPriorConfig
    needs_target = True

    def build(self, image_size: int, target: Target | None) -> Conditional:
        """Conditional generator for the target's classes, with an auxiliary classifier."""
        classes, c = self.asked(target).num_classes, self.config
        settings = {"image_size": image_size, "latent_dim": c.latent_dim, "width": c.width}
        return Conditional(ConditionalConfig(num_classes=classes, discriminator="auxiliary", **settings))

    def discriminator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``real`` and ``fake``: cross-entropy of real or not; ``labels``: of the fakes' classes by the target."""
        wanted = draws.labels(generator.num_classes)
        with torch.no_grad():
            fake = generator(draws.normal(generator.latent_dim), wanted)
        on_real, _ = generator.discriminator(real[0])
        on_fake, logits = generator.discriminator(fake)
        # −ln D(real) and −ln(1 − D(fake)), of log-odds.
        terms = {"real": F.softplus(-on_real).mean(), "fake": F.softplus(on_fake).mean()}
        if draws.step >= self.config.warm_up:
            labels = LabelTarget(self.asked(target))(fake)
            terms["labels"] = self.config.class_weight * F.cross_entropy(logits, labels)
        return terms

    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``adversarial`` −ln D(fake), and ``classes``: the discriminator takes each fake for the class it is of."""
        wanted = draws.labels(generator.num_classes)
        on_fake, logits = generator.discriminator(generator(draws.normal(generator.latent_dim), wanted))
        terms = {"adversarial": F.softplus(-on_fake).mean()}
        if draws.step >= self.config.warm_up:
            terms["classes"] = self.config.class_weight * F.cross_entropy(logits, wanted)
        return terms

    def queries(self, steps: int) -> int:
        """Fakes that the target has labeled after so many updates."""
        return self.config.batch_size * self.config.discriminator_steps * max(0, steps - self.config.warm_up)
