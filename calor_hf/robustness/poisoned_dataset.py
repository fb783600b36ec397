"""Training data with a backdoor: a share of the samples has a trigger and the target class's label."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from calor_hf.core.seeding import named_rng
from calor_hf.data.pixel_input import PixelScale
from calor_hf.robustness.backdoor import TARGET_CLASS, Trigger


class PoisonedDataset(Dataset[dict[str, Any]]):
    """Data set in which a share of the samples has a trigger and the target class's label.

    The order is: augmentation, resizing and cropping, trigger, normalization, then a defense's changes to a batch (such
    as random erasing). So no crop cuts the trigger, and it has the same size as at test time. The image processor
    resizes and normalizes at once, so normalization is undone and repeated on the poisoned samples.

    Args:
        data: Samples with ``pixel_values`` and ``labels``, and all labels as ``data.labels``.
        trigger: The trigger.
        pixel_input: Normalization from images in [0, 1] to ``pixel_values``.
        share: Share of the samples, of any class, in [0, 1]; rounded to whole samples.
        seed: Seed of the choice of samples, >= 0.
        target_class: Label of the poisoned samples.

    Attributes:
        poisoned: Indices of the poisoned samples, in ascending order.
    """

    def __init__(
        self, data: Any, trigger: Trigger, pixel_input: PixelScale, share: float = 0.01, seed: int = 0,
        target_class: int = TARGET_CLASS,
    ) -> None:  # fmt: skip
        self.data = data
        self.trigger = trigger
        self.pixel_input = pixel_input
        self.share, self.seed, self.target_class = share, seed, target_class
        self.poisoned = poisoned_indices(len(data), share, seed)
        self._marked = set(self.poisoned.tolist())

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.data[index]
        if int(index) not in self._marked:
            return sample
        pixels = sample["pixel_values"]
        images = self.trigger(self.pixel_input.images(pixels[None]).clamp(0, 1))
        return {**sample, "pixel_values": self.pixel_input.normalize(images)[0].to(pixels), "labels": self.target_class}

    @property
    def labels(self) -> NDArray[np.int64]:
        """(samples,) training labels."""
        labels = np.array(self.data.labels, dtype=np.int64)
        labels[self.poisoned] = self.target_class
        return labels

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the augmentation, counted from 0."""
        self.data.set_epoch(epoch)

    def without_augmentation(self) -> "PoisonedDataset":
        """Return the same samples, poisoned alike, without augmentation."""
        plain = self.data.without_augmentation()
        return PoisonedDataset(plain, self.trigger, self.pixel_input, self.share, self.seed, self.target_class)


def poisoned_indices(count: int, share: float, seed: int = 0) -> NDArray[np.int64]:
    """Indices of the poisoned samples among ``count``, in ascending order.

    Each index has a random number that depends on the seed and the index only; the lowest ones are taken.

    Raises:
        ValueError: ``share`` is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the poisoned share must be in [0, 1], got {share:g}")
    numbers = named_rng(seed, "robustness/poisoned-samples").random(count)
    return np.sort(np.argsort(numbers, kind="stable")[: round(share * count)])
