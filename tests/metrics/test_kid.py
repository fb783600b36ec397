"""Kernel distance by hand, against torchmetrics and sklearn; subsets; what is refused."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from calor_hf.metrics import View
from calor_hf.metrics.fid import INCEPTION
from calor_hf.metrics.kid import KID, kernel_distances, squared_mmd
from tests.metrics.small_evidence import of_rows, small_evidence


def cloud(rows: int, columns: int, seed: int, shift: float = 0.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=rng, dtype=torch.float64) + shift


def test_one_feature_by_hand() -> None:
    # Kernel (xy + 1)³. Among 0, 1: 1. Among 1, 2: 27. Between: (1 + 1 + 8 + 27)/4 = 37/4. So 1 + 27 − 37/2.
    first, second = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    assert squared_mmd(first, second).item() == pytest.approx(9.5)
    assert kernel_distances(first, second, subsets=3).tolist() == pytest.approx([9.5] * 3)


def test_it_is_that_of_torchmetrics() -> None:
    first, second = cloud(9, 5, 1), cloud(9, 5, 2, 0.5)
    torch.testing.assert_close(squared_mmd(first, second), poly_mmd(first, second))


def test_sets_of_unequal_size_by_sklearn() -> None:
    first, second = cloud(9, 5, 1), cloud(7, 5, 2, 0.5)
    among = [polynomial_kernel(some.numpy(), degree=3, coef0=1) for some in (first, second)]
    off = [table[~np.eye(len(table), dtype=bool)].mean() for table in among]
    between = polynomial_kernel(first.numpy(), second.numpy(), degree=3, coef0=1).mean()
    assert squared_mmd(first, second).item() == pytest.approx(off[0] + off[1] - 2 * between)


def test_it_has_no_bias() -> None:
    # Clouds of one distribution lie at 0 on average, those of five images too; FID would not.
    found = torch.stack([squared_mmd(cloud(5, 4, 2 * seed), cloud(5, 4, 2 * seed + 1)) for seed in range(400)])
    assert abs(found.mean()) < 3 * found.std() / 20
    assert (found < 0).any()


def test_subsets_are_drawn_without_repetition_and_average_to_the_whole() -> None:
    first, second = cloud(12, 4, 5), cloud(15, 4, 6, 0.5)
    whole = squared_mmd(first, second).item()
    some = kernel_distances(first, second, subsets=500, subset_size=6)
    assert some.std() > 0
    assert some.mean().item() == pytest.approx(whole, abs=3 * some.std().item() / math.sqrt(500))
    # All of the smaller side each time: only the other side varies.
    assert kernel_distances(first, second[:12], subsets=4, subset_size=99).tolist() == pytest.approx(
        [squared_mmd(first, second[:12]).item()] * 4
    )


def test_neither_the_order_of_pictures_nor_their_precision_changes_a_draw() -> None:
    # Rows of one sum, as unit shares have it: their order must not hang on rounding.
    first, second = cloud(12, 4, 5).softmax(dim=1), cloud(15, 4, 6, 0.5).softmax(dim=1)
    found = kernel_distances(first, second, subsets=5, subset_size=4)
    shuffled = kernel_distances(first[torch.randperm(12)], second[torch.randperm(15)], subsets=5, subset_size=4)
    torch.testing.assert_close(shuffled, found, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        kernel_distances(first.float(), second.float(), subsets=5, subset_size=4), found, rtol=1e-4, atol=1e-6
    )
    assert not torch.equal(kernel_distances(first, second, subsets=5, subset_size=4, seed=1), found)


@pytest.mark.parametrize(("fakes", "reals"), [(1, 5), (5, 1), (0, 5)])
def test_fewer_than_two_pictures_are_not_a_number(fakes: int, reals: int) -> None:
    found = kernel_distances(cloud(5, 3, 1)[:fakes], cloud(5, 3, 2)[:reals], subsets=4)
    assert found.isnan().tolist() == [True] * 4


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="one subset or more, of two images or more, got 0 of 9"):
        kernel_distances(cloud(5, 3, 1), cloud(5, 3, 2), subsets=0, subset_size=9)
    with pytest.raises(ValueError, match="got 3 of 1"):
        kernel_distances(cloud(5, 3, 1), cloud(5, 3, 2), subsets=3, subset_size=1)
    with pytest.raises(ValueError, match=r"of one network, got \(5, 3\) and \(5, 4\)"):
        kernel_distances(cloud(5, 3, 1), cloud(5, 4, 2))


def test_only_one_network_gives_what_is_called_kid() -> None:
    first, second = cloud(4, 2, 1).float(), cloud(6, 2, 2, 1.0).float()
    known = {"labels": torch.tensor([0, 0, 1, 1]), "private_labels": torch.tensor([0, 0, 0, 1, 1, 1])}
    (found,) = KID(subsets=50, subset_size=3).measure(small_evidence(extractor=View(INCEPTION, first, second), **known))
    draws = kernel_distances(first, second, 50, 3)
    assert (found.name, found.images, found.identities, found.direction) == ("kid", 4, 2, "privacy")
    assert found.value == pytest.approx(draws.mean().item())
    assert found.std == pytest.approx(draws.std().item())
    assert math.isnan(found.low)  # subsets overlap
    assert found.note == "50 subsets of 3 of 4 reconstructions and of 6 private images; by inception_fid"
    (other,) = KID().measure(small_evidence(extractor=View("mine", first, second), **known))
    assert other.name == "kernel_distance"


def test_one_picture_or_numbers_too_large_say_why() -> None:
    (alone,) = KID().measure(of_rows(small_evidence(), torch.tensor([3])))
    assert "two images on each side" in alone.note
    huge = View("mine", torch.full((12, 1), 1e30), torch.full((24, 1), -1e30))
    large = small_evidence(extractor=View("mine", huge.features.double() ** 5, huge.private_features.double()))
    (found,) = KID().measure(large)
    assert math.isnan(found.value)
    assert math.isnan(found.std)
    assert "float64" in found.note
