"""Flows: the path from noise to image, and its two gradients."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from calor_hf.generators.denoiser import as_images
from calor_hf.generators.flow import Flow, FlowConfig

SIDE = 16


def flow(**settings: object) -> Flow:
    torch.manual_seed(1)
    made = Flow(FlowConfig.from_dict({"image_size": SIDE, "width": 4, "decode_steps": 3, **settings})).double().eval()
    for weight in made.parameters():
        weight.requires_grad_(False)
    return made


def noise(generator: Flow) -> torch.Tensor:
    return generator.sample_latents(2, np.random.default_rng(0)).requires_grad_(True)


def test_images_and_gradient_are_those_of_euler_steps() -> None:
    generator = flow()
    latents = noise(generator)
    images = generator(latents)
    points = latents.view(2, 3, SIDE, SIDE)
    for now, after in pairwise([0.0, 1 / 3, 2 / 3, 1.0]):
        clean = generator.network(points, torch.full((2,), 1000 * now, dtype=torch.float64)).sample
        points = points + (after - now) * (clean - points) / (1 - now)
    torch.testing.assert_close(images, ((points + 1) / 2).clamp(0, 1))
    weights = torch.rand_like(images)
    (mine,) = torch.autograd.grad((images * weights).sum(), latents)
    (theirs,) = torch.autograd.grad(((points + 1) / 2 * weights).sum(), latents)
    torch.testing.assert_close(mine, theirs)


def test_straight_through_has_the_same_images_and_half_the_identity_as_slope() -> None:
    exact, straight = flow(), flow(gradient="straight_through")
    latents = noise(straight)
    images = straight(latents)
    assert torch.equal(images, exact(latents))
    weights = torch.rand_like(images)
    (slope,) = torch.autograd.grad((images * weights).sum(), latents)
    torch.testing.assert_close(slope, weights.flatten(1) / 2)


def test_data_outside_the_range_keep_their_gradient() -> None:
    data = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    images = as_images(data)
    assert images.tolist() == [0.0, 0.5, 1.0]
    (slope,) = torch.autograd.grad(images.sum(), data)
    assert slope.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("side", [8, 48])
def test_sides_that_do_not_halve_down_to_8_are_refused(side: int) -> None:
    with pytest.raises(ValueError, match=f"power of two, at least 16, got {side}"):
        FlowConfig(image_size=side)
