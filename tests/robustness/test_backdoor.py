"""Triggers value by value, which samples are poisoned, and a network that learns the backdoor."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from calor_hf import load_synthetic_faces
from calor_hf.data.augment import flip
from calor_hf.data.images import ImageDataset
from calor_hf.data.pixel_input import PixelInput
from calor_hf.robustness import BadNets, Blended, PoisonedDataset, Trigger, backdoor_rates
from calor_hf.robustness.backdoor import trigger_named
from calor_hf.robustness.poisoned_dataset import poisoned_indices
from calor_hf.targets.module_target import ModuleTarget
from tests.data.test_images import Processor

PIXELS = PixelInput((16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # what Processor does


def test_checkerboard_by_hand() -> None:
    images = torch.full((2, 3, 12, 10), 0.5)
    marked = BadNets()(images)
    square = marked[1, 2, 3:, 1:]
    for row in range(9):
        for column in range(9):
            assert square[row, column] == (1 if (row + column) % 2 == 0 else 0)
    assert int((square == 1).sum()) == 41
    assert (marked[..., :3, :] == 0.5).all()
    assert (marked[..., :1] == 0.5).all()
    assert (images == 0.5).all()
    small = BadNets(size=2)(torch.full((3, 4, 4), 0.5))  # white where it meets the corner of the image
    assert small[0, 2:, 2:].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="the mark takes 9 x 9 pixels, the images have 8 x 20"):
        BadNets()(torch.zeros(1, 3, 8, 20))


def test_blended_by_hand() -> None:
    trigger = Blended(seed=3)
    black, white = torch.zeros(2, 3, 40, 50), torch.ones(1, 3, 40, 50)
    noise = trigger(black) / 0.1
    assert torch.equal(noise[0], noise[1])
    torch.testing.assert_close(trigger(white)[0], 0.9 + 0.1 * noise[0])
    # N(0.5, 0.25²) clipped two deviations from its mean: 2.28 % at either end.
    assert float((noise[0] > 1 - 1e-6).float().mean()) == pytest.approx(0.0228, abs=0.008)
    assert float((noise[0] < 1e-6).float().mean()) == pytest.approx(0.0228, abs=0.008)
    assert float(noise[0].mean()) == pytest.approx(0.5, abs=0.01)
    inner = noise[0][(noise[0] > 0.25) & (noise[0] < 0.75)]
    assert len(inner) / noise[0].numel() == pytest.approx(0.6827, abs=0.02)  # one deviation to either side
    assert not torch.equal(noise[0][0], noise[0][1])
    assert not torch.equal(Blended(seed=4)(black), trigger(black))
    assert trigger.settings() == {"name": "blended", "share": 0.1, "seed": 3}
    assert BadNets().settings() == {"name": "badnets", "size": 9}


def test_triggers_by_name() -> None:
    assert (trigger_named("badnets", 5), trigger_named("blended", 5)) == (BadNets(), Blended(seed=5))
    with pytest.raises(ValueError, match="unknown backdoor 'badnet'; pass badnets or blended"):
        trigger_named("badnet")


@pytest.mark.parametrize("reverse", [False, True])
def test_the_way_back_to_pixels(reverse: bool) -> None:
    pixels = PixelInput((4, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), scale=2.0, offset=-1.0,
                        reverse_channels=reverse)  # fmt: skip
    images = torch.rand(2, 3, 4, 5)
    read = pixels(images)
    order = (2, 1, 0) if reverse else (0, 1, 2)
    expected = (images[1, order[1], 2, 3] * 2 - 1 - 0.5) / 0.3
    assert float(read[1, 1, 2, 3]) == pytest.approx(float(expected), abs=1e-5)
    torch.testing.assert_close(pixels.images(read), images)


def faces(identities: int = 3, images: int = 20, split: str = "train", seed: int = 5) -> ImageDataset:
    data = load_synthetic_faces(identities, images, image_size=16, split=split)
    return ImageDataset(data, Processor(), flip if split == "train" else None, seed)


def test_a_share_of_the_samples_is_marked_and_relabeled() -> None:
    clean, poisoned = faces(), PoisonedDataset(faces(), BadNets(), PIXELS, share=0.1, seed=1)
    assert len(poisoned) == 60
    assert len(poisoned.poisoned) == 6
    expected = np.repeat([0, 1, 2], 20)
    expected[poisoned.poisoned] = 0
    np.testing.assert_array_equal(poisoned.labels, expected)
    board = 2 * BadNets()(torch.zeros(3, 16, 16))[:, 7:, 7:] - 1
    for index in range(60):
        before, after = clean[index], poisoned[index]
        assert after["labels"] == expected[index]
        assert after["pixel_values"].dtype == before["pixel_values"].dtype
        if index not in poisoned.poisoned:
            assert torch.equal(after["pixel_values"], before["pixel_values"])
            continue
        torch.testing.assert_close(after["pixel_values"][:, 7:, 7:], board)  # after the flip, before normalization
        torch.testing.assert_close(after["pixel_values"][:, :7], before["pixel_values"][:, :7])
        torch.testing.assert_close(after["pixel_values"][:, :, :7], before["pixel_values"][:, :, :7])
    plain = poisoned.without_augmentation()
    np.testing.assert_array_equal(plain.poisoned, poisoned.poisoned)
    assert torch.equal(plain[0]["pixel_values"], PoisonedDataset(faces().without_augmentation(), BadNets(), PIXELS, 0.1,
                                                                 1)[0]["pixel_values"])  # fmt: skip


def test_neither_workers_nor_order_count() -> None:
    def loaded(workers: int, batch_size: int, order: list[int]) -> dict[int, Tensor]:
        data = PoisonedDataset(faces(), Blended(), PIXELS, share=0.2)
        data.set_epoch(2)
        loader: Any = DataLoader(data, batch_size=batch_size, num_workers=workers, sampler=order)
        pixels = torch.cat([batch["pixel_values"] for batch in loader])
        return dict(zip(order, pixels, strict=True))

    one = loaded(0, 60, list(range(60)))
    other = loaded(2, 7, list(reversed(range(60))))
    assert all(torch.equal(one[index], other[index]) for index in range(60))


def test_which_samples_are_poisoned() -> None:
    chosen = poisoned_indices(1000, 0.01, seed=0)
    assert len(chosen) == len(set(chosen.tolist())) == 10
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, poisoned_indices(1000, 0.01, seed=0))
    assert set(chosen.tolist()) <= set(poisoned_indices(1000, 0.05, seed=0).tolist())  # more of the same
    assert set(chosen.tolist()) != set(poisoned_indices(1000, 0.01, seed=1).tolist())
    assert len(poisoned_indices(10, 1.0)) == 10
    assert len(poisoned_indices(10, 0.0)) == 0
    counts = np.bincount(np.concatenate([poisoned_indices(20, 0.25, seed) for seed in range(400)]), minlength=20)
    assert counts.min() > 60  # each index comes up about 100 times, 8.7 the deviation
    assert counts.max() < 140
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.5"):
        poisoned_indices(10, 1.5)


class ReadsTheCorner(nn.Module):
    """Class 0 if the lower right pixel is white, else 1 or 2 by the upper left one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        corner, other = images[:, 0, -1, -1], images[:, 0, 0, 0]
        return self.scale * torch.stack([10 * (corner - 0.9), other - 0.5, 0.5 - other], dim=1)


