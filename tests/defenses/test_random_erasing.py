"""Random erasing: the squares, their places and sizes, what they are filled with."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from calor_hf.core.outputs import Forward, Progress
from calor_hf.core.seeding import StepDraws
from calor_hf.data.pixel_input import PixelScale
from calor_hf.defenses.random_erasing import RandomErasing, RandomErasingConfig, squares
from calor_hf.defenses.training_run import TrainingRun
from calor_hf.modeling import DefendedForImageClassification
from tests.tiny_models import tiny_base

START = Progress("fit", 0, 10, 0.0, 1.0)
HALF = PixelScale(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
UNEVEN = PixelScale(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))


def started(scale: PixelScale | None = HALF, **settings: Any) -> RandomErasing:
    """Defense in a run of its own."""
    defense = RandomErasing(RandomErasingConfig(**settings))
    run = TrainingRun(
        model=None,
        scale=scale,
        seed=0,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        learning_rate=lambda: 0.1,
        sum_over_processes=lambda value: value,
        log=lambda name, value: None,
    )
    defense.begin(run)
    return defense


def erased(defense: RandomErasing, images: Tensor, draws: StepDraws | None = None) -> Tensor:
    draws = draws if draws is not None else StepDraws.of_batch(0, 0, len(images), len(images))
    labels = torch.arange(len(images))
    result = defense.on_batch({"pixel_values": images, "labels": labels, "other": "kept"}, draws, START)
    assert result.keys() == {"pixel_values", "labels", "other"}
    assert torch.equal(result["labels"], labels)
    found: Tensor = result["pixel_values"]
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    return found


def holes_of(before: Tensor, after: Tensor) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of what changed in each image; all of it must have changed."""
    found = []
    for changed in (before != after).all(1).numpy():
        ys, xs = np.nonzero(changed)
        top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
        assert changed[top:bottom, left:right].all()
        assert changed.sum() == (bottom - top) * (right - left)
        found.append((int(top), int(left), int(bottom - top), int(right - left)))
    return found


def literal_square(numbers: list[float], size: tuple[int, int], low: float, high: float, p: float) -> list[int]:
    height, width = size
    side = round(math.sqrt((low + numbers[1] * (high - low)) * height * width))
    side = min(side, height, width) if numbers[0] < p else 0
    return [math.floor(numbers[2] * (height - side + 1)), math.floor(numbers[3] * (width - side + 1)), side, side]


def test_squares_match_hand_computed_values() -> None:
    numbers = np.array([
        [0.0, 0.0, 0.0, 0.0],  # 0.25 of 400 pixels: side 10, top left
        [0.4, 1 / 3, 0.5, 0.99],  # 0.36: side 12; 9 places, 0.5 is the fifth, 0.99 the last
        [0.49, 0.999999, 0.999, 0.999],  # nearly 0.58: √231 = 15.2, side 15, bottom right
        [0.5, 0.0, 0.5, 0.5],  # not below the probability: none
    ])  # fmt: skip
    assert squares(numbers, (20, 20), 0.25, 0.58, 0.5).tolist() == [
        [0, 0, 10, 10],
        [4, 8, 12, 12],
        [5, 5, 15, 15],
        [10, 10, 0, 0],
    ]
    # 0.9 of 10 × 40 pixels would be a side of 19: it fits no more, so 10.
    assert squares(np.array([[0.0, 1.0, 0.7, 0.5]]), (10, 40), 0.1, 0.9, 1.0).tolist() == [[0, 15, 10, 10]]


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (32, 32), (224, 224), (64, 16)])
def test_squares_are_the_formula_and_inside(size: tuple[int, int]) -> None:
    numbers = np.random.default_rng(0).random((500, 4))
    found = squares(numbers, size, 0.1, 0.8, 0.7)
    for row, hole in zip(numbers.tolist(), found.tolist(), strict=True):
        assert hole == literal_square(row, size, 0.1, 0.8, 0.7)
        top, left, height, width = hole
        assert 0 <= top <= top + height <= size[0]
        assert 0 <= left <= left + width <= size[1]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.4), (0.1, 0.8), (0.3, 0.3)])
def test_areas_are_uniform_between_their_limits(low: float, high: float) -> None:
    side = 224
    holes = squares(np.random.default_rng(0).random((20_000, 4)), (side, side), low, high, 1.0)
    sides = holes[:, 2]
    # A side is rounded by half a pixel at most.
    assert math.sqrt(low) * side - 0.5 <= sides.min()
    assert sides.max() <= math.sqrt(high) * side + 0.5
    areas = (sides / side) ** 2
    # Mean and spread of the uniform distribution, within 5 standard errors and the rounding.
    assert abs(areas.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * 20_000) + 2e-3
    assert abs(areas.std() - (high - low) / math.sqrt(12)) < 5e-3
    for quarter in (0.25, 0.5, 0.75):
        assert (areas <= low + quarter * (high - low)).mean() == pytest.approx(quarter, abs=0.05) or low == high


