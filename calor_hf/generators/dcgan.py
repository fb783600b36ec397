"""The 64-pixel DCGAN of the GMI line of attacks, with the discriminators of GMI and of KED."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig
from calor_hf.generators.base import GENERATORS, Generator, check_side, up_channels

DISCRIMINATORS = ("none", "gmi", "ked")


@dataclass(frozen=True, kw_only=True)
class DCGANConfig(MethodConfig):
    """Settings of :class:`DCGAN`."""

    image_size: int = field(default=64, metadata={"help": "Side in pixels, a power of two from 16 on."})
    latent_dim: int = field(default=100, metadata={"help": "Width of the latents."})
    width: int = field(default=64, metadata={"help": "Channels of the largest maps."})
    discriminator: str = field(default="gmi", metadata={"help": "Discriminator saved with it: gmi, ked or none."})
    num_classes: int = field(default=0, metadata={"help": "Classes that a ked discriminator tells apart."})

    def validate(self) -> None:
        """Refuse sides that the strides do not divide, and a labeling discriminator without labels."""
        check_side(self.image_size)
        if self.latent_dim < 1 or self.width < 1:
            raise ValueError(f"latent_dim and width must be >= 1, got {self.latent_dim} and {self.width}")
        if self.discriminator not in DISCRIMINATORS:
            raise ValueError(f"unknown discriminator {self.discriminator!r}; pass one of {', '.join(DISCRIMINATORS)}")
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
        self.num_blocks, self._channels = len(channels), channels
        first = channels[0] * 16
        self.stem = nn.Sequential(nn.Linear(config.latent_dim, first, bias=False), nn.BatchNorm1d(first), nn.ReLU())
        self.blocks = nn.Sequential(*[_up(a, b) for a, b in pairwise(channels)])
        self.last = nn.ConvTranspose2d(channels[-1], 3, 5, stride=2, padding=2, output_padding=1)
        self.discriminator: nn.Module | None = None
        if config.discriminator == "gmi":
            self.discriminator = GMIDiscriminator(config.image_size, config.width)
        elif config.discriminator == "ked":
            self.discriminator = KEDDiscriminator(config.image_size, config.num_classes, config.width)

    @property
    def has_realism(self) -> bool:  # type: ignore[override]
        """Whether it has a discriminator."""
        return self.discriminator is not None

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 3, size, size) in (0, 1) from (batch, latent_dim)."""
        images = self.run_blocks(latents)[1]
        assert images is not None  # the last block was run
        return images

    def run_blocks(
        self,
        latents: Tensor,
        hidden: Tensor | None = None,
        start: int = 0,
        stop: int | None = None,
        image: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Feature map and image; the latents enter block 0 alone, and the layer that paints belongs to the last."""
        blocks = self._range(hidden, start, stop)
        for block in blocks:
            hidden = self.stem(latents).view(len(latents), -1, 4, 4) if block == 0 else self.blocks[block - 1](hidden)
        assert hidden is not None  # at least one block was run
        return hidden, torch.sigmoid(self.last(hidden)) if blocks.stop == self.num_blocks else None

    def hidden_shape(self, start: int) -> tuple[int, int, int]:
        """(channels, height, width) of the map entering block ``start``, 1 to num_blocks."""
        return self._map_of(self._channels, start)

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
