"""A head that starts as a copy of a trained classifier."""

import logging

import pytest
import torch
from torch import Tensor, nn

from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.heads.svd_init import STDS, svd_init

FEATURES, CLASSES = 12, 8


@pytest.fixture
def classifier() -> nn.Linear:
    return nn.Linear(FEATURES, CLASSES).double()


@pytest.fixture
def calibration() -> Tensor:
    """Features off the origin, of unequal spread."""
    return 3 + torch.randn(200, FEATURES, dtype=torch.float64) * torch.linspace(0.1, 4, FEATURES)


def head_of(rank: int, activation: str = "tanh", **settings: bool | str) -> LowRankHead:
    return LowRankHead(FEATURES, CLASSES, rank, activation, **settings).double()  # type: ignore[arg-type]


def truncated(classifier: nn.Linear, rank: int) -> Tensor:
    left, singular, right = torch.linalg.svd(classifier.weight.detach(), full_matrices=False)
    best: Tensor = (left[:, :rank] * singular[:rank]) @ right[:rank]
    return best


@torch.no_grad()
def test_full_rank_is_the_old_map_to_first_order(classifier: nn.Linear, calibration: Tensor) -> None:
    head = head_of(CLASSES)
    svd_init(head, classifier, calibration)
    center = calibration.mean(0)
    torch.testing.assert_close(head(center[None]), classifier(center[None]))  # exact at the mean
    direction = torch.randn(5, FEATURES, dtype=torch.float64)
    errors = []
    for size in (0.1, 0.01):
        near = center + size * direction
        change = classifier(near) - classifier(center)
        errors.append(((head(near) - classifier(near)).norm() / change.norm()).item())
    assert errors[1] < 1e-4
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.05)  # tanh x = x - x³/3: nothing of second order


@torch.no_grad()
def test_calibrated_codes_stay_in_the_straight_part_of_tanh(classifier: nn.Linear, calibration: Tensor) -> None:
    head = head_of(CLASSES)
    svd_init(head, classifier, calibration)
    # Before Tanh every coordinate has spread 1 / SPREADS around 0.
    before = head.down(calibration)
    torch.testing.assert_close(before.mean(0), torch.zeros(CLASSES, dtype=torch.float64))
    torch.testing.assert_close(before.std(0, unbiased=False), torch.full((CLASSES,), 1 / STDS, dtype=torch.float64))
    old, new = classifier(calibration), head(calibration)
    assert (old.argmax(1) == new.argmax(1)).double().mean() >= 0.95


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 3, CLASSES])
def test_with_identity_the_head_is_the_truncated_svd(classifier: nn.Linear, calibration: Tensor, rank: int) -> None:
    head = head_of(rank, "identity")
    svd_init(head, classifier, calibration)
    best = truncated(classifier, rank)
    torch.testing.assert_close(head.up.weight @ head.down.weight, best)
    center, features = calibration.mean(0), torch.randn(7, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(head(features), (features - center) @ best.T + classifier(center))


@torch.no_grad()
def test_without_calibration_one_scale_and_a_warning(classifier: nn.Linear, caplog: pytest.LogCaptureFixture) -> None:
    head = head_of(3)
    with caplog.at_level(logging.WARNING, logger="calor_hf"):
        svd_init(head, classifier)
    assert "without calibration images" in caplog.text
    assert "Pass calibration=<some training images>" in caplog.text
    lengths = head.down.weight.norm(dim=1)  # 1 / scale: rows of Vᵀ have length 1
    torch.testing.assert_close(lengths, lengths[:1].expand(3))
    zero = torch.zeros(1, FEATURES, dtype=torch.float64)
    torch.testing.assert_close(head(zero), classifier(zero))


@torch.no_grad()
def test_calibration_gives_no_warning(
    classifier: nn.Linear, calibration: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    svd_init(head_of(3), classifier, calibration)
    assert caplog.text == ""


@torch.no_grad()
def test_head_without_bias(caplog: pytest.LogCaptureFixture, calibration: Tensor) -> None:
    head, classifier = head_of(CLASSES, "identity", bias=False), nn.Linear(FEATURES, CLASSES).double()
    svd_init(head, classifier, calibration)
    assert "the trained classifier's bias is dropped" in caplog.text
    torch.testing.assert_close(head.up.weight @ head.down.weight, classifier.weight)
    caplog.clear()
    svd_init(head, nn.Linear(FEATURES, CLASSES, bias=False).double(), calibration)
    assert caplog.text == ""


@torch.no_grad()
def test_classifier_without_bias(calibration: Tensor) -> None:
    head, classifier = head_of(CLASSES, "identity"), nn.Linear(FEATURES, CLASSES, bias=False).double()
    svd_init(head, classifier, calibration)
    torch.testing.assert_close(head(calibration), classifier(calibration))


@torch.no_grad()
def test_directions_that_never_vary_leave_finite_weights(classifier: nn.Linear) -> None:
    for features in (torch.ones(5, FEATURES), torch.randn(5, 1).expand(5, FEATURES)):
        head = head_of(CLASSES)
        svd_init(head, classifier, features)
        assert all(parameter.isfinite().all() for parameter in head.parameters())
        # The smallest scales are 1e-6 of the largest, so weights of 1e6 and 1e-6 meet: no better than this.
        torch.testing.assert_close(head(features.double()), classifier(features.double()), atol=0.2, rtol=0)


def test_other_sizes_are_refused(classifier: nn.Linear) -> None:
    for head in (LowRankHead(FEATURES, CLASSES + 1, 3), LowRankHead(FEATURES + 1, CLASSES, 3)):
        with pytest.raises(ValueError, match=r"copies the trained classifier \(12 features, 8 classes\), but the new"):
            svd_init(head, classifier)


def test_heads_that_are_not_straight_around_zero_are_refused(classifier: nn.Linear) -> None:
    for head in (head_of(3, "relu"), head_of(3, "sigmoid"), head_of(3, input_norm="batchnorm")):
        with pytest.raises(ValueError, match=r"straight around zero \(tanh, identity\).*pass head_init='random'"):
            svd_init(head, classifier)


@pytest.mark.parametrize("shape", [(1, FEATURES), (0, FEATURES), (FEATURES,)])
def test_too_few_calibration_images_are_refused(classifier: nn.Linear, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="calibration needs at least 2 images"):
        svd_init(head_of(3), classifier, torch.zeros(shape))
