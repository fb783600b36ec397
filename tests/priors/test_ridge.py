"""The ridge prior against the closed form over all images at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calor_hf.core.seeding import named_rng
from calor_hf.generators import load_generator
from calor_hf.priors.base import TrainDraws
from tests.priors.small_prior import BATCH, SIDE, Pictures, tiny_prior, tiny_target, train

PENALTY = 0.3


def test_updates_end_at_the_solution_over_all_images(tmp_path: Path) -> None:
    steps, images = 3, Pictures().images
    generator: Any = train("ridge", tmp_path, settings={"steps": steps, "penalty": PENALTY})
    # The loop shuffles by (seed, epoch), and an epoch has five batches.
    read = images[torch.from_numpy(named_rng(0, "priors/order", 0).permutation(len(images))[: steps * BATCH])]
    with torch.no_grad():
        features = tiny_target().features(read).double().numpy()  # (24, 32)
    pixels = (2 * read - 1).flatten(1).double().numpy()
    mean, expected = features.mean(0), pixels.mean(0)
    covariance = np.cov(features.T, bias=True)
    penalty = PENALTY * np.diag(covariance).mean()
    slope = np.linalg.solve(
        covariance + penalty * np.eye(len(mean)), (features - mean).T @ (pixels - expected) / len(read)
    )
    assert generator.weight.detach().numpy() == pytest.approx(slope.T, abs=1e-3 * np.abs(slope).max())
    assert generator.center.numpy() == pytest.approx(mean, abs=1e-5)
    middle = generator.decode(generator.center).detach().numpy()
    assert middle == pytest.approx(expected, abs=1e-4)
    drawn = generator.factor @ generator.factor.T
    assert drawn.numpy() == pytest.approx(covariance + penalty * np.eye(len(mean)), rel=1e-3, abs=1e-6)
    assert float(generator.moments[-1, -1]) == len(read)


def test_an_image_comes_back_from_its_features() -> None:
    # More features than images, and hardly a penalty: an image is learned by heart.
    prior, target = tiny_prior("ridge", penalty=1e-6), tiny_target()
    images = Pictures().images[:2]
    generator: Any = prior.build(SIDE, target)
    prior.solve(generator, target, (images, torch.zeros(2)), TrainDraws(0, 0, 2, images))
    with torch.no_grad():
        again = generator.decode(target.features(images)).view_as(images)
    assert again == pytest.approx(2 * images - 1, abs=0.01)


def test_it_is_as_wide_as_the_features(tmp_path: Path) -> None:
    generator = train("ridge", tmp_path)
    assert generator.latent_dim == tiny_target().features(torch.zeros(1, 3, SIDE, SIDE)).shape[1]
    again = load_generator(str(tmp_path))
    latents = again.sample_latents(3, named_rng(1, "test")).float()
    with torch.no_grad():
        images = again(latents)
        assert torch.equal(images, generator(latents))
    assert 0 <= images.min() <= images.max() <= 1
