from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from calor_hf import load_synthetic_faces
from calor_hf.data.augment import flip
from calor_hf.data.images import ImageDataset, balanced_class_weights


class Processor:
    """Scales to [-1, 1]."""

    def __call__(self, images: Any, return_tensors: str) -> dict[str, Any]:
        values = np.asarray(images, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
        return {"pixel_values": values[None]}


def dataset() -> ImageDataset:
    return ImageDataset(load_synthetic_faces(3, 4, image_size=16), Processor(), flip, seed=5)


def batches(data: ImageDataset, workers: int, batch_size: int) -> torch.Tensor:
    loader = DataLoader(data, batch_size=batch_size, num_workers=workers, persistent_workers=workers > 0)
    epochs = []
    for epoch in range(2):
        data.set_epoch(epoch)
        epochs.append(torch.cat([batch["pixel_values"] for batch in loader]))
    return torch.stack(epochs)


def test_draws_do_not_depend_on_workers_or_batches() -> None:
    alone = batches(dataset(), workers=0, batch_size=12)
    assert not torch.equal(alone[0], alone[1])  # another epoch, other draws
    torch.testing.assert_close(batches(dataset(), workers=2, batch_size=5), alone, rtol=0, atol=0)


def test_without_augmentation_is_the_picture_itself() -> None:
    data = dataset()
    plain = data.without_augmentation()
    expected = Processor()(data.images[7]["image"], "np")["pixel_values"][0]
    np.testing.assert_array_equal(plain[7]["pixel_values"].numpy(), expected)
    assert plain[7]["labels"] == 1
    np.testing.assert_array_equal(data.labels, np.repeat([0, 1, 2], 4))


def test_balanced_weights_by_hand() -> None:
    weights = balanced_class_weights(np.array([0, 0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 2.0]))
    with pytest.raises(ValueError, match=r"without a training image: \[2\]"):
        balanced_class_weights(np.array([0, 1]), 3)
