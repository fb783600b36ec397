"""A plane of latents that a target divides into regions: attacks can be followed with pencil and paper."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.generators import Generator
from calor_hf.targets.module_target import ModuleTarget

REACH = 50.0  # latents from -50 to 50 fit into an image
SIDE = 4


@dataclass(frozen=True, kw_only=True)
class PlaneConfig(MethodConfig):
    """No settings."""


class Plane(Generator[PlaneConfig]):
    """The first latent is the red of the image, the second its green."""

    config_class = PlaneConfig
    name = "plane"
    latent_dim, image_size = 2, SIDE

    def __init__(self) -> None:
        super().__init__(PlaneConfig())

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        colors = torch.cat([latents, latents.new_zeros(len(latents), 1)], dim=1) / (2 * REACH) + 0.5
        return colors[:, :, None, None].expand(-1, -1, SIDE, SIDE)


class _Map(nn.Module):
    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        points = (images[:, :2, 0, 0] - 0.5) * 2 * REACH
        return self.logits(points)


def divided(logits: Callable[[Tensor], Tensor], classes: int) -> ModuleTarget:
    """A target whose logits (n, classes) are a function of the latents (n, 2)."""
    return ModuleTarget(_Map(logits), classes, SIDE)


def disc(x: float, y: float, radius: float) -> ModuleTarget:
    """Class 1 is a disc, class 0 all else, class 2 nowhere."""

    def logits(points: Tensor) -> Tensor:
        inside = (points - points.new_tensor([x, y])).norm(dim=1) < radius
        return torch.stack([1.0 - inside.double(), inside.double(), torch.full_like(points[:, 0], -1.0)], dim=1)

    return divided(logits, 3)


def hill(x: float, y: float, sharpness: float = 1.0) -> ModuleTarget:
    """Two classes; the odds of class 1 are highest at a point."""

    def logits(points: Tensor) -> Tensor:
        height = 3 - sharpness * (points - points.new_tensor([x, y])).square().sum(dim=1)
        return torch.stack([torch.zeros_like(height), height], dim=1)

    return divided(logits, 2)


def run(attack: Any, target: ModuleTarget, labels: list[int], **options: Any) -> Reconstruction:
    """The attack on the plane."""
    found: Reconstruction = attack.run(target, Plane(), labels, **options)
    return found
