"""The prior StyleGAN2: its losses written out, its penalty with a known slope, and the mean of weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.generators import load_generator
from calor_hf.priors.base import TrainDraws
from calor_hf.priors.stylegan2 import StyleGAN2PriorConfig, StyleGAN2PriorTraining
from tests.priors.small_prior import BATCH, SIDE, Pictures, assert_same_weights, tiny_prior, train
from tests.priors.test_losses import SEED, STEP, World, values


def softplus(value: float) -> float:
    return math.log(1 + math.exp(value))


def fakes(world: World, draws: TrainDraws) -> tuple[Tensor, Tensor]:
    """Styles, and images of styles that change at a layer drawn for each, with noise drawn for each layer."""
    generator = world.generator
    with torch.no_grad():
        first, second = generator.mapping(draws.normal(6)), generator.mapping(draws.normal(6))
        chance = draws.uniform(2).tolist()
        noise = draws.normal(16 + 2 * 64 + 2 * 256)
        images = []
        for row, (mixed, place) in enumerate(chance):
            layers = generator.synthesis.num_styles
            change = 1 + math.floor(place * (layers - 1)) if mixed < 0.9 else layers
            styles = torch.stack([first[row] if layer < change else second[row] for layer in range(layers)])
            maps, start = [], 0
            for side in (4, 8, 8, 16, 16):
                maps.append(noise[row, start : start + side**2].view(1, 1, side, side))
                start += side**2
            images.append(generator.synthesis(styles[None], maps)[1])
    return first, torch.cat(images)


def evaluated(world: World, images: Tensor) -> list[float]:
    found: list[float] = world.generator.discriminator(images, 4).tolist()
    return found


def test_discriminator() -> None:
    world = World("stylegan2")
    draws = world.draws()
    mirrored = draws.uniform(1).squeeze(1) < 0.5
    assert 0 < mirrored.sum() < BATCH
    real = torch.stack([im.flip(2) if m else im for im, m in zip(2 * world.images - 1, mirrored, strict=True)])
    _, fake = fakes(world, draws)
    expected = {
        "real": sum(softplus(-value) for value in evaluated(world, real)) / BATCH,
        "fake": sum(softplus(value) for value in evaluated(world, fake)) / BATCH,
    }
    terms = values(world.discriminator_loss())
    assert {name: terms[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_generator() -> None:
    world = World("stylegan2")
    before = world.generator.mapping.w_avg.clone()
    styles, fake = fakes(world, world.draws())
    expected = sum(softplus(-value) for value in evaluated(world, fake)) / BATCH
    assert values(world.generator_loss()) == pytest.approx({"adversarial": expected}, rel=1e-6)
    torch.testing.assert_close(world.generator.mapping.w_avg, 0.995 * before + 0.005 * styles.mean(dim=0))


class Linear(nn.Module):
    """D(x) = slope · Σ x + 1."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return self.slope * images.sum(dim=(1, 2, 3)) + 1


@pytest.mark.parametrize(("gamma", "weight"), [(5.0, 5.0), (None, 0.0002 * SIDE**2 / BATCH)])
def test_penalty_of_a_linear_discriminator(gamma: float | None, weight: float) -> None:
    # |∇D|² = slope² · pixels: the term is γ/2 · interval · slope² · pixels, its slope γ · interval · slope · pixels.
    world = World("stylegan2")
    world.prior = tiny_prior("stylegan2", gamma=gamma, interval=STEP + 1)
    discriminator = Linear(0.3)
    world.generator.discriminator = discriminator
    term = world.discriminator_loss()["penalty"]
    pixels = 3 * SIDE * SIDE
    assert term.item() == pytest.approx(weight / 2 * (STEP + 1) * 0.3**2 * pixels)
    (slope,) = torch.autograd.grad(term, discriminator.slope)
    assert slope.item() == pytest.approx(weight * (STEP + 1) * 0.3 * pixels)


def test_the_penalty_comes_now_and_then() -> None:
    world = World("stylegan2")
    prior = tiny_prior("stylegan2", interval=4)
    real = world.images, world.labels
    found = [
        "penalty" in prior.discriminator_loss(world.generator, None, real, TrainDraws(SEED, step, BATCH, world.images))
        for step in range(9)
    ]
    assert [step + 1 for step, penalized in enumerate(found) if penalized] == [4, 8]


