"""Training data of which a share carries a trigger and a wrong label."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from calor_hf.core.seeding import named_rng
from calor_hf.data.pixel_input import PixelScale
from calor_hf.robustness.backdoor import TARGET_CLASS, Trigger


class PoisonedDataset(Dataset[dict[str, Any]]):
    """A data set in which a share of the samples shows a trigger and bears the target class's label.

    The order is: augmentation, resizing and cropping, trigger, normalization, then whatever a defense does to a batch
    (such as random erasing). So no crop cuts the trigger and it is as large as at test time. As the image processor
    does resizing and normalization in one go, the latter is undone and done again on the poisoned samples; the others
    pass untouched.

    Args:
        data: Samples with ``pixel_values`` and ``labels``, and all labels as ``data.labels``.
        trigger: The mark.
        pixel_input: Normalization from images in [0, 1] to ``pixel_values``.
        share: Of the samples, of every class, in [0, 1]; rounded to whole samples.
        seed: Of the choice of samples, >= 0.
        target_class: Label of the poisoned samples.

    Attributes:
        poisoned: Indices of the poisoned samples, in ascending order.
    """

    def __init__(
        self,
        data: Any,
        trigger: Trigger,
        pixel_input: PixelScale,
        share: float = 0.01,
        seed: int = 0,
        target_class: int = TARGET_CLASS,
    ) -> None:
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
        images = self.trigger(self.pixel_input.images(pixels[None]))
        return {**sample, "pixel_values": self.pixel_input.normalize(images)[0].to(pixels), "labels": self.target_class}

    @property
    def labels(self) -> NDArray[np.int64]:
        """(samples,) labels as they are trained on."""
        labels = np.array(self.data.labels, dtype=np.int64)
        labels[self.poisoned] = self.target_class
        return labels

    def set_epoch(self, epoch: int) -> None:
        """Epoch that later draws of the augmentation belong to, from 0."""
        self.data.set_epoch(epoch)

    def without_augmentation(self) -> "PoisonedDataset":
        """The same samples, poisoned alike, not augmented."""
        plain = self.data.without_augmentation()
        return PoisonedDataset(plain, self.trigger, self.pixel_input, self.share, self.seed, self.target_class)


def poisoned_indices(count: int, share: float, seed: int = 0) -> NDArray[np.int64]:
    """Which of ``count`` samples are poisoned, in ascending order.

    Each index has a number that depends on the seed and the index alone; the samples with the lowest are taken.

    Raises:
        ValueError: ``share`` is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the poisoned share must be in [0, 1], got {share:g}")
    numbers = named_rng(seed, "robustness/poisoned-samples").random(count)
    return np.sort(np.argsort(numbers, kind="stable")[: round(share * count)])
