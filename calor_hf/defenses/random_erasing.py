"""Random erasing of a square in every training image (MIDRE)."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Progress
from calor_hf.core.seeding import StepDraws
from calor_hf.defenses.base import DEFENSES, Defense, Strength
from calor_hf.defenses.training_run import TrainingRun, check_images

FILLS = ("authors", "mean", "noise")
# ImageNet's mean color. The authors write it into images that are normalized to [-1, 1], so it is a light gray there.
AUTHORS_FILL = (0.485, 0.456, 0.406)


@dataclass(frozen=True, kw_only=True)
class RandomErasingConfig(MethodConfig):
    """Settings of :class:`RandomErasing`; the defaults are those of the authors' configurations."""

    min_area: float = setting(0.1, "Smallest share of an image's area that is erased, > 0.", gt=0)
    max_area: float = setting(0.4, "Largest share, < 1: the strength. The authors: 0.4, 0.8.", lt=1)
    probability: float = setting(1.0, "Probability that an image is erased at all, 0 to 1.", ge=0, le=1)
    fill: str | float = setting(
        "authors",
        "Filling of the hole: authors (0.485, 0.456, 0.406 in the model's normalized units, as in "
        "their code), mean (of the image, by channel), noise (standard normal, in normalized units), or a gray "
        "value in [0, 1].",
    )

    def validate(self) -> None:
        """Check that areas increase and that the fill is known."""
        if self.min_area > self.max_area:
            raise ValueError(f"expected min_area <= max_area, got {self.min_area} and {self.max_area}")
        if isinstance(self.fill, str) and self.fill not in FILLS:
            raise ValueError(f"unknown fill {self.fill!r}; pass one of {', '.join(FILLS)}, or a gray value in [0, 1]")
        if not isinstance(self.fill, str) and not 0 <= self.fill <= 1:
            raise ValueError(f"fill must be a gray value in [0, 1], got {self.fill}")


@DEFENSES.register("random_erasing")
class RandomErasing(Defense[RandomErasingConfig]):
    """A random square erased in every training image, cross-entropy on the rest (Tran et al., MIDRE, TMLR 2025).

    The square has a random position in each image and is filled after normalization, as in the authors' code. Test
    images are not erased. It regularizes strongly, so compare it with an equally augmented baseline.

    Source:
        Tran et al., "Defending against Model Inversion Attacks via Random Erasing", TMLR 2025, arXiv:2409.01062.
    """

    config_class = RandomErasingConfig
    needs_trainer = True
    log_odds_suffice = True

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """The largest share of the area."""
        return Strength("max_area", 0.15, 0.9)

    def begin(self, run: TrainingRun) -> None:
        """Check early that a gray value can be converted to model inputs."""
        super().begin(run)
        if not isinstance(self.config.fill, str):
            run.pixel_scale("random_erasing with a gray value as fill")

    def on_batch(self, inputs: dict[str, Any], draws: StepDraws, progress: Progress) -> dict[str, Any]:
        """Erase a square in each image of the batch."""
        images = check_images(inputs, "random_erasing")
        c = self.config
        # One hole for each image, as in the authors' pipeline; one draw for a batch would erase the same place in all.
        numbers = draws.uniform("defenses/random_erasing/squares", 4)
        holes = squares(numbers, (images.shape[2], images.shape[3]), c.min_area, c.max_area, c.probability)
        top, left, height, width = torch.from_numpy(holes).to(images.device).view(-1, 4, 1, 1, 1).unbind(1)
        y = torch.arange(images.shape[2], device=images.device).view(1, 1, -1, 1)
        x = torch.arange(images.shape[3], device=images.device)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        return {**inputs, "pixel_values": torch.where(inside, self._fill(images, draws), images)}

    def _fill(self, images: Tensor, draws: StepDraws) -> Tensor:
        fill = self.config.fill
        if fill == "mean":
            return images.mean(dim=(2, 3), keepdim=True)
        if fill == "noise":
            noise = draws.normal("defenses/random_erasing/noise", math.prod(images.shape[1:]))
            return torch.from_numpy(noise).to(images).view_as(images)
        if fill == "authors":
            return images.new_tensor(AUTHORS_FILL[: images.shape[1]]).view(1, -1, 1, 1)
        gray = images.new_full((1, images.shape[1], 1, 1), float(fill))
        return self.run.pixel_scale("random_erasing").normalize(gray)


def squares(
    numbers: NDArray[np.float64], size: tuple[int, int], min_area: float, max_area: float, probability: float
) -> NDArray[np.int64]:
    """Squares to erase, one per sample, inside the image.

    Args:
        numbers: (samples, 4) in [0, 1): whether to erase, area, position from the top, position from the left.
        size: Height and width of the images in pixels.
        min_area: Smallest share of the image's area, before the side is rounded to whole pixels.
        max_area: Largest share; a square that would not fit is as large as the image's shorter side.
        probability: Share of the samples with a square; the others get one of side 0.

    Returns:
        (samples, 4) top, left, height, width in pixels.
    """
    height, width = size
    area = (min_area + numbers[:, 1] * (max_area - min_area)) * height * width
    side = np.minimum(np.sqrt(area).round().astype(np.int64), min(height, width))
    side = np.where(numbers[:, 0] < probability, side, 0)
    top = (numbers[:, 2] * (height - side + 1)).astype(np.int64)
    left = (numbers[:, 3] * (width - side + 1)).astype(np.int64)
    return np.stack([top, left, side, side], axis=1)
