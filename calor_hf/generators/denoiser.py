"""Base class of flows and diffusion models: a network that sees the clean image through noise."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from calor_hf.core.config import MethodConfig, setting
from calor_hf.generators.base import Generator


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(MethodConfig):
    """Settings of :class:`Denoiser`."""

    image_size: int = setting(32, "Side of the images in pixels.")
    decode_steps: int = setting(10, "Passes of the network from noise to image.", ge=1)
    gradient: str = setting(
        "exact",
        "Gradient of the image by the noise: exact, recomputed step by step, or straight_through: half the identity.",
        choices=("exact", "straight_through"),
    )


C = TypeVar("C", bound=DenoiserConfig)


class Denoiser(Generator[C]):
    """Generator whose latents are noise, of as many numbers as the image has.

    On the way from noise (time 0) to image (time 1) a point is (1 − time) · noise + time · data, data in [−1, 1].
    """

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self.image_size, self.latent_dim = config.image_size, 3 * config.image_size**2

    @abstractmethod
    def denoise(self, points: Tensor, time: Tensor) -> Tensor:
        """(batch, 3, side, side) predicted data of points of this shape at ``time``, (batch,) in [0, 1)."""

    @abstractmethod
    def times(self) -> Sequence[float]:
        """Times of the passes of :meth:`forward`, ascending."""

    def velocity(self, points: Tensor, time: float) -> Tensor:
        """(batch, 3, side, side) slope of the path through the points, toward the predicted data."""
        moment = torch.full((len(points),), time, device=points.device, dtype=points.dtype)
        return (self.denoise(points, moment) - points) / (1 - time)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 3, side, side) in [0, 1] from (batch, latent_dim), by Euler steps, which are those of DDIM.

        Intermediate results of a step are computed again for the gradient, so its memory is that of a single pass.
        """
        times = self.times()
        noise = latents.view(-1, 3, self.image_size, self.image_size)
        straight = self.config.gradient == "straight_through"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not straight):
            points = noise * math.hypot(times[0], 1 - times[0])
            for now, after in pairwise([*times, 1.0]):
                points = checkpoint(self._step, points, now, after, use_reentrant=False, preserve_rng_state=False)
        if straight:
            points = points + (noise - noise.detach())
        return as_images(points)

    def _step(self, points: Tensor, now: float, after: float) -> Tensor:
        return points + (after - now) * self.velocity(points, now)


def as_images(points: Tensor) -> Tensor:
    """Images in [0, 1] of data in [−1, 1]; what lies outside keeps its gradient."""
    images = (points + 1) / 2
    return images + (images.clamp(0, 1) - images).detach()


def unet(config: dict[str, Any]) -> Any:
    """`diffusers`' UNet2DModel of these settings, with random weights.

    Raises:
        ImportError: `diffusers` is not installed.
    """
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except ImportError as error:
        raise ImportError(
            f"flows and diffusers priors need diffusers; pip install 'calor-hf[diffusers]' ({error})"
        ) from error
    return UNet2DModel(**config)
