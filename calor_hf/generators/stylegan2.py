"""StyleGAN2: latents are styles, and every block adds to the image."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.seeding import named_rng
from calor_hf.generators._stylegan2_layers import EPSILON, Dense, PlainConv, StyledConv, ToRGB, doubled
from calor_hf.generators.base import GENERATORS, Generator, check_side

STYLE_DEVIATION = 0.44
"""Standard deviation of a number of a style of the official FFHQ network, for which attacks publish their rates.

An estimate, as the weights were not available: a user's average score for how far sampled styles lie from the mean
style (github.com/rolux/stylegan2encoder, issue 2), whose definition could not be checked. An imported official network
is taken to have it, so published rates are exact there whatever the number."""


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config(MethodConfig):
    """Settings of :class:`StyleGAN2`; width 32 at 1024 pixels is the largest official network."""

    image_size: int = setting(64, "Side in pixels, a power of two from 16 on.")
    z_dim: int = setting(512, "Width of the normal numbers that styles are made from.", ge=1)
    w_dim: int = setting(512, "Width of the styles, which are the latents.", ge=1)
    width: int = setting(64, "Channels of the largest maps; twice as many at half the side.", ge=1)
    max_channels: int = setting(512, "Channels at most.", ge=1)
    mapping_layers: int = setting(8, "Layers from z to w.", ge=1)
    truncation: float = setting(
        0.5, "Share that sampled styles keep of their distance to the mean style, 0 to 1.", ge=0, le=1
    )
    discriminator: bool = setting(True, "Whether its discriminator is saved with it.")
    clamp: float = setting(0.0, "Bound of activations: 256 in networks made for half precision; 0: none.", ge=0)
    crop: int = setting(0, "Side of the central square of the images that is kept, in pixels; 0: all.", ge=0)
    official: bool = setting(False, "Imported, in whose space attacks take the rates of their sources as they are.")

    def validate(self) -> None:
        """Refuse sides that doubling does not reach, and crops that are larger or that no discriminator knows."""
        check_side(self.image_size)
        if self.crop > self.image_size:
            raise ValueError(f"crop must be at most the image_size {self.image_size}, got {self.crop}")
        if self.crop and self.discriminator:
            raise ValueError("a discriminator knows whole images only; pass discriminator=false with a crop")

    def channels(self) -> list[int]:
        """Channels of the maps of 4, 8, … ``image_size`` pixels."""
        doublings = (self.image_size // 4).bit_length() - 1
        return [min(self.width * 2**i, self.max_channels) for i in range(doublings, -1, -1)]


@GENERATORS.register("stylegan2")
class StyleGAN2(Generator[StyleGAN2Config]):
    """The generator of Mirror, PPA and IF: one style w, given to every layer, is the latent.

    It also takes one style for each layer, (batch, layers, w_dim).

    Sampled styles are truncated towards the mean style. The sources truncate the first eight layers only and keep the
    style of the first; with one style for all layers that is the truncated one, so a cut-off would change nothing.

    The network paints in about [-1, 1] and overshoots. Images leave it as (x + 1) / 2, clamped to [0, 1] in the
    forward pass alone: what the target scores during an attack is what is kept in the end, and a pixel that has
    overshot still has a gradient and can come back. The sources optimize unclamped images and clamp those they keep.

    With ``crop`` the images are their middle squares. Networks of FFHQ show more around a face than the photographs
    that targets learn from: the sources keep 800 of 1024 pixels, or 176 of 256, for the target and for those who judge.

    Noise maps are constant, in training mode too; the prior hands in its own. Everything is computed in the weights'
    own precision, in one path: no half precision.

    Source:
        Karras et al., CVPR 2020, arXiv:1912.04958; NVlabs/stylegan2-ada-pytorch.
    """

    config_class = StyleGAN2Config
    layer_truncation: tuple[float, int] | None = None  # see truncating

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__(config)
        self.latent_dim, self.image_size = config.w_dim, config.crop or config.image_size
        self._channels = config.channels()
        self.mapping = Mapping(config.z_dim, config.w_dim, config.mapping_layers)
        self.synthesis = Synthesis(self._channels, config.w_dim, config.clamp)
        self.discriminator = (
            StyleGAN2Discriminator(self._channels[::-1], config.clamp) if config.discriminator else None
        )

    def _run_block(
        self, block: int, latents: Tensor, hidden: Tensor | None, image: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        # Every block reads the style and adds to the image, in about [-1, 1] and unclamped before the last.
        x, painted = self.synthesis(self._styles(latents), None, range(block, block + 1), hidden, image)
        if block + 1 < self.num_blocks:
            return x, painted
        edge, side = (self.config.image_size - self.image_size) // 2, self.image_size
        return x, finished(painted[..., edge : edge + side, edge : edge + side])

    def realism(self, images: Tensor, labels: Tensor | None = None, group: int = 1) -> Tensor:
        """(batch,) logits of being real.

        The discriminator also reads how much ``group`` neighbors differ; for a single image that is 0.
        """
        if self.discriminator is None:
            return super().realism(images, labels, group)
        value: Tensor = self.discriminator(2 * images - 1, group)
        return value

    @torch.no_grad()
    def sample_latents(self, count: int, rng: np.random.Generator) -> Tensor:
        """(count, w_dim) truncated styles of standard normal z; on the CPU in float64, as precise as the weights."""
        z = torch.from_numpy(rng.standard_normal((count, self.config.z_dim)))
        w: Tensor = self.mapping(z.to(self.device, self.dtype))
        return self.mapping.w_avg.lerp(w, self._kept).cpu().double()

    def truncating(self, share: float, layers: int) -> "StyleGAN2":
        """Return a view that samples whole styles, and truncates the first ``layers`` to ``share`` in every pass."""
        view = copy.copy(self)
        view.layer_truncation = share, layers
        return view

    @property
    def latent_deviation(self) -> float:
        """Standard deviation over the numbers of a sampled style, each around its mean.

        The official networks', if it was imported; measured on 1000 samples otherwise.
        """
        if self.config.official:
            return STYLE_DEVIATION * self._kept
        styles = self.sample_latents(1000, named_rng(0, "generators/stylegan2/deviation"))
        return float(styles.var(dim=0).mean().sqrt())

    @property
    def _kept(self) -> float:
        return self.config.truncation if self.layer_truncation is None else 1.0

    def _styles(self, latents: Tensor) -> Tensor:
        if self.layer_truncation is None:
            return latents
        share, layers = self.layer_truncation
        styles = latents[:, None].expand(-1, self.synthesis.num_styles, -1) if latents.ndim == 2 else latents
        first = self.mapping.w_avg.lerp(styles[:, :layers], share)
        return torch.cat([first, styles[:, layers:]], dim=1)


def finished(image: Tensor) -> Tensor:
    """(image + 1) / 2 clamped to [0, 1], with the gradient of the unclamped one."""
    unclamped = (image + 1) / 2
    return unclamped.detach().clamp(0, 1) + (unclamped - unclamped.detach())


class Mapping(nn.Module):
    """Styles from normal numbers.

    Attributes:
        w_avg: (w_dim,) mean style, followed by :meth:`follow` while training.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, layers: int) -> None:
        super().__init__()
        widths = [z_dim] + [w_dim] * layers
        for index, (inputs, outputs) in enumerate(pairwise(widths)):
            self.add_module(f"fc{index}", Dense(inputs, outputs, rate=0.01, active=True))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor) -> Tensor:
        """(batch, w_dim) from (batch, z_dim), of which only the direction counts; not truncated."""
        x = z * (z.square().mean(dim=1, keepdim=True) + EPSILON).rsqrt()
        for layer in self.children():
            x = layer(x)
        return x

    @torch.no_grad()
    def follow(self, w: Tensor, decay: float = 0.995) -> None:
        """Move the mean style towards that of ``w`` (batch, w_dim)."""
        self.w_avg.lerp_(w.mean(dim=0), 1 - decay)