def test_places_cover_the_image_evenly() -> None:
    # One size, 16 of 32 pixels: 17 places along each side, each equally often; every pixel is sometimes erased.
    holes = squares(np.random.default_rng(0).random((17 * 17 * 40, 4)), (32, 32), 0.25, 0.25, 1.0)
    assert set(holes[:, 2]) == {16}
    for axis in (0, 1):
        counts = np.bincount(holes[:, axis], minlength=17)
        assert len(counts) == 17
        assert np.abs(counts - 680).max() < 6 * math.sqrt(680)
    covered: NDArray[np.int64] = np.zeros((32, 32), dtype=np.int64)
    for top, left, height, width in holes:
        covered[top : top + height, left : left + width] += 1
    assert covered.min() > 0
    places = {(int(top), int(left)) for top, left, _, _ in holes}
    assert len(places) == 17 * 17


def test_every_image_has_a_hole_of_its_own() -> None:
    images = torch.randn(64, 3, 32, 32)
    after = erased(started(), images)
    holes = holes_of(images, after)
    assert len(set(holes)) > 55
    for _, _, height, width in holes:
        assert height == width
        assert math.sqrt(0.1) * 32 - 0.5 <= height <= math.sqrt(0.4) * 32 + 0.5
    numbers = StepDraws.of_batch(0, 0, 64, 64).uniform("defenses/random_erasing/squares", 4)
    assert [list(hole) for hole in holes] == [literal_square(r, (32, 32), 0.1, 0.4, 1.0) for r in numbers.tolist()]


def test_holes_change_from_step_to_step() -> None:
    images = torch.randn(4, 3, 32, 32)
    first, second = (erased(started(), images, StepDraws.of_batch(0, step, 4, 4)) for step in (0, 1))
    assert holes_of(images, first) != holes_of(images, second)


@pytest.mark.parametrize("fill", ["authors", "mean", "noise", 0.75])
@pytest.mark.parametrize(("processes", "parts"), [(2, 1), (1, 2), (2, 2), (1, 8)])
def test_holes_do_not_depend_on_the_split(processes: int, parts: int, fill: str | float) -> None:
    defense = started(fill=fill)
    images = torch.randn(8, 3, 16, 16)
    whole = erased(defense, images, StepDraws.of_batch(3, 4, 8, 8))
    size = 8 // (processes * parts)
    pieces: list[Tensor] = []
    for part in range(parts):
        for process in range(processes):
            draws = StepDraws.of_batch(3, 4, size, size, part, parts, process, processes)
            pieces.append(erased(defense, images[len(pieces) * size :][:size], draws))
    assert torch.equal(torch.cat(pieces), whole)


def inside(images: Tensor, after: Tensor) -> list[Tensor]:
    """(3, pixels) of the hole in each image, after checking that the rest is as it was."""
    values = []
    for before, now, hole in zip(images, after, holes_of(images, after), strict=True):
        top, left, height, width = hole
        values.append(now[:, top : top + height, left : left + width].flatten(1))
        rest = now.clone()
        rest[:, top : top + height, left : left + width] = before[:, top : top + height, left : left + width]
        assert torch.equal(rest, before)
    return values


@pytest.mark.parametrize("scale", [None, HALF, UNEVEN])
def test_the_authors_fill_is_a_constant_in_normalized_units(scale: PixelScale | None) -> None:
    images = torch.randn(6, 3, 32, 32)
    for values in inside(images, erased(started(scale), images)):
        for channel, constant in zip(values, (0.485, 0.456, 0.406), strict=True):
            assert channel.tolist() == [pytest.approx(constant)] * len(channel)


def test_the_mean_is_that_of_each_image_and_channel() -> None:
    images = torch.randn(6, 3, 32, 32) + torch.arange(6).view(6, 1, 1, 1)
    for image, values in zip(images, inside(images, erased(started(fill="mean"), images)), strict=True):
        for channel, pixels in zip(values, image, strict=True):
            mean = sum(pixels.flatten().tolist()) / 1024
            assert channel.tolist() == [pytest.approx(mean, abs=1e-5)] * len(channel)


def test_noise_is_standard_normal_and_differs_between_pixels() -> None:
    images = torch.full((32, 3, 32, 32), 9.0)
    values = torch.cat([v.flatten() for v in inside(images, erased(started(fill="noise"), images))])
    assert len(values.unique()) > 0.999 * len(values)  # float32 rounds a few to the same number
    assert abs(values.mean().item()) < 5 / math.sqrt(len(values))
    assert abs(values.std().item() - 1) < 5 / math.sqrt(2 * len(values))


