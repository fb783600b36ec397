"""Structural similarity by hand and against scipy; the nearest image of the person; what is refused."""

import math

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from torch import Tensor

from calor_hf.metrics.image_similarity import ImageSimilarity, nearest_ssim, resized_like, ssim
from tests.metrics.small_evidence import small_evidence

C1, C2 = 1e-4, 9e-4


def random_images(count: int, seed: int, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def by_scipy(x: Tensor, y: Tensor) -> float:
    """The index of two images, channel by channel, in float64."""
    places = np.arange(-5, 6)
    line = np.exp(-(places**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for a, b in zip(x.double().numpy(), y.double().numpy(), strict=True):
        mean_a, mean_b, squares_a, squares_b, products = (
            convolve2d(plane, window, mode="valid") for plane in (a, b, a * a, b * b, a * b)
        )
        light = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        std = squares_a - mean_a**2 + squares_b - mean_b**2 + C2
        found.append((light * (2 * (products - mean_a * mean_b) + C2) / std).mean())
    return float(np.mean(found))


def test_flat_pictures_by_hand() -> None:
    # No contrast: (2 · 0.2 · 0.6 + C1) / (0.04 + 0.36 + C1).
    flat = torch.ones(1, 3, 11, 11, dtype=torch.float64)
    assert ssim(0.2 * flat, 0.6 * flat).item() == pytest.approx((0.24 + C1) / (0.4 + C1))


def test_it_is_that_of_scipy() -> None:
    first, second = random_images(3, 1), random_images(3, 2)
    second = 0.6 * first + 0.4 * second
    found = ssim(first.double(), second.double())
    assert found.tolist() == pytest.approx([by_scipy(x, y) for x, y in zip(first, second, strict=True)])
    assert ssim(first, second).tolist() == pytest.approx(found.tolist(), abs=1e-5)
    wide = ssim(first[:, :, :12].double(), second[:, :, :12].double())
    assert wide[0].item() == pytest.approx(by_scipy(first[0, :, :12], second[0, :, :12]))


def test_a_picture_is_like_itself_and_unlike_its_negative() -> None:
    first = random_images(2, 3)
    assert ssim(first, first).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (ssim(first, 1 - first) < -0.5).all()


def test_one_picture_against_many() -> None:
    first, second = random_images(1, 4), random_images(3, 5)
    expected = [ssim(first, other[None]).item() for other in second]
    assert ssim(first, second).tolist() == pytest.approx(expected)


def test_the_nearest_picture_is_one_of_the_person() -> None:
    private = random_images(5, 6)
    private_labels, labels = torch.tensor([0, 0, 4, 4, 4]), torch.tensor([4, 0])
    images = torch.stack([private[0], private[1]])  # both show person 0, the first is meant to show person 4
    found = nearest_ssim(images, labels, private, private_labels)
    assert found.dtype == torch.float64
    assert found[1].item() == pytest.approx(1, abs=1e-6)
    assert found[0].item() == pytest.approx(max(by_scipy(private[0], private[row]) for row in (2, 3, 4)), abs=1e-5)


def test_private_pictures_of_another_size_are_resized() -> None:
    private = random_images(2, 7, side=32)
    small = resized_like(private, random_images(1, 8))
    assert tuple(small.shape) == (2, 3, 16, 16)
    labels = torch.tensor([0, 1])
    assert nearest_ssim(small, labels, private, labels).tolist() == pytest.approx([1, 1], abs=1e-6)
    halves = torch.tensor([0.2, 0.8]).repeat(16).expand(1, 3, 32, 32)  # an image of stripes becomes gray
    assert resized_like(halves, small).mean().item() == pytest.approx(0.5, abs=1e-3)


def test_the_metric_is_their_mean() -> None:
    evidence = small_evidence()
    (found,) = ImageSimilarity().measure(evidence)
    expected = nearest_ssim(evidence.images, evidence.labels, evidence.private_images, evidence.private_labels)
    assert (found.name, found.more_is, found.images, found.identities) == ("ssim", "leakage", 12, 4)
    assert found.value == pytest.approx(expected.mean().item())
    assert found.low < found.value < found.high
    # The first reconstruction of each person shows most of them, the third least.
    assert expected[0::3].mean() > expected[1::3].mean() > expected[2::3].mean()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": random_images(2, 1) + 0.5}, r"expected images \(n, 3, height, width\) in \[0, 1\]"),
        ({"private_images": random_images(2, 1) - 0.5}, "expected private_images"),
        ({"images": random_images(2, 1)[:, :1]}, "expected images"),
        ({"images": random_images(2, 1) * math.nan}, "2 of 2 rows of images are not finite"),
        ({"images": random_images(1, 1)}, "expected images with 2 rows"),
        ({"private_labels": torch.tensor([0, 0])}, "no private image of class 1"),
        ({"images": random_images(2, 1, side=10)}, "at least 11 x 11 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Tensor], words: str) -> None:
    labels = torch.tensor([0, 1])
    known = {
        "images": random_images(2, 1),
        "labels": labels,
        "private_images": random_images(2, 2),
        "private_labels": labels,
    }
    with pytest.raises(ValueError, match=words):
        nearest_ssim(**{**known, **changes})
