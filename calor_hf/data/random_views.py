"""Random crops, turns, flips and colors of images, with gradients, from numbers that are handed in."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RandomView:
    """A random view of each image: crop and resize, color jitter, flip, rotation.

    One draw an image, as kornia's augmentations do it; the geometry is one bilinear resampling instead of three.

    Attributes:
        scale: Smallest and largest share of the area that a crop keeps.
        ratio: Smallest and largest width to height of a crop, in those of the image, log-uniform; a side that would
            look past the edge ends there. (1, 1): the image's own shape.
        brightness: Largest change, as a share.
        contrast: Largest change, as a share.
        jitter_probability: That brightness and contrast change at all.
        flip_probability: That left and right are swapped.
        degrees: Largest rotation to either side.
    """

    NUMBERS: ClassVar[int] = 8  # uniform numbers that one view takes, one more where crops have shapes of their own

    scale: tuple[float, float] = (0.8, 1.0)
    brightness: float = 0.2
    contrast: float = 0.2
    jitter_probability: float = 1.0
    flip_probability: float = 0.5
    degrees: float = 5.0
    ratio: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def crop(
        cls, scale: tuple[float, float], ratio: tuple[float, float] = (1.0, 1.0), flip_probability: float = 0.0
    ) -> "RandomView":
        """A view that crops, and swaps sides if wished, but leaves colors and angles."""
        return cls(scale, 0.0, 0.0, 0.0, flip_probability, 0.0, ratio)

    @property
    def numbers(self) -> int:
        """Uniform numbers that one view takes."""
        return self.NUMBERS + (self.ratio != (1.0, 1.0))

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Views of images.

        Args:
            images: (batch, channels, height, width) in [0, 1].
            numbers: (batch, :attr:`numbers`) uniform in [0, 1); the same numbers give the same view.

        Returns:
            (batch, channels, height, width) in [0, 1]; black where a turn looks past the edge.
        """
        area, left, top, turn, flip, bright, contrast, jitter, *shape = numbers.to(images.dtype).unbind(1)
        low, high = self.scale
        side = (low + (high - low) * area).sqrt()
        angle = math.radians(self.degrees) * (2 * turn - 1)
        mirror = torch.where(flip < self.flip_probability, -1.0, 1.0).to(images.dtype)
        # Output to input coordinates, in [-1, 1]: the crop's center plus the turned, mirrored, shrunken grid.
        width, height = self._sides(side, *shape)
        cos, sin = angle.cos(), angle.sin()
        x, y = (1 - width) * (2 * left - 1), (1 - height) * (2 * top - 1)
        across = torch.stack([mirror * (width * cos), -(height * sin), x], 1)
        down = torch.stack([mirror * (width * sin), height * cos, y], 1)
        grid = F.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
        views = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        if self.brightness == self.contrast == 0:
            return views
        return self._color(views, bright, contrast, jitter)

    def _sides(self, side: Tensor, shape: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch,) width and height of the crops, as shares of the image's."""
        if shape is None or self.ratio == (1.0, 1.0):
            return side, side
        low, high = (math.log(value) for value in self.ratio)
        stretch = (0.5 * (low + (high - low) * shape)).exp()
        return (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)

    def _color(self, images: Tensor, bright: Tensor, contrast: Tensor, jitter: Tensor) -> Tensor:
        on = (jitter < self.jitter_probability).to(images.dtype)
        brightness = (1 + on * self.brightness * (2 * bright - 1)).view(-1, 1, 1, 1)
        factor = (1 + on * self.contrast * (2 * contrast - 1)).view(-1, 1, 1, 1)
        images = (images * brightness).clamp(0, 1)
        gray = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        mean = gray.mean(dim=(2, 3), keepdim=True)
        return (mean + factor * (images - mean)).clamp(0, 1)