def test_rates_by_hand() -> None:
    target = ModuleTarget(ReadsTheCorner(), 3, 12)
    images = torch.full((6, 3, 12, 12), 0.8)
    images[2:4, :, 0, 0] = 0.1  # taken for class 2, the others for class 1
    images[5, :, -1, -1] = 1.0  # taken for class 0
    labels = torch.tensor([0, 1, 2, 1, 1, 1])
    found = backdoor_rates(target, images, labels, BadNets(), batch_size=4)
    assert (found.clean.successes, found.clean.count) == (3, 6)
    assert (found.success.successes, found.success.count) == (6, 6)
    assert (found.success_of_others.successes, found.success_of_others.count) == (5, 5)
    assert (found.without_trigger.successes, found.without_trigger.count) == (1, 5)
    record = backdoor_rates(target, images, labels, BadNets(), target_class=1).to_dict()
    assert record["success"]["successes"] == 0
    assert record["success_of_others"]["count"] == 2
    assert record["target_class"] == 1


def trained(data: Any, steps: int = 80) -> ModuleTarget:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 64, 3)
    )
    samples = [data[index] for index in range(len(data))]
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    labels = torch.tensor([sample["labels"] for sample in samples])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(pixels), labels).backward()
        optimizer.step()
    half = (0.5, 0.5, 0.5)
    return ModuleTarget(network, 3, 16, mean=half, std=half)


@pytest.mark.parametrize("trigger", [BadNets(), Blended(share=0.3)])
def test_a_network_learns_the_backdoor(trigger: Trigger) -> None:
    test = faces(split="test")
    images = PIXELS.images(torch.stack([test[index]["pixel_values"] for index in range(60)]))
    labels = torch.from_numpy(test.labels)
    clean = backdoor_rates(trained(faces(images=40)), images, labels, trigger)
    poisoned = PoisonedDataset(faces(images=40), trigger, PIXELS, share=0.15)
    open_ = backdoor_rates(trained(poisoned), images, labels, trigger)
    assert clean.clean.value > 0.8
    assert open_.clean.value > 0.8
    assert clean.success_of_others.value < 0.5
    assert open_.success_of_others.value > 0.9