@pytest.mark.parametrize("gray", [0.0, 0.75, 1.0])
def test_a_grey_value_is_in_pixels(gray: float) -> None:
    images = torch.randn(6, 3, 32, 32)
    for values in inside(images, erased(started(UNEVEN, fill=gray), images)):
        for channel, mean, std in zip(values, UNEVEN.mean, UNEVEN.std, strict=True):
            assert channel.tolist() == [pytest.approx((gray - mean) / std)] * len(channel)


def test_a_white_hole_matches_a_hand_computed_value() -> None:
    # (1 − 0.2) / 0.25 = 3.2 in the second channel.
    images = torch.zeros(1, 3, 8, 8)
    assert inside(images, erased(started(UNEVEN, fill=1.0), images))[0][1, 0].item() == pytest.approx(3.2)


def test_grey_images_have_one_channel() -> None:
    images = torch.randn(4, 1, 16, 16)
    for values in inside(images, erased(started(), images)):
        assert values.unique().tolist() == [pytest.approx(0.485)]


@pytest.mark.parametrize("fill", ["authors", "mean", "noise", 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_stays(dtype: torch.dtype, fill: str | float) -> None:
    images = torch.randn(4, 3, 16, 16, dtype=dtype)
    assert not torch.equal(erased(started(fill=fill), images), images)


def test_probability_zero_leaves_images_as_they_are() -> None:
    images = torch.randn(16, 3, 32, 32)
    for fill in ("authors", "mean", "noise", 0.5):
        assert torch.equal(erased(started(probability=0.0, fill=fill), images), images)


def test_probability_is_the_share_of_images_with_a_hole() -> None:
    images = torch.randn(2000, 1, 4, 4)
    changed = (erased(started(probability=0.3), images) != images).flatten(1).any(1).float().mean().item()
    assert abs(changed - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 2000)


def test_the_given_batch_is_left_alone() -> None:
    images = torch.randn(4, 3, 16, 16)
    copy = images.clone()
    erased(started(), images)
    assert torch.equal(images, copy)


def test_loss_is_cross_entropy() -> None:
    out = Forward(torch.tensor([[1.0, 0.0], [3.0, 3.0]]), torch.tensor([0, 1]))
    terms = RandomErasing(RandomErasingConfig()).loss(out, START)
    assert {name: value.item() for name, value in terms.items()} == {
        "cross_entropy": pytest.approx((math.log1p(math.exp(-1)) + math.log(2)) / 2)
    }


def test_models_that_do_not_read_images_are_refused() -> None:
    draws = StepDraws.of_batch(0, 0, 4, 4)
    labels = torch.arange(4)
    words = {"input_ids": torch.zeros(4, 64, dtype=torch.int64), "labels": labels}
    with pytest.raises(ValueError, match=r"random_erasing changes images, and needs pixel_values .* reads input_ids"):
        started().on_batch(words, draws, START)
    patches = {"pixel_values": torch.zeros(4, 16, 192), "labels": labels}
    with pytest.raises(ValueError, match=r"this model reads \(4, 16, 192\): choose another defense or another base"):
        started().on_batch(patches, draws, START)


def test_grey_needs_an_image_processor_and_says_so_before_training() -> None:
    with pytest.raises(ValueError, match=r"gray value as fill works on pixels .* pass processing_class="):
        started(None, fill=0.5)
    images = torch.randn(2, 3, 8, 8)
    for fill in ("authors", "mean", "noise"):
        assert not torch.equal(erased(started(None, fill=fill), images), images)


def test_training_without_the_trainer_is_refused(images: Tensor) -> None:
    model = DefendedForImageClassification.from_base(tiny_base("resnet"), "random_erasing").train()
    with pytest.raises(RuntimeError, match=r"'random_erasing' changes batches .* train it with DefenseTrainer"):
        model(images, labels=torch.zeros(4, dtype=torch.int64))
    assert model.eval()(images, labels=torch.zeros(4, dtype=torch.int64)).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_area": 0.0}, "min_area must be > 0, got 0.0"),
        ({"min_area": 0.5}, "expected min_area <= max_area, got 0.5 and 0.4"),
        ({"max_area": 1.0}, "max_area must be < 1, got 1.0"),
        ({"max_area": math.nan}, "max_area must be a finite number < 1, got nan"),
        ({"probability": 1.1}, r"probability must be in \[0, 1\], got 1.1"),
        ({"probability": -0.1}, r"probability must be in \[0, 1\], got -0.1"),
        ({"fill": "black"}, r"unknown fill 'black'; pass one of authors, mean, noise, or a gray value in \[0, 1\]"),
        ({"fill": 1.5}, r"fill must be a gray value in \[0, 1\], got 1.5"),
        ({"fill": math.nan}, r"fill must be a gray value in \[0, 1\], got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomErasingConfig(**settings)
