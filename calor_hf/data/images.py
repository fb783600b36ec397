"""Labelled images as model inputs, augmented by (seed, epoch, index)."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.core.seeding import named_rng
from calor_hf.data.augment import Augmentation
from calor_hf.data.bad_images import to_rgb

_TRIAL_IMAGES = Image.new("RGB", (96, 160)), Image.new("RGB", (160, 96))


class ImageDataset(Dataset[dict[str, Any]]):
    """Images and labels of a ``datasets.Dataset`` as model inputs (``pixel_values``, mostly) and ``labels``.

    The augmentation of an image depends on (seed, epoch, index) alone: not on the batch, on the worker that
    loads it, or on whether the run was interrupted. The trainer calls :meth:`set_epoch`.

    Args:
        images: Data with an image and a label column, named by ``image_column`` and ``label_column``.
        processor: Image processor of the model.
        augmentation: Applied to the RGB image before the processor, or None.
        seed: First part of the key of every draw, >= 0.
        keep_bytes: Decoded images are kept in memory up to this size, so that small sets are decoded once.
        identity_column: Column that is given as ``identities``; None means that the data have no such column.
    """

    def __init__(
        self, images: Any, processor: Any, augmentation: Augmentation | None = None, seed: int = 0,
        image_column: str = "image", label_column: str = "label", keep_bytes: int = 256 * 2**20,
        identity_column: str | None = None,
    ) -> None:  # fmt: skip
        self.images, self.processor, self.augmentation, self.seed = images, processor, augmentation, seed
        self.image_column, self.label_column, self.identity_column = image_column, label_column, identity_column
        self._kept: dict[int, tuple[Image.Image, int]] = {}
        self._room = keep_bytes
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that stay alive

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self._image(int(index))
        if self.augmentation is not None:
            image = self.augmentation(image, named_rng(self.seed, "data/augmentation", int(self._epoch), int(index)))
        identity = {} if self.identities is None else {"identities": int(self.identities[index])}
        return {**self._inputs(image), "labels": label, **identity}

    def _inputs(self, image: Image.Image) -> dict[str, Tensor]:
        inputs = self.processor(images=image, return_tensors="pt")  # pixel_values, mostly; more or others for some
        return {name: torch.as_tensor(value[0]) for name, value in inputs.items()}

    def check_processor(self) -> int:
        """Refuse a processor that cannot read these images, or makes inputs of several sizes of them.

        Returns:
            The longer side of the model inputs, in pixels.

        Raises:
            ValueError: the processor and the images do not fit together.
        """
        name = type(self.processor).__name__
        try:
            first, wide, high = (self._inputs(image) for image in (self._image(0)[0], *_TRIAL_IMAGES))
        except Exception as error:  # of whatever class the processor is
            raise ValueError(
                f"{name} cannot read an RGB image ({type(error).__name__}: {error}); save the image processor of the "
                "model, for images of three channels, in its folder"
            ) from error
        shapes = {key: value.shape for key, value in first.items()}
        if any(shapes != {key: value.shape for key, value in other.items()} for other in (wide, high)):
            sizes = {self._image(index)[0].size for index in range(len(self))}  # the only images that it can take
            if len(sizes) > 1:
                raise ValueError(
                    f"{name} leaves the size of its output to the image, and the images have {len(sizes)} sizes, such "
                    f"as {' and '.join(f'{w} x {h}' for w, h in sorted(sizes)[:2])}, which do not fit into one batch; "
                    'set its size to {"height": ..., "width": ...} and do_resize to true in preprocessor_config.json'
                )
        pixels = first.get("pixel_values")
        return max(self._image(0)[0].size if pixels is None else pixels.shape[-2:])

    def _image(self, index: int) -> tuple[Image.Image, int]:
        if index in self._kept:
            return self._kept[index]
        row = self.images[index]
        found = to_rgb(row[self.image_column]), int(row[self.label_column])
        size = 3 * found[0].width * found[0].height
        if size <= self._room:
            self._room -= size
            self._kept[index] = found
        return found

    @property
    def labels(self) -> NDArray[np.int64]:
        """(samples,) labels, read without decoding an image."""
        return np.asarray(self.images[self.label_column], dtype=np.int64)

    @cached_property
    def identities(self) -> NDArray[np.int64] | None:
        """(samples,) identities, or None if the data have none."""
        if self.identity_column is None:
            return None
        return np.asarray(self.images[self.identity_column], dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Epoch that later draws belong to, from 0."""
        self._epoch.fill_(epoch)

    def without_augmentation(self) -> "ImageDataset":
        """The same images as they are."""
        columns = self.image_column, self.label_column
        plain = ImageDataset(self.images, self.processor, None, self.seed, *columns, 0, self.identity_column)
        plain._kept = self._kept  # what is decoded already serves both
        return plain


def balanced_class_weights(labels: NDArray[np.int64], num_labels: int) -> Tensor:
    """Weights that give each class the same influence: samples / (classes · samples of the class).

    ``labels`` are (samples,) in [0, num_labels); the result is (num_labels,) float32.

    Raises:
        ValueError: a class has no sample.
    """
    counts = np.bincount(labels, minlength=num_labels)
    if (counts == 0).any():
        empty = np.flatnonzero(counts == 0)[:5].tolist()
        raise ValueError(f"classes without a training image: {empty}; remove them or leave class weights off")
    return torch.from_numpy(len(labels) / (num_labels * counts)).float()
