"""Attacks against literal loops in float64, and rates counted by hand on a linear classifier."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor, nn

from calor_hf.core.seeding import named_rng
from calor_hf.robustness import ADVERSARIAL, AdversarialResult, Share, adversarial, caveats, robust_accuracy
from calor_hf.robustness._one_pixel import one_pixel_images, with_pixel
from calor_hf.robustness.gradient import gradient_images, margin_loss
from calor_hf.targets.base import ScoreTarget
from calor_hf.targets.module_target import ModuleTarget

SIDE = 4
EPS, STEP = 8 / 255, 2 / 255


def linear(weights: Tensor, bias: Tensor) -> ModuleTarget:
    """Logits weights · (image − 1/2) / (1/2) + bias; the normalization is inside the target."""
    layer = nn.Linear(3 * SIDE**2, len(bias))
    layer.weight.data, layer.bias.data = weights, bias
    half = (0.5, 0.5, 0.5)
    return ModuleTarget(nn.Sequential(nn.Flatten(), layer), len(bias), SIDE, mean=half, std=half)


def random_linear() -> ModuleTarget:
    draw = torch.Generator().manual_seed(3)
    return linear(0.1 * torch.randn(5, 3 * SIDE**2, generator=draw), 0.1 * torch.randn(5, generator=draw))


def random_images(count: int = 7) -> tuple[Tensor, Tensor]:
    """Some values are 0 and 1, so that clipping counts."""
    draw = torch.Generator().manual_seed(4)
    images = torch.rand(count, 3, SIDE, SIDE, generator=draw).mul(1.4).sub(0.2).clamp(0, 1)
    return images, torch.arange(count) % 5


def start(count: int, seed: int) -> NDArray[np.float64]:
    """PGD's start: the image's row of one stream."""
    stream = np.random.RandomState(named_rng(seed, "robustness/pgd").integers(2**32, size=8))
    return stream.uniform(-EPS, EPS, (count, 3 * SIDE**2))


def by_hand(
    attack: str, target: ModuleTarget, images: Tensor, labels: Tensor, targeted: bool, seed: int
) -> NDArray[np.float64]:
    """Image by image, value by value, with the gradient of a linear classifier written out."""
    layer: Any = target.module[1]  # type: ignore[index]
    weights, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    found = []
    for row, (image, label) in enumerate(zip(images.double().numpy().reshape(len(images), -1), labels, strict=True)):
        x = image.copy()
        if attack.startswith("pgd"):
            x = np.clip(x + start(len(images), seed)[row], 0, 1)
        for _ in range(1 if attack == "fgsm" else 10):
            logits = weights @ ((x - 0.5) / 0.5) + bias
            slope = np.exp(logits - logits.max())
            slope /= slope.sum()
            slope[label] -= 1
            if attack == "pgd_margin":
                best = max((value, place) for place, value in enumerate(logits) if place != label)[1]
                slope = np.zeros(len(bias))
                slope[best], slope[label] = 1, -1
            gradient = slope @ weights / 0.5
            for place in range(len(x)):
                step = (EPS if attack == "fgsm" else STEP) * np.sign(gradient[place]) * (-1 if targeted else 1)
                moved = min(max(x[place] + step, 0), 1)
                x[place] = min(max(moved, image[place] - EPS), image[place] + EPS)
        found.append(x.reshape(3, SIDE, SIDE))
    return np.stack(found)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("attack", ["fgsm", "bim", "pgd", "pgd_margin"])
def test_images_are_those_of_a_literal_loop(attack: str, targeted: bool) -> None:
    target, (images, labels) = random_linear(), random_images()
    found = gradient_images(attack, target, images, labels, targeted, seed=5, batch_size=3)
    expected = by_hand(attack, target, images, labels, targeted, seed=5)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=2e-6)
    assert float((found - images).abs().max()) == pytest.approx(EPS, abs=1e-6)
    alone = gradient_images(attack, target, images[:2], labels[:2], targeted, seed=5, batch_size=64)
    torch.testing.assert_close(alone, found[:2], rtol=0, atol=1e-6)


def test_pgd_starts_anywhere_in_the_ball() -> None:
    flat = linear(torch.zeros(5, 3 * SIDE**2), torch.zeros(5))  # no gradient leads away from the start
    images, labels = random_images()
    for seed in (0, 1):
        found = gradient_images("pgd", flat, images, labels, False, seed, batch_size=2)
        expected = images.double().numpy() + start(7, seed).reshape(7, 3, SIDE, SIDE)
        np.testing.assert_allclose(found.double().numpy(), expected.clip(0, 1), rtol=0, atol=1e-6)
    assert not np.allclose(start(7, 0), start(7, 1))


def margins() -> tuple[ModuleTarget, Tensor, Tensor]:
    """Class 1 if the mean value is above 1/2, class 0 below, class 2 never.

    A value may move by 8/255 = 0.0314, and the mean with it.
    """
    size = 3 * SIDE**2
    weights = torch.stack([torch.zeros(size), torch.full((size,), 1.0), torch.zeros(size)])
    target = linear(weights, torch.tensor([0.0, 0.0, -1000.0]))
    above = torch.tensor([0.01, 0.02, 0.03, 0.033, 0.2, -0.05, -0.02, -0.04])
    images = (0.5 + above).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    return target, images.clone(), torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])


def test_successes_by_hand_of_a_known_margin() -> None:
    target, images, labels = margins()
    results = adversarial(target, images, labels, ["fgsm", "bim", "pgd", "pgd_margin"])
    for result in results:
        # Seven are right at first, the sixth is wrong. Moved over the border: 0.01, 0.02, 0.03 down and -0.02 up.
        assert (result.changed.successes, result.changed.count) == (4, 7), result.attack
        assert (result.all.successes, result.all.count) == (5, 8), result.attack
    for result in adversarial(target, images, labels, ["fgsm", "bim", "pgd"], targeted=True):
        # To class 2 there is no way; one of the two images of class 0 reaches class 1. None is there before.
        assert (result.changed.successes, result.changed.count) == (1, 8), result.attack
    labels[4] = 0  # taken for class 1 = y + 1 already
    (result,) = adversarial(target, images, labels, ["fgsm"], targeted=True)
    assert (result.changed.successes, result.changed.count) == (1, 7)
    assert (result.all.successes, result.all.count) == (2, 8)
    assert result.to_dict()["settings"] == {"eps": EPS}


def test_the_margin_sees_through_saturated_scores() -> None:
    target, images, labels = margins()
    layer: Any = target.module[1]  # type: ignore[index]
    layer.weight.data *= 1e5  # softmax is 0 or 1 in float32, so cross-entropy has no gradient
    layer.bias.data[2] = -1e9
    results = adversarial(target, images, labels, ["fgsm", "bim", "pgd_margin"])
    assert [result.changed.successes for result in results] == [0, 0, 4]


def test_robust_accuracy_by_hand() -> None:
    # The mean decides: right as they are 0.51, 0.52, 0.53, 0.533 and 0.7 of class 1, 0.48 and 0.46 of class 0.
    target, images, labels = margins()
    found = {eps: robust_accuracy(target, images, labels, eps) for eps in (0.005, 0.015, 0.025, 0.1)}
    assert found == {0.005: Share(7, 8), 0.015: Share(6, 8), 0.025: Share(4, 8), 0.1: Share(1, 8)}
    layer: Any = target.module[1]  # type: ignore[index]
    layer.weight.data *= 1e5
    layer.bias.data[2] = -1e9
    assert robust_accuracy(target, images, labels, 0.025) == Share(4, 8)  # the margin sees past a flat cross-entropy
    with pytest.raises(ValueError, match=r"eps must be > 0 and <= 1, as a change of a value in \[0, 1\], got 0"):
        robust_accuracy(target, images, labels, 0.0)


def test_images_made_on_another_network_are_counted_on_the_target() -> None:
    target, images, labels = margins()
    contrary, _, _ = margins()
    layer: Any = contrary.module[1]  # type: ignore[index]
    layer.weight.data *= -1
    own, moved = (adversarial(target, images, labels, ["bim"], made_on=source)[0] for source in (None, contrary))
    assert (own.transferred, moved.transferred) == (False, True)
    assert (moved.changed.successes, moved.changed.count) == (0, 7)  # pushed further in


def test_nothing_is_left_behind() -> None:
    target, (images, labels) = random_linear(), random_images(3)
    before, weights = images.clone(), [weight.clone() for weight in target.module.parameters()]
    np.random.seed(9)
    torch.manual_seed(9)
    numpy_next, torch_next = np.random.RandomState(9).rand(), torch.Generator().manual_seed(9)
    adversarial(target, images, labels)
    assert np.random.rand() == numpy_next
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch_next))
    assert torch.equal(images, before)
    for weight, old in zip(target.module.parameters(), weights, strict=True):
        assert torch.equal(weight, old)
        assert weight.grad is None
        assert weight.requires_grad


def test_margin_loss_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5], [0.0, 2.0, 5.0]], requires_grad=True)
    loss = margin_loss(logits, torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    assert loss.item() == (1 - 3) + (5 - 2)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope.tolist() == [[-1, 1, 0], [0, -1, 1]]


class AnyRedPixel(nn.Module):
    """Class 1 if the reddest pixel is redder than 0.6."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: Tensor) -> Tensor:
        redness = images[:, 0].flatten(1).amax(dim=1)
        return self.scale * torch.stack([0.6 - redness, redness - 0.6], dim=1)


