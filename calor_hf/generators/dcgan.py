"""The 64-pixel DCGAN of the GMI line of attacks, with the discriminators of GMI and of KED."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig, setting
from calor_hf.generators.base import GENERATORS, Generator, check_side, up_channels


@dataclass(frozen=True, kw_only=True)
class DCGANConfig(MethodConfig):
    """Settings of :class:`DCGAN`."""

    image_size: int = setting(64, "Side in pixels, a power of two from 16 on.")
    latent_dim: int = setting(100, "Width of the latents.", ge=1)
    width: int = setting(64, "Channels of the largest maps.", ge=1)
    discriminator: str = setting(
        "gmi", "Discriminator saved with it: gmi, ked or none.", choices=("none", "gmi", "ked")
    )
    num_classes: int = setting(0, "Classes that a ked discriminator tells apart.")

    def validate(self) -> None:
        """Refuse sides that the strides do not divide, and a labeling discriminator without labels."""
        check_side(self.image_size)
        if (self.discriminator == "ked") != (self.num_classes > 0):
            raise ValueError(f"num_classes needs discriminator ked, got {self.discriminator} and {self.num_classes}")


@GENERATORS.register("dcgan")
class DCGAN(Generator[DCGANConfig]):
    """Five-by-five transposed convolutions from 4 pixels up, ending in a sigmoid.

    At 64 pixels it is the authors' network; other sides take as many maps as they need.

    Source:
        Zhang et al., "The Secret Revealer", CVPR 2020, arXiv:1911.07135; AI-secure/GMI-Attack.
    """

    config_class = DCGANConfig

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__(config)
        self.latent_dim, self.image_size = config.latent_dim, config.image_size
        channels = up_channels(config.image_size // 2, config.width, most=3, first=4)
        self._channels = channels
        first = channels[0] * 16
        self.stem = nn.Sequential(nn.Linear(config.latent_dim, first, bias=False), nn.BatchNorm1d(first), nn.ReLU())
        self.blocks = nn.Sequential(*[_up(a, b) for a, b in pairwise(channels)])
        self.last = nn.ConvTranspose2d(channels[-1], 3, 5, stride=2, padding=2, output_padding=1)
        self.discriminator: nn.Module | None = None
        if config.discriminator == "gmi":
            self.discriminator = GMIDiscriminator(config.image_size, config.width)
        elif config.discriminator == "ked":
            self.discriminator = KEDDiscriminator(config.image_size, config.num_classes, config.width)

    def _run_block(
        self, block: int, latents: Tensor, hidden: Tensor | None, image: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        # The latents enter block 0 alone, and the layer that paints belongs to the last.
        x = self.stem(latents).view(len(latents), -1, 4, 4) if block == 0 else self.blocks[block - 1](hidden)
        return x, torch.sigmoid(self.last(x)) if block + 1 == self.num_blocks else None

    def realism(self, images: Tensor, labels: Tensor | None = None, group: int = 1) -> Tensor:
        """(batch,) the Wasserstein discriminator's value (gmi), or log-probability of being real (ked)."""
        if isinstance(self.discriminator, KEDDiscriminator):
            evidence: Tensor = self.discriminator(images, group)[1].logsumexp(dim=1)
            return evidence - F.softplus(evidence)
        if self.discriminator is None:
            return super().realism(images, labels, group)
        value: Tensor = self.discriminator(images)
        return value


def _up(inputs: int, outputs: int) -> nn.Sequential:
    up = nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1, bias=False)
    return nn.Sequential(up, nn.BatchNorm2d(outputs), nn.ReLU())


def _down(inputs: int, outputs: int, kernel: int = 5) -> nn.Sequential:
    down = nn.Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2)
    return nn.Sequential(down, nn.InstanceNorm2d(outputs, affine=True), nn.LeakyReLU(0.2))


class GMIDiscriminator(nn.Module):
    """(batch,) Wasserstein discriminator values of (batch, 3, side, side) images in [0, 1]."""

    def __init__(self, image_size: int = 64, width: int = 64) -> None:
        super().__init__()
        channels = up_channels(image_size // 2, width, most=3, first=4)[::-1]
        stem = nn.Sequential(nn.Conv2d(3, channels[0], 5, stride=2, padding=2), nn.LeakyReLU(0.2))
        downs = [_down(a, b) for a, b in pairwise(channels)]
        self.layers = nn.Sequential(stem, *downs, nn.Conv2d(channels[-1], 1, 4))

    def forward(self, images: Tensor) -> Tensor:
        """Values, unbounded; real images are meant to have the higher ones."""
        value: Tensor = self.layers(images)
        return value.flatten()


class KEDDiscriminator(nn.Module):
    """The discriminator of KED: features, and logits of the target's classes; "fake" is the absence of evidence.

    With Z = Σ exp(logit), an image is real with probability Z / (Z + 1).

    Source:
        Chen et al., "Knowledge-Enriched Distributional Model Inversion Attacks", ICCV 2021, arXiv:2010.04092;
        SCccc21/Knowledge-Enriched-DMI.
    """

    KERNELS, KERNEL_DIM = 64, 50

    def __init__(self, image_size: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        channels = [3] + [width * min(2**i, 4) for i in range((image_size // 8).bit_length() - 1)]
        downs = [_down(a, b) for a, b in pairwise(channels)]
        self.layers = nn.Sequential(*downs, _down(channels[-1], 4 * width, kernel=3))
        features = 4 * width * 16
        self.kernels = nn.Parameter(torch.randn(features, self.KERNELS * self.KERNEL_DIM))
        self.classifier = nn.Linear(features + self.KERNELS, num_classes)

    def forward(self, images: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
        """Features (batch, 16 · 4 · width) and logits (batch, classes).

        Args:
            images: (batch, 3, side, side) in [0, 1].
            group: Number of neighbors that minibatch discrimination compares; None means all.
        """
        features: Tensor = self.layers(images).flatten(1)
        matrices = (features @ self.kernels).view(-1, group or len(images), self.KERNELS, self.KERNEL_DIM)
        distances = (matrices.unsqueeze(1) - matrices.unsqueeze(2)).abs().sum(-1)  # (groups, group, group, kernels)
        company = (torch.exp(-distances).sum(1) - 1).reshape(len(images), self.KERNELS)
        return features, self.classifier(torch.cat([features, company], dim=1))
