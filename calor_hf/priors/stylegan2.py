"""The prior of Mirror, PPA and IF: StyleGAN2, for those who have no official network for their images."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.generators.stylegan2 import StyleGAN2, StyleGAN2Config
from calor_hf.priors.base import PRIORS, Batch, GANPriorConfig, GANPriorTraining, TrainDraws
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class StyleGAN2PriorConfig(GANPriorConfig):
    """Settings of :class:`StyleGAN2PriorTraining`."""

    steps: int = 781_250
    discriminator_steps: int = 1
    batch_size: int = 32
    lr: float = 2e-3
    beta1: float = 0.0
    beta2: float = 0.99
    latent_dim: int = setting(512, "Width of the styles and of what they are made from.")
    max_channels: int = setting(512, "Channels at most.")
    mapping_layers: int = setting(8, "Layers from z to w.")
    truncation: float = setting(0.5, "Truncation of sampled styles, kept with the generator.")
    gamma: float | None = setting(None, "Weight of the gradient penalty; none: 0.0002 · side² / batch_size.", ge=0)
    interval: int = setting(16, "Updates from one with the gradient penalty to the next.", gt=0)
    mixing: float = setting(0.9, "Share of fakes with another style from some layer on.", ge=0, le=1)
    flip: bool = setting(True, "Whether half of the real images are mirrored.")
    ema_images: int = setting(10_000, "Half-life of the mean of the weights, in images.", gt=0)
    ema_ramp: float = setting(0.05, "Half-life at most, as a share of the images so far.", gt=0)


@PRIORS.register("stylegan2")
class StyleGAN2PriorTraining(GANPriorTraining[StyleGAN2PriorConfig]):
    """Logistic loss, a gradient penalty on real images in some updates, and the mean of the weights as the generator.

    Defaults are those of the 1024-pixel network (25 million images), except for the penalty's weight and the ramp of
    the mean, which follow the authors' later rule for any size and length. The penalty is a term of the ordinary
    update, ``interval`` times as heavy as if it were in each; the authors give it an update of its own. Left out: the
    path length term, and the adaptive augmentation for small image sets, which would need its own chain of transforms.

    Source:
        Karras et al., CVPR 2020, arXiv:1912.04958; Mescheder et al., ICML 2018, arXiv:1801.04406 (the penalty);
        NVlabs/stylegan2-ada-pytorch.
    """

    config_class = StyleGAN2PriorConfig

    def build(self, image_size: int, target: Target | None) -> StyleGAN2:
        """StyleGAN2 with its discriminator."""
        names = ("width", "max_channels", "mapping_layers", "truncation")
        shared = {name: getattr(self.config, name) for name in names}
        width = self.config.latent_dim
        return StyleGAN2(StyleGAN2Config(image_size=image_size, z_dim=width, w_dim=width, **shared))

    def mean_decay(self, step: int) -> float:
        """So that weights of ``ema_images`` images ago count half, or of a share of the images so far at first."""
        batch = self.config.batch_size
        return float(0.5 ** (batch / min(self.config.ema_images, self.config.ema_ramp * step * batch)))

    def discriminator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``real`` and ``fake``: logistic losses; ``penalty``, in some updates: the squared slope at real images."""
        images = 2 * real[0] - 1
        if self.config.flip:
            images = torch.where(draws.uniform(1)[:, :, None, None] < 0.5, images.flip(3), images)
        with torch.no_grad():
            fake = self._paint(generator, draws)[1]
        penalized = (draws.step + 1) % self.config.interval == 0
        on_real = generator.discriminator(images.requires_grad_(penalized))
        terms = {"real": F.softplus(-on_real).mean(), "fake": F.softplus(generator.discriminator(fake)).mean()}
        if penalized:
            (slope,) = torch.autograd.grad(on_real.sum(), images, create_graph=True)
            weight = self.config.gamma
            if weight is None:
                weight = 0.0002 * generator.image_size**2 / self.config.batch_size
            terms["penalty"] = weight / 2 * self.config.interval * slope.square().sum(dim=(1, 2, 3)).mean()
        return terms

    def generator_loss(self, generator: Any, target: Any, real: Batch, draws: TrainDraws) -> dict[str, Tensor]:
        """``adversarial``: the fakes taken for real; also updates the mean style."""
        styles, fake = self._paint(generator, draws)
        generator.mapping.follow(styles)
        return {"adversarial": F.softplus(-generator.discriminator(fake)).mean()}

    def _paint(self, generator: StyleGAN2, draws: TrainDraws) -> tuple[Tensor, Tensor]:
        """Styles (batch, w_dim), and images in about [-1, 1], unclamped, with noise and some mixed styles."""
        layers, sides = generator.synthesis.num_styles, generator.synthesis.sides
        first, second = (generator.mapping(draws.normal(generator.config.z_dim)) for _ in range(2))
        mixed, place = draws.uniform(2).T
        change = torch.where(mixed < self.config.mixing, 1 + (place * (layers - 1)).floor(), layers)
        own = torch.arange(layers, device=change.device) < change[:, None]
        styles = torch.where(own[:, :, None], first[:, None], second[:, None])
        numbers = draws.normal(sum(side**2 for side in sides)).split([side**2 for side in sides], dim=1)
        noise = [part.view(-1, 1, side, side) for part, side in zip(numbers, sides, strict=True)]
        return first, generator.synthesis(styles, noise)[1]
