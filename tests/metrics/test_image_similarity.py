"""Structural similarity by hand and against torchmetrics; the nearest image of the person; what is refused."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from calor_hf.metrics.image_similarity import ImageSimilarity, nearest_ssim, resized_like, ssim
from tests.metrics.small_evidence import small_evidence

C1, C2 = 1e-4, 9e-4


def random_images(count: int, seed: int, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def by_torchmetrics(x: Tensor, y: Tensor) -> Tensor:
    """(n,) indices of pairs of images in float64, without the edge where the library's window leaves the image."""
    _, index = structural_similarity_index_measure(x.double(), y.double(), data_range=1.0, return_full_image=True)
    assert isinstance(index, Tensor)
    return index[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))


def test_flat_pictures_by_hand() -> None:
    # No contrast: (2 · 0.2 · 0.6 + C1) / (0.04 + 0.36 + C1).
    flat = torch.ones(1, 3, 11, 11, dtype=torch.float64)
    assert ssim(0.2 * flat, 0.6 * flat).item() == pytest.approx((0.24 + C1) / (0.4 + C1))


def test_it_is_that_of_torchmetrics() -> None:
    first, second = random_images(3, 1), random_images(3, 2)
    second = 0.6 * first + 0.4 * second
    found = ssim(first.double(), second.double())
    torch.testing.assert_close(found, by_torchmetrics(first, second))
    assert ssim(first, second).tolist() == pytest.approx(found.tolist(), abs=1e-5)
    first, second = first[:, :, :12], second[:, :, :12]  # 12 x 16
    torch.testing.assert_close(ssim(first.double(), second.double()), by_torchmetrics(first, second))


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
    assert found[0].item() == pytest.approx(float(by_torchmetrics(private[[0, 0, 0]], private[2:]).max()), abs=1e-5)


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
    assert (found.name, found.direction, found.images, found.identities) == ("ssim", "leakage", 12, 4)
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
