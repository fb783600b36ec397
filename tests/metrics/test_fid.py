"""Frechet distance by hand and against torchmetrics; its name; too few images."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from calor_hf.metrics import Measure, View
from calor_hf.metrics.fid import FID, INCEPTION, frechet_distance
from tests.metrics.small_evidence import of_rows, small_evidence


def cloud(rows: int, columns: int, seed: int) -> Tensor:
    """Correlated features around a mean of their own."""
    rng = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=rng, dtype=torch.float64)
    return torch.randn(rows, columns, generator=rng, dtype=torch.float64) @ mixing + seed


def measured(view: View, labels: list[int], private_labels: list[int]) -> Measure:
    known = {"labels": torch.tensor(labels), "private_labels": torch.tensor(private_labels)}
    (found,) = FID().measure(small_evidence(extractor=view, **known))
    return found


def test_one_feature_by_hand() -> None:
    # Means 1 and 2, variances 2 and 8: (1 − 2)² + (√2 − 2√2)² = 3.
    assert frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])) == pytest.approx(3)


def test_two_features_that_share_no_direction_by_hand() -> None:
    # All of one cloud's variance, 2, lies along x, of the other's, 8, along y: nothing cancels.
    assert frechet_distance(torch.tensor([[-1.0, 0], [1, 0]]), torch.tensor([[0, -2.0], [0, 2]])) == pytest.approx(10)


class FirstRow(nn.Module):
    """Features that are given: those in the first row of "images" (n, 3, 1, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0]


@pytest.mark.parametrize(("fakes", "reals", "width"), [(40, 30, 5), (4, 6, 9)], ids=["many", "fewer than features"])
def test_it_is_that_of_torchmetrics(fakes: int, reals: int, width: int) -> None:
    first, second = cloud(fakes, width, 1), cloud(reals, width, 2)
    metric = FrechetInceptionDistance(feature=FirstRow(width), input_img_size=(3, 1, width), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(first[:, None, None].expand(-1, 3, -1, -1), real=False)
    metric.update(second[:, None, None].expand(-1, 3, -1, -1), real=True)
    # It takes roots of eigenvalues: of those that should be 0, with few images, rounding errors of 1e-7 are left.
    assert frechet_distance(first, second) == pytest.approx(metric.compute().item(), rel=1e-5)
    assert frechet_distance(second, first) == pytest.approx(frechet_distance(first, second), rel=1e-9)


@pytest.mark.parametrize("rows", [3, 40])
def test_equal_clouds_lie_at_zero_and_a_shift_is_squared(rows: int) -> None:
    features = cloud(rows, 6, 3)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features[torch.randperm(rows)]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + torch.eye(6)[0] * 3) == pytest.approx(9)


def test_single_precision_loses_nothing_that_matters() -> None:
    features = (1e3 + torch.randn(50, 4, generator=torch.Generator().manual_seed(1))).float()
    assert frechet_distance(features, features + 1) == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize(("fakes", "reals"), [(1, 5), (5, 1), (0, 5)])
def test_fewer_than_two_pictures_are_not_a_number(fakes: int, reals: int) -> None:
    assert math.isnan(frechet_distance(cloud(5, 3, 1)[:fakes], cloud(5, 3, 2)[:reals]))


def test_numbers_too_large_for_float64_are_not_a_number() -> None:
    assert math.isnan(frechet_distance(cloud(5, 3, 1) * 1e160, cloud(5, 3, 2) * 1e160))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of one network, got \(5, 3\) and \(5, 2\)"):
        frechet_distance(cloud(5, 3, 1), cloud(5, 2, 2))
    spoilt = cloud(5, 3, 1)
    spoilt[2, 1] = math.inf
    with pytest.raises(ValueError, match="some rows of private_features are not finite"):
        frechet_distance(cloud(5, 3, 1), spoilt)


def test_only_one_network_gives_what_is_called_fid() -> None:
    features, private = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    found = measured(View(INCEPTION, features, private), [3, 5], [3, 5])
    assert (found.name, found.direction) == ("fid", "privacy")
    assert found.value == pytest.approx(3)
    assert (found.images, found.identities, found.unit) == (2, 2, "squared distance")
    assert found.note == "2 reconstructions and 2 private images in 1 features of inception_fid"
    for other in ("inception_fid_legacy_range", "Inception", "inception"):
        assert measured(View(other, features, private), [3, 5], [3, 5]).name == "frechet_distance"


def test_the_note_tells_of_bias() -> None:
    evidence = small_evidence()
    assert evidence.extractor is not None
    (found,) = FID().measure(of_rows(evidence, torch.arange(5)))
    assert "from 5 images in 8 features; fewer images than features bias it strongly upward" in found.caveat  # 5 < 8
    (alone,) = FID().measure(of_rows(evidence, torch.arange(1)))
    assert math.isnan(alone.value)
    assert "two images on each side" in alone.note
    short = dataclasses.replace(evidence, extractor=dataclasses.replace(evidence.extractor, features=torch.ones(3, 8)))
    with pytest.raises(ValueError, match="expected features with 12 rows"):
        FID().measure(short)
