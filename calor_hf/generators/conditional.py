"""The class-conditional GAN of PLG and LOKT: residual blocks, conditional batch norm, and their discriminators."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from calor_hf.core.config import MethodConfig, setting
from calor_hf.generators.base import GENERATORS, Generator, check_side, up_channels


@dataclass(frozen=True, kw_only=True)
class ConditionalConfig(MethodConfig):
    """Settings of :class:`Conditional`."""

    num_classes: int = setting(1000, "Classes of the target.", ge=1)
    image_size: int = setting(64, "Side in pixels, a power of two from 16 on.")
    latent_dim: int = setting(128, "Width of the latents.", ge=1)
    width: int = setting(64, "Channels of the largest maps.", ge=1)
    discriminator: str = setting(
        "projection", "Discriminator: projection, or auxiliary (LOKT).", choices=("projection", "auxiliary")
    )

    def validate(self) -> None:
        """Refuse sides that the blocks do not reach."""
        check_side(self.image_size)


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

    def __init__(self, config: ConditionalConfig) -> None:
        super().__init__(config)
        self.latent_dim, self.image_size, self.num_classes = config.latent_dim, config.image_size, config.num_classes
        channels = up_channels(config.image_size, config.width, most=4, first=4)
        self._channels = channels
        self.stem = nn.Linear(config.latent_dim, channels[0] * 16)
        pairs = pairwise(channels)
        self.blocks = nn.ModuleList([_UpBlock(a, b, config.num_classes) for a, b in pairs])
        self.norm = nn.BatchNorm2d(channels[-1])
        self.last = nn.Conv2d(channels[-1], 3, 1)
        _start(self)
        kind = ProjectionDiscriminator if config.discriminator == "projection" else AuxiliaryDiscriminator
        self.discriminator: nn.Module = kind(config.image_size, config.num_classes, config.width)

    def _run_block(
        self, block: int, latents: Tensor, hidden: Tensor | None, image: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        # Latents enter block 0 alone, labels the others, and the last of them paints.
        if labels is None:
            raise ValueError("the generator 'conditional' draws images of a class; pass labels")
        x = self.stem(latents).view(len(latents), -1, 4, 4) if block == 0 else self.blocks[block - 1](hidden, labels)
        return x, (torch.tanh(self.last(F.relu(self.norm(x)))) + 1) / 2 if block + 1 == self.num_blocks else None

    def realism(self, images: Tensor, labels: Tensor | None = None, group: int = 1) -> Tensor:
        """(batch,) values of the discriminator for images of ``labels``; an auxiliary one's are of the image alone."""
        auxiliary = self.config.discriminator == "auxiliary"
        labels = self.own_labels(labels)
        value: Tensor = self.discriminator(images)[0] if auxiliary else self.discriminator(images, labels)
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


class _Discriminator(nn.Module):
    def __init__(self, image_size: int, width: int) -> None:
        super().__init__()
        channels = up_channels(image_size // 2, width, most=4, first=2)[::-1]
        self.width = channels[-1]
        self.first = _DownBlock(3, channels[0], first=True)
        self.blocks = nn.Sequential(*[_DownBlock(a, b) for a, b in pairwise(channels)])
        self.linear = nn.Linear(self.width, 1)

    def _sums(self, images: Tensor) -> Tensor:
        """(batch, width) sums of the last maps."""
        return F.relu(self.blocks(self.first(images))).sum(dim=(2, 3))

    def _normalize(self) -> None:
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(layer)


class ProjectionDiscriminator(_Discriminator):
    """(batch,) values of images (batch, 3, side, side) for their labels (batch,); spectral norm on every layer."""

    def __init__(self, image_size: int, num_classes: int, width: int = 64) -> None:
        super().__init__(image_size, width)
        self.embedding = nn.Embedding(num_classes, self.width)
        _start(self)
        nn.init.xavier_uniform_(self.embedding.weight)
        self._normalize()

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Values, unbounded; positive for what looks real and like its label."""
        h = self._sums(images)
        value: Tensor = self.linear(h).squeeze(1) + (self.embedding(labels) * h).sum(dim=1)
        return value


class AuxiliaryDiscriminator(_Discriminator):
    """Values (batch,) and logits (batch, classes) of images (batch, 3, side, side): how real, and of which class.

    Source:
        Odena et al., "Conditional Image Synthesis with Auxiliary Classifier GANs", ICML 2017, arXiv:1610.09585.
    """

    def __init__(self, image_size: int, num_classes: int, width: int = 64) -> None:
        super().__init__(image_size, width)
        self.classifier = nn.Linear(self.width, num_classes)
        _start(self)
        self._normalize()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Log-odds of being real, and the class's logits."""
        h = self._sums(images)
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