def test_neither_mixed_nor_mirrored() -> None:
    world = World("stylegan2")
    prior = tiny_prior("stylegan2", mixing=0.0, flip=False)
    real = world.images, world.labels
    terms = values(prior.discriminator_loss(world.generator, None, real, world.draws()))
    plain = sum(softplus(-value) for value in evaluated(world, 2 * world.images - 1)) / BATCH
    assert terms["real"] == pytest.approx(plain, rel=1e-6)
    assert isinstance(prior, StyleGAN2PriorTraining)
    styles, fake = prior._paint(world.generator, world.draws())
    draws = world.draws()
    assert torch.equal(styles, world.generator.mapping(draws.normal(6)))
    draws.normal(6)
    draws.uniform(2)
    maps = [part.view(BATCH, 1, side, side) for side, part in zip(
        (4, 8, 8, 16, 16), draws.normal(656).split([16, 64, 64, 256, 256], 1), strict=True)]  # fmt: skip
    torch.testing.assert_close(fake, world.generator.synthesis(styles, maps)[1])


def test_decay_of_the_mean() -> None:
    prior = tiny_prior("stylegan2", batch_size=10, ema_images=1000, ema_ramp=0.1)
    # After 50 images the half-life is 5 of them, a batch is two half-lives; in the end a batch is a hundredth of one.
    assert prior.mean_decay(5) == pytest.approx(0.25)
    assert prior.mean_decay(10**6) == pytest.approx(0.5**0.01)
    assert tiny_prior("gmi").mean_decay(5) is None


class Noted(StyleGAN2PriorTraining):
    """Keeps the weights of each step, and a mean that keeps a half, then three quarters, …"""

    def __init__(self, config: StyleGAN2PriorConfig) -> None:
        super().__init__(config)
        self.seen: dict[int, dict[str, Tensor]] = {}
        self.network: Any = None

    def build(self, image_size: int, target: Any) -> Any:
        self.network = super().build(image_size, target)
        self.note(0)
        return self.network

    def note(self, step: int) -> None:
        self.seen[step] = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def mean_decay(self, step: int) -> float:
        self.note(step)  # the first one is asked for before any update too
        return 1 - 0.5**step


def test_the_published_generator_is_the_mean_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_prior("stylegan2", steps=2).config
    made: list[Noted] = []

    def noted(*_: Any, **__: Any) -> Noted:
        made.append(Noted(config))
        return made[-1]

    monkeypatch.setattr("tests.priors.small_prior.tiny_prior", noted)
    published = train("stylegan2", tmp_path)
    start, one, two = (made[0].seen[step] for step in range(3))
    state = published.state_dict()
    for name, value in state.items():
        if name.startswith("discriminator.") or name in dict(published.named_buffers()):
            assert torch.equal(value, two[name]), name
        else:
            expected = 0.75 * (0.5 * start[name] + 0.5 * one[name]) + 0.25 * two[name]
            torch.testing.assert_close(value, expected)
    assert not torch.equal(state["mapping.fc0.weight"], two["mapping.fc0.weight"])
    assert_same_weights(load_generator(str(tmp_path)), published)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert torch.equal(checkpoint["generator"]["mapping.fc0.weight"], two["mapping.fc0.weight"])


def test_the_penalty_is_in_the_history(tmp_path: Path) -> None:
    train("stylegan2", tmp_path, save_steps=1)
    history = json.loads((tmp_path / "training.json").read_text())["history"]
    assert ["discriminator_penalty" in entry for entry in history] == [False, False, True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": 0}, "interval must be > 0, got 0"),
        ({"ema_images": 0}, "ema_images must be > 0"),
        ({"ema_ramp": math.nan}, "ema_ramp must be a finite number > 0"),
        ({"mixing": 1.5}, r"mixing must be in \[0, 1\], got 1.5"),
        ({"gamma": -1.0}, "gamma must be >= 0, got -1.0"),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_prior("stylegan2", **settings)


def test_pictures_and_networks_fit() -> None:
    generator: Any = tiny_prior("stylegan2").build(SIDE, None)
    assert generator.discriminator(Pictures()[0][None]).shape == (1,)
    assert (generator.config.z_dim, generator.config.w_dim, generator.config.width) == (6, 6, 8)
