"""Public images, as the priors are trained on them: plain tensors, without labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.core.digests import text_digest
from calor_hf.data.bad_images import to_rgb


class PublicImages(Dataset[Tensor]):
    """Images of a ``datasets.Dataset`` as (3, size, size) tensors in [0, 1].

    The largest middle square (or ``crop`` pixels of it) is resized with an antialiased filter.

    Args:
        images: Data with an image column.
        image_size: Side of the result in pixels.
        crop: Side of the middle square that is kept, in pixels of the original; None means the largest.
        image_column: Column with the images.
        keep_bytes: Ready images are kept in memory up to this size.
        drawn: Whether they are faces that this library draws, so that no one is shown.
        files: Digest of each file, if they are known.

    Raises:
        ValueError: a size or crop of no pixels.
    """

    def __init__(
        self, images: Any, image_size: int, crop: int | None = None, image_column: str = "image",
        keep_bytes: int = 2**30, drawn: bool = False, files: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if image_size < 1 or (crop is not None and crop < 1):
            raise ValueError(f"image_size and crop must be at least one pixel, got {image_size} and {crop}")
        self.images, self.image_size, self.crop, self.image_column = images, image_size, crop, image_column
        self.drawn, self.files = drawn, tuple(files)
        self._kept: dict[int, Tensor] = {}
        self._room = keep_bytes // (3 * image_size**2)

    @property
    def digest(self) -> str | None:
        """SHA-256 of the files, whatever their order; None if they are not known."""
        return text_digest(sorted(self.files)) if self.files else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        found = self._kept.get(index)
        if found is None:
            found = self._read(index)
            if len(self._kept) < self._room:
                self._kept[index] = found
        return found.float() / 255

    def _read(self, index: int) -> Tensor:
        return square_pixels(self.images[index][self.image_column], self.image_size, self.crop)


def square_pixels(picture: Image.Image, size: int, crop: int | None = None) -> Tensor:
    """(3, size, size) bytes of an image's largest middle square, or of ``crop`` pixels of it."""
    image = to_rgb(picture)
    side = min(*image.size, crop or max(image.size))
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def labeled_pixels(images: Any, size: int, classes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """(m, 3, size, size) bytes and (m,) int64 labels of some ``classes``, or all.

    ``images`` is a ``datasets.Dataset`` with columns ``image`` and ``label``.
    """
    labels = np.asarray(images["label"])
    rows = np.arange(len(labels)) if classes is None else np.flatnonzero(np.isin(labels, list(classes)))
    pixels = [square_pixels(images[int(row)]["image"], size) for row in rows]
    empty = torch.empty(0, 3, size, size, dtype=torch.uint8)
    return torch.stack(pixels) if pixels else empty, torch.from_numpy(labels[rows]).long()
