"""Mirror's P space, where the latents of a StyleGAN are nearly normal, and the box that it keeps them in."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.attacks.queries import BLOCK
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.generators.stylegan2 import StyleGAN2

SLOPE = 0.2  # of the last activation of a StyleGAN's mapping network, which P space takes back
TRUNCATED_LAYERS = 8  # by the authors' generator
P_SPACES = ("auto", "on", "off")


def to_p(latents: Tensor) -> Tensor:
    """P from W: negative numbers times 5."""
    return F.leaky_relu(latents, 1 / SLOPE)


def from_p(points: Tensor) -> Tensor:
    """W from P: negative numbers times 0.2."""
    return F.leaky_relu(points, SLOPE)


def has_p_space(generator: Generator[Any], choice: str = "auto") -> bool:
    """Whether P space is used: ``choice`` is ``on``, ``off``, or ``auto``, which means only for a StyleGAN."""
    return isinstance(generator, StyleGAN2) if choice == "auto" else choice == "on"


def truncating(generator: Generator[Any], truncation: float | None) -> Generator[Any]:
    """A StyleGAN whose samples are whole styles, of which every pass truncates the first layers; others as they are."""
    if truncation is None or not isinstance(generator, StyleGAN2):
        return generator
    return generator.truncating(truncation, TRUNCATED_LAYERS)


@dataclass(frozen=True)
class Box:
    """Bounds of the latents: mean ± standard deviation of each number, measured in P space.

    Attributes:
        low: (latent_dim,) lower bounds, in the latent space.
        high: (latent_dim,) upper bounds.
        std: (latent_dim,) standard deviations, in P space.
    """

    low: Tensor
    high: Tensor
    std: Tensor

    def clip(self, latents: Tensor) -> Tensor:
        """Latents (..., latent_dim) brought into the box."""
        # The way to P space is monotonic, so clipping there and clipping here are the same.
        return latents.clamp(self.low, self.high)


def bounds(
    generator: Generator[Any], count: int, seed: int, like: Tensor, p_space: bool = True, width: float = 1.0
) -> Box:
    """Compute the box of ``count`` samples of the prior; for a StyleGAN, of its styles before truncation.

    Args:
        generator: The prior.
        count: Samples, at least 2.
        seed: Seed of the draws.
        like: Device and precision of the result.
        p_space: Measure in P space; otherwise in the latent space itself, and ``to_p`` does nothing.
        width: Standard deviations to either side.

    Source:
        An et al., "MIRROR", NDSS 2022: 100 000 samples, the biased standard deviation, one of it to either side.
    """

    @torch.no_grad()
    def sample(count: int, rng: np.random.Generator) -> Tensor:
        if not (p_space and isinstance(generator, StyleGAN2)):
            return generator.sample_latents(count, rng)
        z = torch.from_numpy(rng.standard_normal((count, generator.config.z_dim)))
        styles: Tensor = generator.mapping(z.to(generator.device, generator.dtype))  # untruncated
        return styles.cpu()

    parts = [
        sample(min(BLOCK, count - start), named_rng(seed, "attacks/mirror/box", start)).double()
        for start in range(0, count, BLOCK)
    ]
    points = [to_p(part) if p_space else part for part in parts]
    mean = sum((part.sum(dim=0) for part in points), points[0].new_zeros(())) / count
    # About the mean found before, as a difference of mean squares would lose digits.
    # Divided by count and not count − 1: the authors' deviation is the biased one.
    variance = sum(((part - mean).square().sum(dim=0) for part in points), points[0].new_zeros(())) / count
    std = variance.sqrt()
    low, high = mean - width * std, mean + width * std
    if p_space:
        low, high = from_p(low), from_p(high)
    return Box(low.to(like), high.to(like), std.to(like))
