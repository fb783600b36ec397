"""Averaged gradients, aimed confidences and shared draws, against literal ones."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.gmi import GMI, GMIConfig
from calor_hf.attacks.ppa import PPA, PPAConfig
from calor_hf.attacks.smoothing import copier, smoothed
from calor_hf.core.seeding import named_rng
from calor_hf.targets.identity_losses import aimed_cross_entropy, poincare_distance
from tests.attacks.tiny_world import tiny_attack, tiny_generator, tiny_target

SEED = 5


def batch_of(rows: int = 2) -> Batch:
    return Batch.of([1, 4], rows, SEED, torch.empty(0, dtype=torch.float64))


@pytest.mark.parametrize("smoothing", ["noise", "views"])
def test_smoothed_gradient_is_the_mean_of_the_copies_gradients(smoothing: str) -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    latents = torch.randn(4, generator.latent_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(target(images), batch_of().labels, reduction="none")

    z = latents.clone().requires_grad_(True)
    value = smoothed(loss, generator(z), copier(smoothing, 0.06, batch_of()), 3)
    (found,) = torch.autograd.grad((100 * value).sum(), z)

    copy = copier(smoothing, 0.06, batch_of())  # the same numbers once more
    gradients, values = [], []
    for _ in range(3):
        z = latents.clone().requires_grad_(True)
        one = loss(copy(generator(z)))
        values.append(one.detach())
        gradients.append(torch.autograd.grad((100 * one).sum(), z)[0])
    assert torch.allclose(found, torch.stack(gradients).mean(0), rtol=1e-9, atol=1e-12)
    assert torch.allclose(value, torch.stack(values).mean(0), rtol=1e-12)
    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-3)


def test_noise_has_its_size_and_belongs_to_the_row() -> None:
    images = torch.full((4, 3, 16, 16), 0.5, dtype=torch.float64)
    noise = (copier("noise", 0.06, batch_of())(images) - images) / 0.06
    count = 3 * 16 * 16
    expected = named_rng(SEED, "attacks/smoothing/noise", "optimize", count, 4, 1).standard_normal(count)
    assert torch.allclose(noise[3].flatten(), torch.from_numpy(expected))
    assert noise.std().item() == pytest.approx(1, abs=0.05)


def test_samples_are_the_mean_over_a_stochastic_targets_noise() -> None:
    target = tiny_target("mid", beta=1.0, sample_at_eval=True)
    head: Any = target.head
    attack = GMI(GMIConfig(samples=3))
    seen, batch = AttackedTarget(target), batch_of(1)
    seen.batch = batch
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    value = attack._identity(seen, images, batch)
    (found,) = torch.autograd.grad(value.sum(), images)

    rngs = [named_rng(SEED, "attacks/head-noise", "optimize", head.width, label, 0) for label in (1, 4)]
    rows = [rng.standard_normal((32, head.width)) for rng in rngs]
    total: Any = 0
    for draw in range(3):
        mean, log_std = head.encode(target.features(images))
        code = mean + log_std.exp() * torch.from_numpy(np.stack([row[draw] for row in rows]))
        total = total + F.cross_entropy(head.decoder(code), batch.labels, reduction="none") / 3
    assert torch.allclose(value, total, rtol=1e-9)
    assert torch.allclose(found, torch.autograd.grad(total.sum(), images)[0], rtol=1e-9, atol=1e-15)


def test_noise_is_left_out_by_who_has_the_weights() -> None:
    noisy, generator = tiny_target("mid", beta=1.0, sample_at_eval=True), tiny_generator("dcgan")
    quiet = tiny_target("mid", beta=1.0, sample_at_eval=False)
    assert noisy.stochastic
    assert not quiet.stochastic
    settings: dict[str, Any] = {"steps": 3, "noise": "mean", "initial_candidates": 20}
    found, expected = (tiny_attack("gmi", **settings).run(target, generator, [1, 2]) for target in (noisy, quiet))
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.scores, expected.scores)
    assert tiny_attack("gmi", noise="mean").adaptive_to(noisy)
    assert not tiny_attack("gmi", noise="mean").adaptive_to(quiet)
    assert not tiny_attack("gmi").adaptive_to(noisy)


def test_copies_cost_target_passes_and_no_generator_passes() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    plain = tiny_attack("gmi", steps=4).run(target, generator, [0, 2], images_per_class=3).cost
    copies = tiny_attack("gmi", steps=4, smoothing="noise", samples=5).run(
        target, generator, [0, 2], images_per_class=3
    )
    assert copies.cost.generator_passes == plain.generator_passes == 4 * 6 + 6
    assert (plain.target_gradients, copies.cost.target_gradients) == (24, 5 * 24)
    assert copies.cost.target_passes == 5 * 24 + 6


def test_one_sample_without_smoothing_is_the_plain_attack() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    plain = tiny_attack("gmi").run(target, generator, [2])
    same = tiny_attack("gmi", samples=2).run(target, generator, [2])  # a target without noise: the copies are equal
    assert torch.allclose(plain.latents, same.latents, atol=1e-9)


def test_aimed_cross_entropy_by_hand() -> None:
    # p = (4/5, 3/20, 1/20): at the aim 0.8 nothing is left, although the others have unequal shares.
    logits = torch.tensor([[math.log(16.0), math.log(3.0), 0.0]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0])
    value = aimed_cross_entropy(logits, label, 0.8)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.item() == pytest.approx(0, abs=1e-24)
    assert gradient.abs().max() < 1e-12
    (less,) = torch.autograd.grad(aimed_cross_entropy(logits, label, 0.5).sum(), logits)
    # Twice the difference, ln 0.5 - ln 0.8, times the gradient of cross-entropy, p minus (1, 0, 0).
    twice = 2 * (math.log(0.5) - math.log(0.8))
    assert less[0].tolist() == pytest.approx([-0.2 * twice, 0.15 * twice, 0.05 * twice])


def test_aim_and_temperature_of_an_attack() -> None:
    logits = torch.tensor([[2 * math.log(8.0), 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    attack = GMI(GMIConfig(temperature=2.0, aim=0.8))
    (gradient,) = torch.autograd.grad(attack.identity_loss(logits, torch.tensor([0])).sum(), logits)
    assert gradient.abs().max() < 1e-12
    cold = GMI(GMIConfig(temperature=2.0)).identity_loss(logits, torch.tensor([0]))
    assert cold.item() == pytest.approx(-math.log(0.8))


def test_settings_that_cannot_work() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"aim": 0.8, "objective": "poincare"}, "aim must be"),
        ({"aim": 0.0}, "aim must be"),
        ({"aim": 1.1}, "aim must be"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"samples": 0}, "samples must be >= 1"),
        ({"smoothing_sigma": 0.0}, "smoothing_sigma must be > 0"),
        ({"smoothing": "blur"}, "unknown smoothing 'blur'; pass one of none, noise, views"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            GMIConfig(**settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_poincare_is_finite_at_the_edges(dtype: torch.dtype) -> None:
    rows = [
        [1e4, -1e4, 1e4, -1e4], [0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0], [-1e4, 0.0, 0.0, 0.0],
        [1e4, 1e-4, 1e-4, 1e-4], [1e-30, 0.0, 0.0, 0.0], [0.0, 1e4, 0.0, 0.0], [1e4, 1e4, 1e4, 1e4],
    ]  # fmt: skip
    logits = torch.tensor(rows, dtype=dtype, requires_grad=True)
    distance = poincare_distance(logits, torch.zeros(len(rows), dtype=torch.int64))
    (gradient,) = torch.autograd.grad(distance.sum(), logits)
    assert distance.isfinite().all()
    assert gradient.isfinite().all()
    assert distance.argmin() in (2, 4)


def test_shared_draws_are_the_seeds_alone() -> None:
    like = torch.empty(0, dtype=torch.float64)
    few, many = Batch.of([3], 1, SEED, like), Batch.of([0, 3], 2, SEED, like)
    for _ in range(2):  # every call gives the next ones
        shared, others = few.uniform("tests/views", 8, shared=True), many.uniform("tests/views", 8, shared=True)
        assert torch.equal(others, shared.expand(4, 8))
        own = many.uniform("tests/views", 8)
        assert torch.equal(own[2], few.uniform("tests/views", 8)[0])
        assert not torch.equal(own[0], own[1])
        assert not torch.equal(own[2], shared[0])
    again = Batch.of([3], 1, SEED, like).uniform("tests/views", 8, shared=True)
    assert not torch.equal(again, shared)
    assert not torch.equal(Batch.of([3], 1, SEED + 1, like).uniform("tests/views", 8, shared=True), again)


@pytest.mark.parametrize("shared", [True, False])
def test_crops_are_shared_where_the_source_shares_them(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    draw = Batch.uniform

    def note(self: Batch, *args: Any, **options: Any) -> Tensor:
        drawn.append(draw(self, *args, **options))
        return drawn[-1]

    monkeypatch.setattr(Batch, "uniform", note)
    config = PPAConfig(steps=2, initial_candidates=0, restarts=1, shared_views=shared)
    PPA(config).run(tiny_target(), tiny_generator("dcgan"), [0, 1], images_per_class=2)
    assert len(drawn) == 2
    assert all((len(numbers.unique(dim=0)) == 1) == shared for numbers in drawn)
