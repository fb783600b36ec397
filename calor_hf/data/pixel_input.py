"""An image processor as a differentiable function of images in [0, 1]."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class PixelScale:
    """Differentiable normalization from images in [0, 1] to model inputs, and back.

    Attributes:
        mean: Mean of each channel, subtracted.
        std: Standard deviation of each channel, divided by.
        scale: Factor before mean and std: the model reads images in [0, scale].
        offset: Added after scaling, before mean and std.
        reverse_channels: The model reads blue first.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    offset: float = 0.0
    reverse_channels: bool = False

    @classmethod
    def of(cls, processor: Any) -> "PixelScale | None":
        """Normalization of an image processor; None if ``processor`` does not state one."""
        return PixelScale(**_scale_of(processor)) if hasattr(processor, "do_normalize") else None

    def normalize(self, images: Tensor) -> Tensor:
        """Model inputs from (batch, channels, height, width) images in [0, 1] of the right size."""
        x = images.flip(1) if self.reverse_channels else images
        mean, std = (x.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (x * self.scale + self.offset - mean) / std

    def images(self, pixel_values: Tensor) -> Tensor:
        """Images from model inputs: the inverse of :meth:`normalize`, so in [0, 1] up to rounding if they were."""
        mean, std = (pixel_values.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        x = (pixel_values * std + mean - self.offset) / self.scale
        return x.flip(1) if self.reverse_channels else x


@dataclass(frozen=True)
class PixelInput(PixelScale):
    """Differentiable preprocessing from images in [0, 1] to model inputs: resize, center crop, normalize.

    Attributes:
        size: Height and width of the model's inputs.
        resize_to: Height and width (or, one number, the shorter side) to resize to first; the middle ``size`` is then
            cut out. None means no resizing.
    """

    size: tuple[int, int]
    resize_to: int | tuple[int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, 3, *size) from (batch, 3, height, width) in [0, 1].

        Raises:
            ValueError: images of another size, and ``resize_to`` is None.
        """
        x = self._crop(self._resize(images))
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(
                f"expected images of {self.size[0]} x {self.size[1]} pixels, got {x.shape[-2]} x {x.shape[-1]}; use a "
                "generator of that size, or a target that resizes"
            )
        return self.normalize(x)

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


def pixel_input_of(model: PreTrainedModel, processor: Any = None, image_size: int | None = None) -> PixelInput:
    """Return an image processor's steps as one differentiable function of images in [0, 1].

    Args:
        model: The model; its configuration states the image size if there is no processor.
        processor: Image processor, or None.
        image_size: Side of the images if there is no processor.

    Raises:
        ValueError: the model reads no pixels, or the size is not known.
    """
    name = type(model).__name__
    if model.main_input_name not in ("pixel_values", "inputs") or "Siglip2" in name:
        raise ValueError(
            f"{name} reads {model.main_input_name} that are no plain pixels (words or packed patches), so no gradient "
            "reaches an image; choose another architecture"
        )
    if processor is None:
        size = _size_of(image_size or _configured_size(model))
        if size is None:
            raise ValueError(f"the configuration of {name} does not say its image size; pass processor= or image_size=")
        return PixelInput(size, size)
    resize_to = _resize_goal(processor)
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    if crop is None and isinstance(resize_to, int):
        crop = processor.size["shortest_edge"]  # ConvNeXT and its kin cut what they resized too far
    size = _size_of(crop) or _size_of(resize_to) or _size_of(_configured_size(model))
    if size is None:
        raise ValueError(f"{type(processor).__name__} does not say the size of its images; pass one that does")
    return PixelInput(size, resize_to if resize_to is not None else size, **_scale_of(processor))


def _scale_of(processor: Any) -> dict[str, Any]:
    """Arguments of :class:`PixelScale`."""
    normalize = bool(getattr(processor, "do_normalize", False))
    rescale = float(getattr(processor, "rescale_factor", 1 / 255)) if getattr(processor, "do_rescale", True) else 1.0
    return {
        "mean": tuple(processor.image_mean) if normalize else (0.0, 0.0, 0.0),
        "std": tuple(processor.image_std) if normalize else (1.0, 1.0, 1.0),
        "scale": 1.0 if abs(255 * rescale - 1) < 1e-6 else 255 * rescale,
        "offset": -1.0 if getattr(processor, "rescale_offset", False) else 0.0,
        "reverse_channels": bool(getattr(processor, "do_flip_channel_order", False)),
    }


def _configured_size(model: PreTrainedModel) -> Any:
    base = getattr(model.config, "base_config", None)  # of a defended model
    return getattr(model.config, "image_size", None) or getattr(base, "image_size", None)


def _resize_goal(processor: Any) -> int | tuple[int, int] | None:
    size = getattr(processor, "size", None)
    if not getattr(processor, "do_resize", False) or size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    short: int | None = size.get("shortest_edge")
    if short is None:
        return _size_of(size)
    share = getattr(processor, "crop_pct", None)  # ConvNeXT and its kin: below 384 pixels, resize more, then crop
    if share is None:
        return int(short)
    return int(short / share) if short < 384 else (int(short), int(short))


def _size_of(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, list | tuple):
        return (int(size[0]), int(size[-1]))
    if "height" in size and "width" in size:
        return (int(size["height"]), int(size["width"]))
    short = size.get("shortest_edge")
    return None if short is None else (int(short), int(short))
