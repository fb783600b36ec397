"""Random crops, rotations, flips and color jitter of images, differentiable, from given random numbers."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RandomView:
    """A random view of each image: crop and resize, color jitter, flip, rotation.

    One draw per image, as in kornia's augmentations; the geometry is one bilinear resampling instead of three. So what
    a rotation brings in from outside the crop is the image, and black only outside the image.

    Attributes:
        scale: Smallest and largest share of the area that a crop keeps.
        ratio: Smallest and largest width to height of a crop, relative to the image's, log-uniform; a side that would
            reach past the edge ends there. (1, 1): the image's own aspect ratio.
        brightness: Largest change, as a share.
        contrast: Largest change, as a share.
        jitter_probability: Probability that brightness and contrast change.
        flip_probability: Probability that left and right are swapped.
        degrees: Largest rotation to either side.
        crop_probability: Probability that the image is cropped.
        turn_probability: Probability that the image is rotated.
    """

    NUMBERS: ClassVar[int] = 8  # uniform numbers per view; one more if crops vary in aspect ratio

    scale: tuple[float, float] = (0.8, 1.0)
    brightness: float = 0.2
    contrast: float = 0.2
    jitter_probability: float = 1.0
    flip_probability: float = 0.5
    degrees: float = 5.0
    ratio: tuple[float, float] = (1.0, 1.0)
    crop_probability: float = 1.0
    turn_probability: float = 1.0

    @classmethod
    def crop(
        cls, scale: tuple[float, float], ratio: tuple[float, float] = (1.0, 1.0), flip_probability: float = 0.0
    ) -> "RandomView":
        """A view that only crops and flips."""
        return cls(scale, 0.0, 0.0, 0.0, flip_probability, 0.0, ratio)

    @property
    def numbers(self) -> int:
        """Uniform numbers per view."""
        return self.NUMBERS + (self.ratio != (1.0, 1.0))

    def __call__(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Views of images.

        Args:
            images: (batch, channels, height, width) in [0, 1].
            numbers: (batch, :attr:`numbers`) uniform in [0, 1); the same numbers give the same view.

        Returns:
            (batch, channels, height, width) in [0, 1]; black outside the image.
        """
        area, left, top, turn, flip, bright, contrast, jitter, *shape = numbers.to(images.device).unbind(1)
        low, high = self.scale
        # Below its probability p a number is itself uniform in [0, p), so that no second one has to be drawn.
        side = torch.where(area < self.crop_probability, low + (high - low) * area / self.crop_probability, 1.0).sqrt()
        angle = math.radians(self.degrees) * (2 * turn / self.turn_probability - 1)
        angle = torch.where(turn < self.turn_probability, angle, 0.0)
        mirror = torch.where(flip < self.flip_probability, -1.0, 1.0)
        width, height = self._sides(side, *shape)
        x, y = (1 - width) * (2 * left - 1), (1 - height) * (2 * top - 1)
        # Output to input coordinates, in [-1, 1]: rotated, mirrored, shrunk to the crop and shifted to its center.
        aspect = images.shape[2] / images.shape[3]  # units are half widths and half heights
        across = torch.stack([mirror * width * angle.cos(), -mirror * width * angle.sin() * aspect, x], 1)
        down = torch.stack([height * angle.sin() / aspect, height * angle.cos(), y], 1)
        grid = F.affine_grid(torch.stack([across, down], 1).to(images.dtype), list(images.shape), align_corners=False)
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
