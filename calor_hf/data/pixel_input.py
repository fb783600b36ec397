"""An image processor as a differentiable function of images in [0, 1]."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from calor_hf.core.saved_config import plain_processor


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
        """Normalization of an image processor; None if it is missing, or does not state or show one."""
        try:
            return PixelScale(**_scale_of(plain_processor(processor)))
        except ValueError:
            return None

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
        model: The model; its configuration states the image size if the processor leaves it to the images.
        processor: Image processor, or None.
        image_size: Side of the images if there is no processor.

    Raises:
        ValueError: the model reads no RGB pixels, the size is not known, or the processor's steps are not.
    """
    check_channels(model)
    name = type(model).__name__
    if model.main_input_name not in ("pixel_values", "inputs") or "Siglip2" in name:
        raise ValueError(
            f"{name} reads {model.main_input_name} that are no plain pixels (words or packed patches), so no gradient "
            "reaches an image; choose another architecture"
        )
    configured = _size_of(image_size or configured_value(model.config, "image_size"))
    if processor is None:
        if configured is None:
            raise ValueError(f"the configuration of {name} does not say its image size; pass processor= or image_size=")
        return PixelInput(configured, configured)
    processor = plain_processor(processor)
    small, large = (_size_of(processed(processor, _plain_image(0, side=side)).shape[-2:]) for side in (96, 160))
    size = small if small == large else configured
    if size is None:
        raise ValueError(
            f"{type(processor).__name__} gives images of the size that they have (or a size that depends on it), and "
            f"the configuration of {name} states none; pass a processor with size={{'height': ..., 'width': ...}}"
        )
    return PixelInput(size, _resize_goal(processor, size) or size, **_scale_of(processor))


def processed(processor: Any, image: Image.Image) -> Tensor:
    """(channels, height, width) model inputs that a processor makes of one RGB image.

    Raises:
        ValueError: it cannot read the image, or makes something else of it.
    """
    name = type(processor).__name__
    try:
        pixels = torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"])
    except Exception as error:  # of whatever class it is
        raise ValueError(
            f"{name} cannot read an RGB image ({type(error).__name__}: {error}); pass the image processor of the "
            "model, for images of three channels"
        ) from error
    if pixels.ndim != 4 or len(pixels) != 1:
        raise ValueError(
            f"{name} must make (1, channels, height, width) pixel_values of one image, got {tuple(pixels.shape)}; "
            "pass an image processor that gives one view of each image"
        )
    return pixels[0]


def check_channels(model: PreTrainedModel) -> None:
    """Refuse a model that does not read three channels.

    Raises:
        ValueError: its configuration states another number.
    """
    timm_args = configured_value(model.config, "model_args") or {}
    channels = configured_value(model.config, "num_channels") or timm_args.get("in_chans", 3)
    if channels != 3:
        raise ValueError(
            f"{type(model).__name__} reads images of {channels} channel{'s' * (channels != 1)}, but images are RGB "
            "here, 3 channels; pass a model for RGB images, or widen this one: num_channels (timm: in_chans) 3 in its "
            "configuration, the weight of its first layer repeated over the channels, and 3 values in image_mean and "
            "image_std of its image processor"
        )


def configured_value(config: Any, name: str) -> Any:
    """Value in a configuration or, nested in it, of a defended model's base, a vision part or a backbone; or None."""
    if config is None or getattr(config, name, None) is not None:
        return getattr(config, name, None)
    parts = (getattr(config, part, None) for part in ("base_config", "vision_config", "backbone_config"))
    return next((value for part in parts if (value := configured_value(part, name)) is not None), None)


def _plain_image(*color: int, side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (color * 3)[:3])


def _scale_of(processor: Any) -> dict[str, Any]:
    """Arguments of :class:`PixelScale`."""
    if not hasattr(processor, "do_normalize"):
        return _measured_scale(processor)
    normalize = bool(processor.do_normalize)
    rescale = float(getattr(processor, "rescale_factor", 1 / 255)) if getattr(processor, "do_rescale", True) else 1.0
    return {
        "mean": _per_channel(processor.image_mean if normalize else None, 0.0),
        "std": _per_channel(processor.image_std if normalize else None, 1.0),
        "scale": 1.0 if abs(255 * rescale - 1) < 1e-6 else 255 * rescale,
        "offset": -1.0 if getattr(processor, "rescale_offset", False) else 0.0,
        "reverse_channels": bool(getattr(processor, "do_flip_channel_order", False)),
    }


def _measured_scale(processor: Any) -> dict[str, Any]:
    """Mean, standard deviation and channel order of a processor that does not state them, from plain images."""
    colors = (0,), (255,), (255, 0, 0), (51, 102, 204)
    made = [processed(processor, _plain_image(*color, side=96)).double() for color in colors]
    black, white, red, mixed = (pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2] for pixels in made)
    spread = white - black
    if len(spread) == 3 and bool((spread != 0).all()):
        reverse = bool((red - black)[2] / spread[2] > 0.5)
        found = PixelScale(
            mean=tuple((-black / spread).tolist()), std=tuple((1 / spread).tolist()), reverse_channels=reverse
        )
        expected = found.normalize(torch.tensor(colors[3]).double().view(1, 3, 1, 1) / 255).flatten()
        if torch.allclose(mixed, expected, atol=0.02 * float(spread.abs().max())):
            return {"mean": found.mean, "std": found.std, "reverse_channels": reverse}
    raise ValueError(
        f"{type(processor).__name__} states no do_normalize, image_mean and image_std, and does not normalize every "
        "image by the same mean and deviation of each channel; pass an image processor that does"
    )


def _per_channel(values: Any, default: float) -> tuple[float, ...]:
    """Three numbers from a list, one number for all channels, or None."""
    values = np.atleast_1d(default if values is None else values).tolist()
    return tuple(values * 3 if len(values) == 1 else values)


def _resize_goal(processor: Any, made: tuple[int, int]) -> int | tuple[int, int] | None:
    """Size before the crop to the size ``made``; None if there is no crop."""
    size = getattr(processor, "size", None)
    if not getattr(processor, "do_resize", False) or size is None or isinstance(size, int):
        return None
    short: int | None = size.get("shortest_edge")
    share = getattr(processor, "crop_pct", None)  # ConvNeXT and its kin: below 384 pixels, resize more, then crop
    if short is not None and share is not None:
        return int(short / share) if short < 384 else (int(short), int(short))
    if getattr(processor, "do_center_crop", False):
        return _size_of(size) if short is None else int(short)
    return short if short == min(made) else None  # more than one number may limit the size, or a number of pixels


def _size_of(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, list | tuple):
        return (int(size[0]), int(size[-1]))
    return (int(size["height"]), int(size["width"])) if "height" in size and "width" in size else None
