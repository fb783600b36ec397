"""Grid of images as one PNG."""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor


def image_grid(images: Tensor, columns: int) -> bytes:
    """Draw (count, 3, height, width) images in [0, 1] row by row into one PNG, with a white line between them."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    canvas = torch.full((3, rows * (height + 2) - 2, columns * (width + 2) - 2), 255, dtype=torch.uint8)
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + 2), index % columns * (width + 2)
        canvas[:, top : top + height, left : left + width] = image
    return png(canvas)


def png(pixels: Tensor, **options: Any) -> bytes:
    """PNG of (3, height, width) bytes; ``options`` are those of Pillow's ``save``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, format="PNG", **options)
    return buffer.getvalue()