def test_one_pixel_changes_at_most_one_pixel_and_finds_the_way() -> None:
    target = ModuleTarget(AnyRedPixel(), 2, 6)
    images = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.5
    labels = torch.zeros(5, dtype=torch.int64)
    changed = one_pixel_images(target, images, labels, targeted=False, seed=0)
    assert ((changed != images).any(dim=1).flatten(1).sum(dim=1) == 1).all()
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    (result,) = adversarial(target, images, labels, ["one_pixel"])
    assert (result.changed.successes, result.changed.count) == (5, 5)
    (result,) = adversarial(target, images, labels, ["one_pixel"], targeted=True)  # to class 1: the same
    assert result.changed.successes == 5
    alone = one_pixel_images(target, images[:2], labels[:2], targeted=False, seed=0)
    assert torch.equal(alone, changed[:2])
    assert not torch.equal(one_pixel_images(target, images, labels, targeted=False, seed=1), changed)


def test_one_pixel_asks_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = ScoreTarget.__call__
    monkeypatch.setattr(ScoreTarget, "__call__", lambda self, images: asked.append(len(images)) or ask(self, images))  # type: ignore[func-returns-value]
    target = ModuleTarget(AnyRedPixel(), 2, 6)
    bright = torch.ones(1, 3, 6, 6)  # one pixel cannot make it class 0
    changed = one_pixel_images(target, bright, torch.tensor([1]), targeted=False, seed=0)
    assert float(changed[:, 0].max()) == 1
    assert asked == [10, *[10, 1] * 10]


