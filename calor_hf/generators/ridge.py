"""A linear decoder: images as an affine function of a target's features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig, setting
from calor_hf.generators.base import GENERATORS, Generator
from calor_hf.generators.denoiser import as_images


@dataclass(frozen=True, kw_only=True)
class RidgeConfig(MethodConfig):
    """Settings of :class:`Ridge`."""

    image_size: int = setting(64, "Side of the images in pixels.", ge=1)
    latent_dim: int = setting(128, "Width of the latents, which is that of the target's features.", ge=1)


@GENERATORS.register("ridge")
class Ridge(Generator[RidgeConfig]):
    """Images linear in the features of the network that it was trained for: ``weight · features + bias``.

    Standard normal latents have the mean and the covariance of the features of public images, ``center`` and ``factor ·
    factorᵀ``. It paints blurred faces, in as many directions as there are features: those that the target sees. An
    attack has little room for changes that fool the target alone.

    ``moments``, of which training goes on, are sums over the images of products of features, with a 1 after the last
    feature: the last one is the number of images.
    """

    config_class = RidgeConfig
    moments: Tensor
    center: Tensor
    factor: Tensor

    def __init__(self, config: RidgeConfig) -> None:
        super().__init__(config)
        self.image_size, self.latent_dim = side, width = config.image_size, config.latent_dim
        self.weight = nn.Parameter(torch.randn(3 * side**2, width) / (2 * width**0.5))
        self.bias = nn.Parameter(torch.zeros(3 * side**2))
        self.register_buffer("moments", torch.zeros(width + 1, width + 1))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("factor", torch.eye(width))

    def decode(self, features: Tensor) -> Tensor:
        """(batch, 3 · side²) pixels in about [−1, 1], unclamped, from (batch, latent_dim) features."""
        return features @ self.weight.T + self.bias

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 3, side, side) in [0, 1] from (batch, latent_dim); values outside keep their gradient."""
        points = self.decode(self.center + latents @ self.factor.T)
        return as_images(points.view(-1, 3, self.image_size, self.image_size))