class Synthesis(nn.Module):
    """Images from styles, block by block.

    Attributes:
        sides: Side of the noise map of each convolution in pixels.
        num_styles: Number of styles that it can take, one per layer.
    """

    def __init__(self, channels: list[int], w_dim: int, clamp: float) -> None:
        super().__init__()
        for index, (inputs, outputs) in enumerate(pairwise([0, *channels])):
            self.add_module(f"b{4 * 2**index}", Block(inputs, outputs, w_dim, 4 * 2**index, clamp))
        self.sides = [4] + [4 * 2**index for index in range(1, len(channels)) for _ in range(2)]
        self.num_styles = 2 * len(channels)

    def forward(
        self,
        latents: Tensor,
        noise: Sequence[Tensor] | None = None,
        blocks: range | None = None,
        hidden: Tensor | None = None,
        image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map after the last block, and image in about [-1, 1], unclamped.

        Args:
            latents: Styles, (batch, w_dim) or (batch, num_styles, w_dim).
            noise: (batch, 1, side, side) each of :attr:`sides`; None means the constant maps.
            blocks: Blocks to run; None means all.
            hidden: Map entering the first of them.
            image: Output of the earlier blocks, or None.
        """
        styles = latents[:, None].expand(-1, self.num_styles, -1) if latents.ndim == 2 else latents
        if styles.shape[1] != self.num_styles:
            raise ValueError(f"expected one style, or {self.num_styles} for the layers, got {styles.shape[1]}")
        maps = [None] * len(self.sides) if noise is None else list(noise)
        for index in range(self.num_styles // 2) if blocks is None else blocks:
            first = max(0, 2 * index - 1)  # style and noise of the block's first convolution
            block = self.get_submodule(f"b{4 * 2**index}")
            hidden, image = block(styles[:, first : 2 * index + 2], maps[first : 2 * index + 1], hidden, image)
        return cast(Tensor, hidden), cast(Tensor, image)


class Block(nn.Module):
    """Two convolutions, the first of which doubles the side, and what they add to the image.

    The first block has one convolution, of a learned map of 4 pixels.
    """

    def __init__(self, inputs: int, outputs: int, w_dim: int, side: int, clamp: float) -> None:
        super().__init__()
        if inputs == 0:
            self.const = nn.Parameter(torch.randn(outputs, side, side))
        else:
            self.conv0 = StyledConv(inputs, outputs, w_dim, side, up=True, clamp=clamp)
        self.conv1 = StyledConv(outputs, outputs, w_dim, side, clamp=clamp)
        self.torgb = ToRGB(outputs, w_dim, clamp)

    def forward(
        self, styles: Tensor, noise: Sequence[Tensor | None], hidden: Tensor | None, image: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Map and image of the block's side, from those of half the side.

        Args:
            styles: (batch, convolutions + 1, w_dim).
            noise: A map for each convolution, or None for its constant one.
            hidden: (batch, inputs, side / 2, side / 2); None means the learned map.
            image: (batch, 3, side / 2, side / 2); or None.
        """
        const = hidden is None
        x = self.const.expand(len(styles), -1, -1, -1) if const else self.conv0(hidden, styles[:, 0], noise[0])
        x = self.conv1(x, styles[:, -2], noise[-1])
        rgb = self.torgb(x, styles[:, -1])
        return x, rgb if image is None else doubled(image) + rgb


class StyleGAN2Discriminator(nn.Module):
    """The discriminator: residual blocks, and how much the images of a group differ as one more channel."""

    GROUP = 4

    def __init__(self, channels: list[int], clamp: float = 0.0) -> None:
        super().__init__()
        self.sides = [4 * 2**i for i in range(len(channels) - 1, 0, -1)]
        for side, (inputs, outputs) in zip(self.sides, pairwise(channels), strict=True):
            self.add_module(f"b{side}", DiscriminatorBlock(inputs, outputs, side == self.sides[0], clamp))
        self.b4 = DiscriminatorEnd(channels[-1], clamp)

    def forward(self, images: Tensor, group: int | None = None) -> Tensor:
        """(batch,) logits of being real.

        Args:
            images: (batch, 3, side, side) in [-1, 1].
            group: Number of neighbors that are compared; None means at most four, as in training.
        """
        x = images
        for side in self.sides:
            x = self.get_submodule(f"b{side}")(x)
        value: Tensor = self.b4(x, math.gcd(self.GROUP, len(images)) if group is None else group)
        return value


class DiscriminatorBlock(nn.Module):
    """(batch, outputs, side / 2, side / 2) from (batch, inputs, side, side), or from an image in the first block."""

    def __init__(self, inputs: int, outputs: int, first: bool, clamp: float) -> None:
        super().__init__()
        if first:
            self.fromrgb = PlainConv(3, inputs, 1, clamp=clamp)
        self.conv0 = PlainConv(inputs, inputs, 3, clamp=clamp)
        self.conv1 = PlainConv(inputs, outputs, 3, halve=True, clamp=clamp)
        self.skip = PlainConv(inputs, outputs, 1, halve=True, active=False)
        self.is_first = first

    def forward(self, x: Tensor) -> Tensor:
        """The two branches, each scaled by √½."""
        if self.is_first:
            x = self.fromrgb(x)
        change: Tensor = self.conv1(self.conv0(x), math.sqrt(0.5))
        shortcut: Tensor = self.skip(x, math.sqrt(0.5))
        return shortcut + change


class DiscriminatorEnd(nn.Module):
    """(batch,) logits from maps (batch, channels, 4, 4)."""

    def __init__(self, channels: int, clamp: float) -> None:
        super().__init__()
        self.conv = PlainConv(channels + 1, channels, 3, clamp=clamp)
        self.fc = Dense(channels * 16, channels, active=True)
        self.out = Dense(channels, 1)

    def forward(self, x: Tensor, group: int) -> Tensor:
        """Logits; ``group`` neighbors share the mean standard deviation of their maps."""
        groups = x.view(-1, group, *x.shape[1:])
        # Not Tensor.std: its gradient is NaN where all images are the same.
        std = ((groups - groups.mean(dim=1, keepdim=True)).square().mean(dim=1) + EPSILON).sqrt().mean(dim=(1, 2, 3))
        company = std.repeat_interleave(group)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        x = self.conv(torch.cat([x, company], dim=1))
        value: Tensor = self.out(self.fc(x.flatten(1))).squeeze(1)
        return value
