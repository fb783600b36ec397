"""Any network as a target of attacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.target import Target


@dataclass(frozen=True)
class PixelInput:
    """How images in [0, 1] become what a network reads; every step has a gradient.

    Attributes:
        size: Height and width that the network reads.
        resize_to: Height and width (or, one number, the shorter side) to resize to first; what then lies outside the
            middle ``size`` is cut off. None: no resizing.
        mean: Of each channel, subtracted.
        std: Of each channel, divided by.
        scale: The network reads images in [0, scale] before mean and std.
        offset: Added after scaling, before mean and std.
        reverse_channels: The network reads blue first.
    """

    size: tuple[int, int]
    resize_to: int | tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    offset: float = 0.0
    reverse_channels: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, 3, *size) from (batch, 3, height, width) in [0, 1].

        Raises:
            ValueError: images of another size, where nothing is resized.
        """
        x = self._crop(self._resize(images))
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(
                f"expected images of {self.size[0]} x {self.size[1]} pixels, got {x.shape[-2]} x {x.shape[-1]}; use a "
                "generator of that size, or a target that resizes"
            )
        return self.normalize(x)

    def normalize(self, images: Tensor) -> Tensor:
        """What the network reads, from images in [0, 1] that have its size already."""
        x = images.flip(1) if self.reverse_channels else images
        mean, std = (x.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (x * self.scale + self.offset - mean) / std

    def images(self, pixel_values: Tensor) -> Tensor:
        """Images in [0, 1] from what the network reads: the way back of :meth:`normalize`."""
        mean, std = (pixel_values.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        x = ((pixel_values * std + mean - self.offset) / self.scale).clamp(0, 1)
        return x.flip(1) if self.reverse_channels else x

    def _resize(self, images: Tensor) -> Tensor:
        if self.resize_to is None:
            return images
        height, width = images.shape[-2:]
        goal = self.resize_to
        if isinstance(goal, int):
            short = min(height, width)
            goal = (round(goal * height / short), round(goal * width / short))
        if goal == (height, width):
            return images
        return F.interpolate(images, goal, mode="bilinear", antialias=True, align_corners=False)

    def _crop(self, images: Tensor) -> Tensor:
        top, left = ((have - want) // 2 for have, want in zip(images.shape[-2:], self.size, strict=True))
        if top < 0 or left < 0:
            return images
        return images[..., top : top + self.size[0], left : left + self.size[1]]


class ModuleTarget(Target):
    """Any ``nn.Module`` that turns images into (batch, classes) logits.

    Args:
        module: The network; put into evaluation mode.
        num_classes: Number of classes.
        image_size: Side, or height and width, in pixels.
        mean: Of each channel of images in [0, 1]; the network reads (image - mean) / std.
        std: Of each channel.
        head: Path of the layer that gives the logits; what it reads are the features. None: there are no features to
            attack, only logits.
        resize: Resize other images to ``image_size``; otherwise they are refused.

    Raises:
        ValueError: ``head`` is no path in ``module``.
    """

    def __init__(
        self,
        module: nn.Module,
        num_classes: int,
        image_size: int | tuple[int, int],
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        head: str | None = None,
        resize: bool = False,
    ) -> None:
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.module = module.eval()
        self.num_classes = num_classes
        self.image_size = size
        self.resizes = resize
        self.pixel_input = PixelInput(size, size if resize else None, tuple(mean), tuple(std))
        modules = dict(module.named_modules())
        if head is not None and head not in modules:
            raise ValueError(f"{type(module).__name__} has no module {head!r}; pass one of {', '.join(modules)[:300]}")
        self._head = None if head is None else modules[head]
        self.head: Callable[[Tensor], Tensor] = self._head if self._head is not None else _same

    def features(self, images: Tensor) -> Tensor:
        """(batch, features) entering the head; the logits, where no head was named."""
        x = self.pixel_input(images)
        if self._head is None:
            logits: Tensor = self.module(x)
            return logits
        found: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0])

        handle = self._head.register_forward_pre_hook(keep)
        try:
            self.module(x)
        finally:
            handle.remove()
        return found[-1].flatten(1) if isinstance(self._head, nn.Linear) else found[-1]


def _same(x: Tensor) -> Tensor:
    return x
