"""The class-conditional GAN of PLG and LOKT: residual blocks, conditional batch norm, and their discriminators."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from calor_hf.core.config import MethodConfig
from calor_hf.generators.base import GENERATORS, Generator, check_side, up_channels

DISCRIMINATORS = ("projection", "auxiliary")


@dataclass(frozen=True, kw_only=True)
class ConditionalConfig(MethodConfig):
    """Settings of :class:`Conditional`."""

    num_classes: int = field(default=1000, metadata={"help": "Classes of the target."})
    image_size: int = field(default=64, metadata={"help": "Side in pixels, a power of two from 16 on."})
    latent_dim: int = field(default=128, metadata={"help": "Width of the latents."})
    width: int = field(default=64, metadata={"help": "Channels of the largest maps."})
    discriminator: str = field(
        default="projection", metadata={"help": "Discriminator: projection, or auxiliary (LOKT)."}
    )

    def validate(self) -> None:
        """Refuse sides that the blocks do not reach."""
        check_side(self.image_size)
        if self.discriminator not in DISCRIMINATORS:
            raise ValueError(f"unknown discriminator {self.discriminator!r}; pass one of {', '.join(DISCRIMINATORS)}")
        if min(self.num_classes, self.latent_dim, self.width) < 1:
            raise ValueError(
                "num_classes, latent_dim and width must be >= 1, got "
                f"{self.num_classes}, {self.latent_dim} and {self.width}"
            )


@GENERATORS.register("conditional")
class Conditional(Generator[ConditionalConfig]):
    """Images of a wanted class, from pseudo-labeled public images.

    The authors' network ends in a tanh and is trained against images in [0, 1] as it is, so that the lower half of its
    range lies idle; ours ends in (tanh + 1) / 2, which keeps images in [0, 1] at every border.

    Source:
        Yuan et al., "Pseudo Label-Guided Model Inversion Attack via Conditional GAN", AAAI 2023, arXiv:2302.09814;
        LetheSec/PLG-MI-Attack.
    """

    config_class = ConditionalConfig
    has_realism = True

    def __init__(self, config: ConditionalConfig) -> None:
        super().__init__(config)
        self.latent_dim, self.image_size, self.num_classes = config.latent_dim, config.image_size, config.num_classes
        channels = up_channels(config.image_size, config.width, most=4, first=4)
        self.num_blocks, self._channels = len(channels), channels
        self.stem = nn.Linear(config.latent_dim, channels[0] * 16)
        pairs = pairwise(channels)
        self.blocks = nn.ModuleList([_UpBlock(a, b, config.num_classes) for a, b in pairs])
        self.norm = nn.BatchNorm2d(channels[-1])
        self.last = nn.Conv2d(channels[-1], 3, 1)
        _start(self)
        kind = ProjectionDiscriminator if config.discriminator == "projection" else AuxiliaryDiscriminator
        self.discriminator: nn.Module = kind(config.image_size, config.num_classes, config.width)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 3, size, size) in (0, 1) from (batch, latent_dim) and labels (batch,).

        Raises:
            ValueError: no labels.
        """
        images = self.run_blocks(latents, labels=labels)[1]
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
        """Feature map and image; latents enter block 0 alone, labels the others, and the last of them paints.

        Raises:
            ValueError: no labels, or what the base class says.
        """
        if labels is None:
            raise ValueError("the generator 'conditional' draws images of a class; pass labels")
        blocks = self._range(hidden, start, stop)
        for block in blocks:
            if block == 0:
                hidden = self.stem(latents).view(len(latents), -1, 4, 4)
            else:
                hidden = self.blocks[block - 1](hidden, labels)
        assert hidden is not None  # at least one block was run
        if blocks.stop < self.num_blocks:
            return hidden, None
        return hidden, (torch.tanh(self.last(F.relu(self.norm(hidden)))) + 1) / 2

    def hidden_shape(self, start: int) -> tuple[int, int, int]:
        """(channels, height, width) of the map entering block ``start``, 1 to num_blocks."""
        return self._map_of(self._channels, start)

    def realism(self, images: Tensor, labels: Tensor | None = None, group: int = 1) -> Tensor:
        """(batch,) values of the discriminator for images of ``labels``; an auxiliary one's are of the image alone."""
        value: Tensor = (
            self.discriminator(images)[0]
            if self.config.discriminator == "auxiliary"
            else self.discriminator(images, labels)
        )
        return value


class _ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift belong to the class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_classes, channels)
        self.shift = nn.Embedding(num_classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scale, shift = (table(labels)[:, :, None, None] for table in (self.scale, self.shift))
        y: Tensor = self.norm(x) * scale + shift
        return y


class _UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = _ConditionalNorm(inputs, num_classes)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _ConditionalNorm(outputs, num_classes)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.conv1(_double(F.relu(self.norm1(x, labels))))
        shortcut: Tensor = self.shortcut(_double(x))
        change: Tensor = self.conv2(F.relu(self.norm2(h, labels)))
        return shortcut + change


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class ProjectionDiscriminator(nn.Module):
    """(batch,) values of images (batch, 3, side, side) for their labels (batch,); spectral norm on every layer."""

    def __init__(self, image_size: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        channels = up_channels(image_size // 2, width, most=4, first=2)[::-1]
        self.first = _DownBlock(3, channels[0], first=True)
        self.blocks = nn.Sequential(*[_DownBlock(a, b) for a, b in pairwise(channels)])
        self.linear = nn.Linear(channels[-1], 1)
        self.embedding = nn.Embedding(num_classes, channels[-1])
        _start(self)
        nn.init.xavier_uniform_(self.embedding.weight)
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(layer)

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Values, unbounded; positive for what looks real and like its label."""
        h = F.relu(self.blocks(self.first(images))).sum(dim=(2, 3))
        value: Tensor = self.linear(h).squeeze(1) + (self.embedding(labels) * h).sum(dim=1)
        return value


class AuxiliaryDiscriminator(nn.Module):
    """Values (batch,) and logits (batch, classes) of images (batch, 3, side, side): how real, and of which class.

    Source:
        Odena et al., "Conditional Image Synthesis with Auxiliary Classifier GANs", ICML 2017, arXiv:1610.09585.
    """

    def __init__(self, image_size: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        channels = up_channels(image_size // 2, width, most=4, first=2)[::-1]
        self.first = _DownBlock(3, channels[0], first=True)
        self.blocks = nn.Sequential(*[_DownBlock(a, b) for a, b in pairwise(channels)])
        self.linear = nn.Linear(channels[-1], 1)
        self.classifier = nn.Linear(channels[-1], num_classes)
        _start(self)
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                spectral_norm(layer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of being real, and the class's logits."""
        h = F.relu(self.blocks(self.first(images))).sum(dim=(2, 3))
        return self.linear(h).squeeze(1), self.classifier(h)


class _DownBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        hidden = outputs if first else inputs
        self.conv1 = nn.Conv2d(inputs, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.is_first = first

    def forward(self, x: Tensor) -> Tensor:
        if self.is_first:
            shortcut: Tensor = self.shortcut(F.avg_pool2d(x, 2))
            return F.avg_pool2d(self.conv2(F.relu(self.conv1(x))), 2) + shortcut
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.shortcut(x), 2)


def _start(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            gain = math.sqrt(2) if name.endswith(("conv1", "conv2")) else 1.0
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
