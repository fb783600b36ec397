"""SFMI against a literal loop, written out image by image."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from calor_hf.attacks import ATTACKS
from calor_hf.attacks.auto import Auto, AutoConfig
from calor_hf.attacks.sfmi import schedule
from calor_hf.core.seeding import named_rng
from tests.attacks.tiny_world import SIDE, tiny_generator, tiny_target

LABELS, EACH, STEPS = [0, 3], 2, 5


def gamma(t: float) -> float:
    """The paper's schedule."""
    if t < 0.1:
        return 0.3 * t / 0.1
    if t <= 0.3:
        return 0.3
    return 0.3 * (1 + math.cos(math.pi * (t - 0.3) / 0.4)) / 2 if t < 0.7 else 0.0


def steered(target: Any, generator: Any, x: Tensor, t: float, label: int) -> Tensor:
    x = x.detach().requires_grad_(True)
    clean = generator.network(x[None], torch.tensor([1000 * t], dtype=x.dtype)).sample[0]
    logits = target.module(soft(clean)[None]).logits[0]
    margin = max(logits[other] for other in range(len(logits)) if other != label) - logits[label]
    (g,) = torch.autograd.grad(margin, x)
    v = ((clean - x) / (1 - t)).detach()
    guided: Tensor = v - gamma(t) * g / g.norm() * v.norm()
    return guided


def soft(data: Tensor) -> Tensor:
    """In [0, 1], with the gradient of what lies outside."""
    images = (data + 1) / 2
    return images + (images.clamp(0, 1) - images).detach()


def test_the_path_is_that_of_a_literal_loop() -> None:
    target, generator = tiny_target(), tiny_generator("flow")
    kind = ATTACKS.get("sfmi")
    found = kind(kind.configure(steps=STEPS)).run(target, generator, LABELS, images_per_class=EACH)
    expected = []
    for label in LABELS:
        for restart in range(EACH):
            noise = named_rng(0, "attacks/starts", label, restart).standard_normal(3 * SIDE**2)
            x = torch.from_numpy(noise).view(3, SIDE, SIDE)
            for step in range(STEPS):
                t, after = step / STEPS, (step + 1) / STEPS
                v = steered(target, generator, x, t, label)
                if step + 1 < STEPS:
                    v = (v + steered(target, generator, x + v / STEPS, after, label)) / 2
                x = (x + v / STEPS).detach()
            expected.append(x)
    ends = torch.stack(expected)
    torch.testing.assert_close(found.latents, ends.flatten(1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.images, ((ends + 1) / 2).clamp(0, 1).to(found.images))
    # Times 0 and .8 need no target, as γ is 0 there: .2, .4 and .6 are looked at twice, and the ends once.
    rows = len(LABELS) * EACH
    assert found.cost.target_gradients == 6 * rows
    assert found.cost.target_passes == 7 * rows
    assert found.cost.generator_passes == (2 * STEPS - 1) * rows + rows


def test_the_schedule_is_the_papers() -> None:
    found = [0.3 * schedule(t) for t in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.69, 0.7, 0.9)]
    assert found == pytest.approx([0, 0.15, 0.3, 0.3, 0.3, 0.15, gamma(0.69), 0, 0])


def test_the_target_agrees_more_than_with_unguided_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    target, generator = tiny_target(), tiny_generator("flow")
    # An untrained network ends at the same image from everywhere.
    monkeypatch.setattr(type(generator), "denoise", lambda self, points, time: points / 2)
    head: Any = target.head
    with torch.no_grad():
        head.classifier.weight *= 20
    kind = ATTACKS.get("sfmi")
    little, much = (
        kind(kind.configure(steps=10, guidance=guidance)).run(target, generator, LABELS, images_per_class=4)
        for guidance in (1e-6, 0.3)
    )
    assert much.scores.mean() > little.scores.mean() + 0.01


def test_other_priors_are_refused_and_left_out_by_auto() -> None:
    kind = ATTACKS.get("sfmi")
    with pytest.raises(ValueError, match=r"expected the generator flow or diffusers, got 'dcgan'; train one with"):
        kind(kind.configure()).run(tiny_target(), tiny_generator("dcgan"), LABELS)
    auto, target = Auto(AutoConfig()), tiny_target()
    assert "sfmi-adaptive" not in auto.parts(target, tiny_generator("dcgan"))
    assert "sfmi-adaptive" in auto.parts(target, tiny_generator("flow"))


def test_the_adaptive_preset_is_adaptive() -> None:
    kind = ATTACKS.get("sfmi")
    attack = kind(kind.configure(preset="adaptive"))
    assert attack.adaptive_to(tiny_target("calor", rank=3))
    assert attack.adaptive_to(tiny_target("mid", beta=1.0, sample_at_eval=True))
    assert not attack.adaptive_to(tiny_target())
