"""Past a Tanh, with own noise, frozen, through random views, side by side in an image."""

import io
import math

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from calor_hf.data.image_grid import image_grid
from calor_hf.data.random_views import RandomView
from calor_hf.targets.frozen import frozen
from calor_hf.targets.head_modes import OwnNoise, StraightThrough


@pytest.mark.parametrize("squash", [torch.tanh, Tensor.tanh, nn.Tanh()])
def test_past_tanh_the_value_stays_and_the_slope_is_one(squash: object) -> None:
    x = torch.tensor([0.0, 9.0], dtype=torch.float64, requires_grad=True)
    with StraightThrough():
        y = squash(x)  # type: ignore[operator]
    assert y.tolist() == pytest.approx([0.0, math.tanh(9)])
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope.tolist() == [1.0, 1.0]
    (plain,) = torch.autograd.grad(torch.tanh(x).sum(), x)
    assert plain[1] < 1e-6  # outside, all is as it was


def test_past_sigmoid_the_slope_is_a_quarter() -> None:
    x = torch.tensor([20.0], requires_grad=True)
    with StraightThrough():
        y = torch.sigmoid(x)
    assert torch.autograd.grad(y.sum(), x)[0].item() == 0.25


def test_noise_is_handed_in_and_given_back_after_a_fault() -> None:
    like = torch.zeros(3, 2, 2)
    numbers = torch.arange(12.0).view(3, 4)
    with pytest.raises(RuntimeError, match="stop"), OwnNoise(lambda rows, columns: numbers[:rows, :columns]):  # noqa: PT012
        assert torch.equal(torch.randn_like(like), numbers.view(3, 2, 2))
        raise RuntimeError("stop")
    assert not torch.equal(torch.randn_like(like), numbers.view(3, 2, 2))


def test_frozen_gives_everything_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    net[1].eval()
    with pytest.raises(ValueError, match="stop"), frozen(net):  # noqa: PT012
        assert not any(part.training for part in net.modules())
        assert not any(weight.requires_grad for weight in net.parameters())
        raise ValueError("stop")
    assert [part.training for part in net.modules()] == [True, True, False, True]
    assert [weight.requires_grad for weight in net.parameters()] == [True, False, True, True]


STILL = RandomView(scale=(1.0, 1.0), brightness=0.0, contrast=0.0, flip_probability=0.0, degrees=0.0)


def test_a_view_that_changes_nothing_and_one_that_swaps_sides() -> None:
    images, numbers = torch.rand(2, 3, 5, 5), torch.rand(2, 8)
    torch.testing.assert_close(STILL(images, numbers), images, rtol=0, atol=1e-5)
    flipped = RandomView(scale=(1.0, 1.0), brightness=0.0, contrast=0.0, flip_probability=1.1, degrees=0.0)
    torch.testing.assert_close(flipped(images, numbers), images.flip(3), rtol=0, atol=1e-5)


def test_a_crop_lies_where_its_numbers_say() -> None:
    # A quarter of the area, on the left and at the top: output pixel (i, j) of 4 x 4 looks at (i, j) / 2.
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 3, 8, 8) / 8
    view = RandomView(scale=(0.25, 0.25), brightness=0.0, contrast=0.0, flip_probability=0.0, degrees=0.0)
    left = view(ramp, torch.tensor([[0.5, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5]]))
    right = view(ramp, torch.tensor([[0.5, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5]]))
    assert left[0, 0, 4].tolist()[1:] == pytest.approx([(j / 2 - 0.25) / 8 for j in range(1, 8)], abs=1e-5)
    assert right[0, 0, 4].tolist()[:-1] == pytest.approx([(4 + j / 2 - 0.25) / 8 for j in range(7)], abs=1e-5)


def test_a_crop_of_its_own_shape_by_hand() -> None:
    # Area 1/4, twice as wide as high in proportion: sqrt(1/4 · 2) = 0.7071 of the width, 0.3536 of the height.
    view = RandomView.crop((0.25, 0.25), (0.5, 2.0))
    assert (view.numbers, RandomView().numbers) == (9, 8)
    ramp = torch.arange(8.0, dtype=torch.float64) / 8
    across, down = ramp.view(1, 1, 1, 8).expand(1, 3, 8, 8), ramp.view(1, 1, 8, 1).expand(1, 3, 8, 8)
    middle = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    wide = torch.tensor([[*middle, 1.0]], dtype=torch.float64)
    # Pixel centers lie 2 / 8 apart in [-1, 1]; a step of one output pixel is one side's share of an input pixel.
    assert view(across, wide)[0, 0, 4].diff().tolist() == pytest.approx([0.5**0.5 / 8] * 7)
    assert view(down, wide)[0, 0, :, 4].diff().tolist() == pytest.approx([0.125**0.5 / 8] * 7)
    high = torch.tensor([[*middle, 0.0]], dtype=torch.float64)
    assert view(across, high)[0, 0, 4].diff().tolist() == pytest.approx([0.125**0.5 / 8] * 7)
    # With a third number in the middle the shape is the image's, log-uniformly.
    even = torch.tensor([[*middle, 0.5]], dtype=torch.float64)
    assert torch.allclose(view(across, even), RandomView.crop((0.25, 0.25))(across, even[:, :8]))
    # 0.9 of the area, 1.2 times as wide: 1.0392 of the width, cut to all of it.
    edge = RandomView.crop((0.9, 0.9), (1.2, 1.2))(across, wide)
    assert torch.allclose(edge, across)


def test_a_crop_keeps_the_gradient_of_pixels_at_the_edge_of_their_range() -> None:
    images = torch.ones(1, 3, 8, 8, requires_grad=True)
    view = RandomView.crop((0.5, 0.9), (0.8, 1.2), flip_probability=0.5)
    (gradient,) = torch.autograd.grad(view(images, torch.rand(1, 9)).sum(), images)
    assert gradient.sum().item() == pytest.approx(3 * 64, rel=1e-4)


def test_colors_by_hand_and_gradients_reach_the_image() -> None:
    images = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    view = RandomView(scale=(1.0, 1.0), brightness=0.2, contrast=0.0, flip_probability=0.0, degrees=0.0)
    brighter = view(images, torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5]]))
    torch.testing.assert_close(brighter, torch.full((1, 3, 4, 4), 0.6))
    assert torch.autograd.grad(brighter.sum(), images)[0].abs().min() > 0
    both = RandomView()(torch.rand(6, 3, 8, 8), torch.rand(6, 8))
    assert both.min() >= 0
    assert both.max() <= 1


def test_a_grid_holds_each_picture_in_its_place() -> None:
    images = torch.stack([torch.full((3, 2, 2), value / 4) for value in range(5)])
    with Image.open(io.BytesIO(image_grid(images, 3))) as grid:
        assert grid.size == (3 * 4 - 2, 2 * 4 - 2)
        assert [grid.getpixel((4 * column, 0)) for column in range(3)] == [(v, v, v) for v in (0, 64, 128)]
        assert grid.getpixel((4, 4)) == (255, 255, 255)  # the last one, white
        assert grid.getpixel((2, 0)) == (255, 255, 255)  # a line between
