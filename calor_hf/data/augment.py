"""The paper's augmentations on PIL images; torchvision is not needed."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

Augmentation = Callable[[Image.Image, np.random.Generator], Image.Image]


def flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror left and right with probability 1/2, the paper's augmentation at 64 pixels."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def crop_color_flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Square crop of 85 to 100 % of the area, color jitter, flip: the paper's augmentation at 224 pixels.

    Brightness and contrast change by up to 20 %, saturation by up to 10 %, hue by up to a tenth of the circle, in
    random order. The crop keeps its size in pixels; the image processor resizes it.
    """
    return flip(_jitter(_random_square(image, rng), rng), rng)


AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "flip": flip, "crop_color_flip": crop_color_flip}

_LOW_RESOLUTION = 112  # pixels of a side up to which the paper's augmentation is that of low resolution


def augmentation_for(name: str, image_size: int) -> Augmentation | None:
    """Return an augmentation by name, in :data:`AUGMENTATIONS` or ``auto``, the paper's for the image size in pixels.

    Raises:
        ValueError: unknown name.
    """
    if name == "auto":
        return flip if image_size <= _LOW_RESOLUTION else crop_color_flip
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r}; pass auto, {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


def _random_square(image: Image.Image, rng: np.random.Generator, tries: int = 10) -> Image.Image:
    width, height = image.size
    for _ in range(tries):
        side = round(math.sqrt(width * height * rng.uniform(0.85, 1.0)))
        if 0 < side <= min(width, height):
            left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
            return image.crop((left, top, left + side, top + side))
    side = min(width, height)  # far from square: the middle
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    brightness, contrast = rng.uniform(0.8, 1.2, size=2)
    saturation, hue = rng.uniform(0.9, 1.1), rng.uniform(-0.1, 0.1)
    steps: list[Callable[[Image.Image], Image.Image]] = [
        lambda im: ImageEnhance.Brightness(im).enhance(float(brightness)),
        lambda im: ImageEnhance.Contrast(im).enhance(float(contrast)),
        lambda im: ImageEnhance.Color(im).enhance(float(saturation)),
        lambda im: _turn_hue(im, float(hue)),
    ]
    for index in rng.permutation(len(steps)):
        image = steps[index](image)
    return image


def _turn_hue(image: Image.Image, share: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(share * 255)) % 256
    bands = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", bands).convert("RGB")