def test_a_pixel_by_hand() -> None:
    image = torch.zeros(3, 2, 3)
    copies = with_pixel(image, np.array([[0.9, 2.99, 0.1, 0.2, 0.3], [2.0, 3.0, 1, 1, 1]]))
    assert copies[0, :, 0, 2].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert copies[1, :, 1, 2].tolist() == [1, 1, 1]  # the very end belongs to the last pixel
    assert int((copies != 0).sum()) == 6
    assert int(image.count_nonzero()) == 0


@pytest.mark.parametrize(("successes", "count"), [(1, 3), (5, 410), (200, 410), (9999, 10000)])
def test_an_interval_ends_where_a_tail_has_a_fortieth(successes: int, count: int) -> None:
    low, high = Share(successes, count).interval
    assert binom.sf(successes - 1, count, low) == pytest.approx(0.025)
    assert binom.cdf(successes, count, high) == pytest.approx(0.025)


def test_an_interval_of_all_or_nothing_is_one_sided_and_open() -> None:
    assert Share(0, 40).interval == pytest.approx((0, 1 - 0.025 ** (1 / 40)))
    assert Share(40, 40).interval == pytest.approx((0.025 ** (1 / 40), 1))


def test_a_share_of_nothing() -> None:
    share = Share.of(torch.tensor([True]), torch.tensor([False]))
    assert math.isnan(share.value)
    assert share.to_dict() == {"successes": 0, "count": 0, "value": None, "low": None, "high": None}
    assert Share.of(torch.tensor([True, False, True]), torch.tensor([True, True, False])) == Share(1, 2)


def result_of(attack: str, successes: int, transferred: bool = False) -> AdversarialResult:
    return AdversarialResult(attack, False, transferred, Share(successes, 100), Share(successes, 100), 0, 0.0)


def test_what_is_said_beside_the_numbers() -> None:
    masked = "\n".join(caveats([result_of("pgd", 10), result_of("pgd_margin", 90)]))
    assert "no proof of robustness" in masked
    assert "untargeted: 90.0 % on the logit margin, 10.0 % on cross-entropy: the gradient" in masked
    assert "made on another network" in masked
    fine = "\n".join(caveats([result_of("pgd", 80), result_of("pgd_margin", 85), result_of("pgd", 1, True)]))
    assert "no masking that this check can see" in fine
    assert "made on another" not in fine
    assert "do better" not in fine
    assert "pgd untargeted: images made on the other network do better" in "\n".join(
        caveats([result_of("pgd", 10), result_of("pgd", 60, True)])
    )
    assert "add pgd_margin" in caveats([result_of("pgd", 80)])[1]


def test_bad_input_is_refused() -> None:
    target, (images, labels) = random_linear(), random_images()
    with pytest.raises(ValueError, match="unknown attack 'pgdd'; pass fgsm, pgd"):
        adversarial(target, images, labels, ["pgdd"])
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from -1 to"):
        adversarial(target, 2 * images - 1, labels)
    with pytest.raises(ValueError, match="in \\[0, 1\\], got values from nan"):
        adversarial(target, images * torch.nan, labels)
    with pytest.raises(ValueError, match="labels from 0 to 4, got 3 to 9"):
        adversarial(target, images, labels + 3 + 2 * (labels == 4))
    with pytest.raises(ValueError, match="n > 0, got"):
        adversarial(target, images, labels[:-1])
    with pytest.raises(ValueError, match="maker has 3 classes, the target 5"):
        adversarial(target, images, labels, made_on=margins()[0])


@pytest.mark.parametrize("attack", ADVERSARIAL)
def test_a_target_that_returns_nan(attack: str) -> None:
    target, (images, labels) = random_linear(), random_images()
    next(target.module.parameters()).data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="the target's scores became NaN or infinite; check its weights"):
        adversarial(target, images, labels, [attack])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    target, (images, labels) = random_linear(), random_images()
    monkeypatch.setitem(sys.modules, "art", None)
    for name in [name for name in sys.modules if name.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "calor-hf\[robustness\]"'):
        adversarial(target, images, labels, ["fgsm"])


def test_every_attack_is_registered() -> None:
    assert set(ADVERSARIAL) == {"fgsm", "pgd", "pgd_margin", "bim", "one_pixel"}
