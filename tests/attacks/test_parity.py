"""The inner loops against independent, literal ones: same generator, target and starts, no augmentation, float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.attacks import ATTACKS, smoothing
from calor_hf.attacks.plg import PLG
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.seeding import named_rng
from calor_hf.data.random_views import RandomView
from tests.attacks.tiny_world import tiny_generator, tiny_target

LABELS, EACH, STEPS = [0, 3], 3, 20


def discriminator(generator: Any) -> Any:
    return generator.discriminator


def starts(latent_dim: int) -> Tensor:
    """Starts of the attacks: a stream for every (class, restart)."""
    rngs = [named_rng(0, "attacks/starts", label, restart) for label in LABELS for restart in range(EACH)]
    return torch.stack([torch.from_numpy(rng.standard_normal(latent_dim)) for rng in rngs])


def test_gmi_follows_heavy_ball_descent() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    kind = ATTACKS.get("gmi")
    config = kind.configure(preset="calor", steps=STEPS, reference_batch=6)
    found = kind(config).run(target, generator, LABELS, images_per_class=EACH)

    y = torch.tensor(LABELS).repeat_interleave(EACH)
    z = starts(generator.latent_dim)
    velocity = torch.zeros_like(z)
    for _ in range(STEPS):
        z.requires_grad_(True)
        image = generator(z)
        mean_loss = -discriminator(generator)(image).mean() + 100 * F.cross_entropy(target.module(image).logits, y)
        (gradient,) = torch.autograd.grad(mean_loss, z)
        velocity = 0.9 * velocity + gradient
        z = z.detach() - 0.02 * velocity
    assert (found.latents - z).abs().max() < 1e-8
    assert (found.latents - starts(generator.latent_dim)).abs().max() > 1e-3


def test_gmi_by_default_is_the_authors_update() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    kind = ATTACKS.get("gmi")
    found = kind(kind.configure(steps=STEPS, reference_batch=6)).run(target, generator, LABELS, images_per_class=EACH)

    y = torch.tensor(LABELS).repeat_interleave(EACH)
    z = starts(generator.latent_dim)
    v = torch.zeros_like(z)
    for _ in range(STEPS):
        z.requires_grad_(True)
        image = generator(z)
        loss = -discriminator(generator)(image).mean() + 100 * F.cross_entropy(target.module(image).logits, y)
        (gradient,) = torch.autograd.grad(loss, z)
        before = v.clone()
        v = 0.9 * v - 0.02 * gradient
        z = z.detach() + (-0.9 * before + 1.9 * v)
        z = z.clamp(-1, 1)
    assert (found.latents - z).abs().max() < 1e-8
    assert found.latents.abs().max() == 1


def test_plg_follows_adam_on_the_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    target, generator = tiny_target(), tiny_generator("conditional")
    unchanged = RandomView((1.0, 1.0), brightness=0, contrast=0, flip_probability=0, degrees=0)
    monkeypatch.setattr(smoothing, "VIEW", unchanged)
    kind = ATTACKS.get("plg")
    found = kind(kind.configure(steps=STEPS)).run(target, generator, LABELS, images_per_class=EACH)

    y = torch.tensor(LABELS).repeat_interleave(EACH)
    z = starts(generator.latent_dim)
    m, s = torch.zeros_like(z), torch.zeros_like(z)
    for t in range(1, STEPS + 1):
        gradient = torch.zeros_like(z)
        for row in range(len(z)):  # one image at a time: nothing is shared
            one = z[row : row + 1].clone().requires_grad_(True)
            total: Any = 0
            for _ in range(2):
                logits = target.module(generator(one, y[row : row + 1])).logits[0]
                others = torch.cat([logits[: y[row]], logits[y[row] + 1 :]])
                total = total - logits[y[row]] + others.max()
            (gradient[row],) = torch.autograd.grad(total, one)
        m = 0.9 * m + 0.1 * gradient
        s = 0.999 * s + 0.001 * gradient**2
        z = z - 0.1 * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
    assert (found.latents - z).abs().max() < 1e-8


def test_ked_follows_adam_on_mean_and_variance() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan of ked")
    kind = ATTACKS.get("ked")
    found = kind(kind.configure(steps=STEPS)).run(target, generator, [3], images_per_class=2)

    dim = generator.latent_dim
    # Noise: blocks of 32 draws from the class's stream; the two final images have streams of their own.
    noise = torch.from_numpy(named_rng(0, "attacks/ked/latents", "optimize", dim, 3, 0).standard_normal((32, dim)))
    mean, log_variance = torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)
    parts = torch.stack([mean, log_variance])
    m, s = torch.zeros_like(parts), torch.zeros_like(parts)
    for t in range(1, STEPS + 1):
        parts.requires_grad_(True)
        image = generator((parts[0] + (0.5 * parts[1]).exp() * noise[t - 1])[None])
        evidence = discriminator(generator)(image)[1].exp().sum().log()
        loss = F.softplus(evidence) - evidence + 100 * F.cross_entropy(target.module(image).logits, torch.tensor([3]))
        (gradient,) = torch.autograd.grad(loss, parts)
        parts = parts.detach()
        m = 0.9 * m + 0.1 * gradient
        s = 0.999 * s + 0.001 * gradient**2
        parts = parts - 0.02 * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-8)
    rngs = [named_rng(0, "attacks/ked/latents", "finish", dim, 3, image) for image in range(2)]
    last = [torch.from_numpy(rng.standard_normal((32, dim)))[0] for rng in rngs]
    expected = torch.stack([parts[0] + (0.5 * parts[1]).exp() * e for e in last])
    assert (found.latents - expected).abs().max() < 1e-8


def test_lomma_objective_by_hand() -> None:
    """100 · (mean over target and student of −logit, plus the mean squared distance of features), no prior here."""
    from calor_hf.attacks.batch import Batch
    from calor_hf.attacks.lomma import LOMMA, LOMMAConfig

    target, student = tiny_target(), tiny_target("calor", rank=2)
    attack = LOMMA(LOMMAConfig(students=("one",), feature_weight=0.5))
    mean = torch.full((16,), 0.25, dtype=torch.float64)
    attack._prepared = [student], mean, torch.zeros(16, dtype=torch.float64)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    batch = Batch.of([1, 4], 1, 0, images.new_empty(0))
    got = attack.config.identity_weight * attack.identity(target, images, batch)
    for row, label in enumerate((1, 4)):
        logit = (target(images)[row, label] + student(images)[row, label]) / 2
        distance = ((target.features(images)[row] - 0.25) ** 2).sum() / 16
        assert got[row].item() == pytest.approx(100 * (-logit.item() + 0.5 * distance.item()), rel=1e-9)


@pytest.mark.parametrize(
    ("lr", "expected"), [(0.02, [0.04, 0.04 / 2**0.25, 0.04 / 2**0.5, 0.04 / 2**0.75]), (0.25, [0.25] * 4)]
)
def test_a_budget_takes_fewer_steps_that_start_larger(lr: float, expected: list[float]) -> None:
    rates: list[float] = []

    class Watched(PLG):
        def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
            made = super().optimizer(variables)
            made.register_step_pre_hook(lambda *_: rates.append(made.param_groups[0]["lr"]))
            return made

    def of(**settings: Any) -> list[float]:
        rates.clear()
        config = replace(PLG.configure(views=1, lr=lr, **settings), steps=4)
        Watched(config).run(tiny_target(), tiny_generator("dcgan"), [1])
        return list(rates)

    # A quarter of the steps: those that do not reach a standard deviation start at twice the rate, and fall to it.
    assert of(budget=0.25) == pytest.approx(expected)
    assert of() == of(budget=2) == of(budget=0.25, steps=4) == [lr] * 4  # steps that are given are at the source's rate
    assert PLG.configure(budget=0.25).steps == 150
    assert (parse_attack("plg", budget=0.25).effort, parse_attack("plg", budget=0.25).changed) == (0.25, ())
