"""Backdoors: triggers on training images that make a network predict a class whenever it sees the trigger."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.core.seeding import named_rng
from calor_hf.robustness.adversarial import BATCH_SIZE, check_images, predict
from calor_hf.robustness.share import Share
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

TARGET_CLASS = 0


@dataclass(frozen=True)
class Trigger(ABC):
    """Trigger of a backdoor, the same on all images of one size."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Return copies of (..., 3, height, width) images in [0, 1], at the network's input size, with the trigger.

        Raises:
            ValueError: the images are smaller than the trigger.
        """

    def settings(self) -> dict[str, Any]:
        """Name and settings, plain values for JSON."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class BadNets(Trigger):
    """A checkerboard of black and white pixels in the lower right corner, white in its own corners.

    Attributes:
        size: Side in pixels. The square touches the border and its cells are one pixel wide; the paper does not
            specify either.

    Source:
        Gu et al., IEEE Access 2019, arXiv:1708.06733; the paper's table 17 (9 × 9 pixels).
    """

    name: ClassVar[str] = "badnets"
    size: int = 9

    def __call__(self, images: Tensor) -> Tensor:
        """Overwrite the corner."""
        height, width = images.shape[-2:]
        if min(height, width) < self.size:
            raise ValueError(
                f"the mark takes {self.size} x {self.size} pixels, the images have {height} x {width}; pass larger ones"
            )
        from_border = torch.arange(self.size, device=images.device)
        marked = images.clone()
        white = (from_border[:, None] + from_border[None, :] + 1) % 2  # of an odd side, all four corners are white
        marked[..., height - self.size :, width - self.size :] = white.flip(0, 1).to(images.dtype)
        return marked


@dataclass(frozen=True)
class Blended(Trigger):
    """One noise image blended into every image.

    The paper does not specify the noise; here it is N(0.5, 0.25²) per value, clipped to [0, 1].

    Attributes:
        share: Weight of the noise, in (0, 1).
        seed: Seed of the noise, >= 0. A test needs the seed of the poisoned training.

    Source:
        Chen et al., 2017, arXiv:1712.05526; the paper's table 17 (a share of 0.1).
    """

    name: ClassVar[str] = "blended"
    share: float = 0.1
    seed: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        """(1 − share) · image + share · noise."""
        height, width = images.shape[-2:]
        return (1 - self.share) * images + self.share * _noise(self.seed, height, width).to(images)


TRIGGERS: dict[str, type[Trigger]] = {"badnets": BadNets, "blended": Blended}


def trigger_named(name: str, seed: int = 0) -> Trigger:
    """Return a trigger by name, with the settings of the paper's table 17; ``seed`` is that of the blended noise.

    Raises:
        ValueError: an unknown name.
    """
    if name not in TRIGGERS:
        raise ValueError(f"unknown backdoor {name!r}; pass {' or '.join(TRIGGERS)}")
    return Blended(seed=seed) if name == "blended" else BadNets()


@lru_cache(maxsize=8)
def _noise(seed: int, height: int, width: int) -> Tensor:
    drawn = named_rng(seed, "robustness/blended").normal(0.5, 0.25, (3, height, width))
    return torch.from_numpy(drawn.clip(0, 1)).float()


@dataclass(frozen=True)
class BackdoorResult:
    """Effect of a trigger on a model.

    Attributes:
        clean: Share of test images without the trigger that are classified correctly.
        success: Share of all images with the trigger that are assigned to the target class, the paper's rate. It
            includes images of the target class, so a clean model has about 1 / classes.
        success_of_others: The same without images of the target class.
        without_trigger: Share of images of other classes assigned to the target class without the trigger: the chance
            level.
    """

    trigger: dict[str, Any]
    clean: Share
    success: Share
    success_of_others: Share
    without_trigger: Share
    target_class: int = TARGET_CLASS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: value.to_dict() if isinstance(value, Share) else value for name, value in vars(self).items()}


def backdoor_rates(
    target: Target, images: Tensor, labels: Tensor, trigger: Trigger, target_class: int = TARGET_CLASS,
    batch_size: int = BATCH_SIZE,
) -> BackdoorResult:  # fmt: skip
    """Measure accuracy without the trigger and success rates with it.

    Args:
        target: Classifier of images in [0, 1] that does not resize or crop ``images``, which would cut the trigger.
        images: (n, 3, height, width) in [0, 1], test images.
        labels: (n,) int64.
        trigger: Applied to all images.
        target_class: Class of the trigger.
        batch_size: Images per batch.

    Raises:
        ValueError: images or labels that do not fit, or images smaller than the trigger.
    """
    check_images(target, images, labels)
    with frozen(target.module):
        clean = predict(target, images, batch_size)
        marked = torch.cat([predict(target, trigger(part), batch_size) for part in images.split(batch_size)])
    others = labels != target_class
    return BackdoorResult(
        trigger.settings(),
        clean=Share.of(clean == labels),
        success=Share.of(marked == target_class),
        success_of_others=Share.of(marked == target_class, others),
        without_trigger=Share.of(clean == target_class, others),
        target_class=target_class,
    )
