"""PPA, Mirror and IF-GMI against independent, literal computations."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import lsq_linear
from torch import Tensor

from calor_hf.attacks import ATTACKS
from calor_hf.attacks._p_space import bounds
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.if_gmi import IFGMI, IFConfig, authors_size, onto_l1_ball
from calor_hf.attacks.mirror import Mirror, MirrorConfig
from calor_hf.attacks.ppa import PPA, PPAConfig
from calor_hf.core.seeding import named_rng
from tests.attacks.test_parity import EACH, LABELS, STEPS, starts
from tests.attacks.tiny_world import SIDE, tiny_generator, tiny_target
from tests.generators.test_stylegan2 import small


def crop(image: Tensor, numbers: Any, low: float) -> Tensor:
    """A square of area ``low`` to 1, enlarged by bilinear interpolation, pixel by pixel."""
    side = math.sqrt(low + (1 - low) * numbers[0])
    grid = torch.zeros(1, SIDE, SIDE, 2, dtype=torch.float64)
    for i in range(SIDE):
        for j in range(SIDE):
            for axis, (pixel, place) in enumerate(((j, numbers[1]), (i, numbers[2]))):
                grid[0, i, j, axis] = side * ((2 * pixel + 1) / SIDE - 1) + (1 - side) * (2 * place - 1)
    return F.grid_sample(image, grid, align_corners=False)


def test_ppa_follows_adam_on_the_poincare_distance_of_crops() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    kind = ATTACKS.get("ppa")
    config = kind.configure(steps=STEPS, initial_candidates=0, restarts=1, milestones=(12,))
    found = kind(config).run(target, generator, LABELS, images_per_class=EACH)

    y = torch.tensor(LABELS).repeat_interleave(EACH)
    numbers = named_rng(0, "attacks/ppa/views", "optimize", 8, "shared").random(
        (32, 8)
    )  # one draw per step for all images
    z = starts(generator.latent_dim)
    m, s = torch.zeros_like(z), torch.zeros_like(z)
    for t in range(1, STEPS + 1):
        gradient = torch.zeros_like(z)
        for row in range(len(z)):
            one = z[row : row + 1].clone().requires_grad_(True)
            logits = target.module(crop(generator(one), numbers[t - 1], 0.9)).logits[0]
            u = logits / logits.abs().sum()
            v = torch.zeros_like(u)
            v[y[row]] = 0.9999
            delta = 2 * ((u - v) ** 2).sum() / ((1 - (u**2).sum()) * (1 - (v**2).sum()))
            (gradient[row],) = torch.autograd.grad(torch.log(1 + delta + torch.sqrt((1 + delta) ** 2 - 1)), one)
        m = 0.1 * m + 0.9 * gradient
        s = 0.1 * s + 0.9 * gradient**2
        lr = (0.005 if t <= 12 else 0.0005) / 0.22  # styles of truncation 0.5 deviate by 0.22, these latents by 1
        z = z - lr * (m / (1 - 0.1**t)) / ((s / (1 - 0.1**t)).sqrt() + 1e-8)
    assert (found.latents - z).abs().max() < 1e-8
    assert (found.latents - starts(generator.latent_dim)).abs().max() > 0.05


def test_ppa_starts_from_what_is_scored_high_with_its_mirror_image() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    config = PPAConfig(steps=1, lr=1e-12, initial_candidates=300, restarts=1)
    parts = [PPA(config).run(target, generator, [3, 1, 0], images_per_class=2, chunk_size=c) for c in (2, 100)]
    pool = generator.sample_latents(300, named_rng(0, "attacks/starts/pool"))
    with torch.no_grad():
        images = generator(pool)
        scores = (target(images).softmax(1) + target(images.flip(3)).softmax(1)) / 2
    for found in parts:
        for label in (0, 1, 3):
            best = pool[scores[:, label].topk(2).indices]
            assert torch.allclose(found.latents[found.labels == label], best, atol=1e-9)
        # The pool is made once and looked at twice, for all classes of all chunks.
        assert found.cost.generator_passes == 300 + 6 + 6
        assert found.cost.target_passes == 2 * 300 + 6 + 6


def test_a_generator_of_classes_makes_a_pool_for_each() -> None:
    target, generator = tiny_target(), tiny_generator("conditional")
    config = PPAConfig(steps=1, lr=1e-12, initial_candidates=40, restarts=1)
    found = PPA(config).run(target, generator, [3, 1], images_per_class=2)
    pool = generator.sample_latents(40, named_rng(0, "attacks/starts/pool"))
    for label in (1, 3):
        with torch.no_grad():
            images = generator(pool, torch.full((40,), label))
            score = target(images).softmax(1)[:, label] + target(images.flip(3)).softmax(1)[:, label]
        assert torch.allclose(found.latents[found.labels == label], pool[score.topk(2).indices], atol=1e-9)
    assert found.cost.generator_passes == 2 * 40 + 4 + 4


def test_ppa_keeps_what_most_views_are_taken_for() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    with torch.no_grad():
        head: Any = target.head
        head.classifier.weight *= 20
    options: dict[str, Any] = {"steps": 3, "initial_candidates": 0, "shared_views": False, "final_views": 4}
    every = PPA(PPAConfig(restarts=1, **options)).run(target, generator, [1, 4], images_per_class=6)
    kept = PPA(PPAConfig(restarts=3, **options)).run(target, generator, [1, 4], images_per_class=2)
    differs = False
    for label in (1, 4):
        mine = every.images[every.labels == label]
        scores = torch.zeros(6, dtype=torch.float64)
        for row in range(6):
            rng = named_rng(0, "attacks/ppa/final-views", "finish", 9, label, row)
            numbers = torch.from_numpy(rng.random((32, 9)))
            for draw in range(4):
                view = PPA.final_view(mine[row : row + 1], numbers[draw : draw + 1])
                scores[row] += target(view).softmax(1)[0, label].item()
        best = scores.topk(2).indices.sort().values
        assert torch.equal(kept.images[kept.labels == label], mine[best])
        plain = every.scores[every.labels == label].topk(2).indices.sort().values
        differs |= not torch.equal(best, plain)
    assert differs  # otherwise the views chose nothing


def test_mirrors_schedule_by_hand() -> None:
    attack = Mirror(MirrorConfig(steps=100))
    # The authors count steps from 1.
    expected = {1: 0.2, 2: 0.4, 5: 1, 50: 1, 75: 1, 90: 0.5 - 0.5 * math.cos(0.4 * math.pi), 95: 0.0954915, 100: 0}
    assert {step: attack.rate(step - 1, 100) for step in expected} == pytest.approx(expected, abs=1e-7)
    calor: Any = Mirror(Mirror.configure(preset="calor"))
    assert {calor.rate(step, 70) for step in range(70)} == {1.0}


@pytest.mark.parametrize("prior", ["stylegan2", "dcgan"])
def test_mirrors_box_against_numpy_and_a_bounded_solver(prior: str) -> None:
    generator: Any = tiny_generator(prior)
    attack = Mirror(MirrorConfig(bound_samples=200, bound_width=0.7))
    rng = named_rng(7, "attacks/mirror/box", 0)
    if prior == "stylegan2":
        samples = generator.mapping(torch.from_numpy(rng.standard_normal((200, 6)))).detach().numpy()
    else:
        samples = rng.standard_normal((200, generator.latent_dim))
    slope = 5.0 if prior == "stylegan2" else 1.0
    points = np.where(samples < 0, slope * samples, samples)
    sides = [points.mean(0) + sign * 0.7 * points.std(0) for sign in (-1, 1)]
    low, high = (np.where(side < 0, side / slope, side) for side in sides)
    start = 2 * torch.randn(3, generator.latent_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch.of([0], 3, 7, start.new_empty(0))
    project = attack.projection(generator, start, batch, 0)
    assert project is not None
    moved = start.clone()
    project(moved)
    for row in range(3):
        nearest = lsq_linear(np.eye(len(low)), start[row].numpy(), bounds=(low, high), tol=1e-14).x
        assert np.abs(moved[row].numpy() - nearest).max() < 1e-6
    assert not torch.equal(moved, start)
    assert attack.projection(generator, start, batch, 0) is not None
    assert Mirror(MirrorConfig(bound_width=0.0)).projection(generator, start, batch, 0) is None


def test_mirror_truncates_eight_layers_in_every_pass() -> None:
    generator: Any = small(image_size=64, width=2, max_channels=4)
    attack, target = Mirror(MirrorConfig(steps=1, lr=1e-12, initial_candidates=0, bound_width=0.0)), tiny_target()
    found = attack.run(target, generator, [1], images_per_class=2)
    z = [named_rng(0, "attacks/starts", 1, restart).standard_normal((1, generator.config.z_dim)) for restart in (0, 1)]
    w = generator.mapping(torch.from_numpy(np.concatenate(z)))
    assert torch.allclose(found.latents, w, atol=1e-9)  # not truncated
    styles = w[:, None].repeat(1, 10, 1)
    styles[:, :8] = generator.mapping.w_avg + 0.7 * (styles[:, :8] - generator.mapping.w_avg)
    assert torch.allclose(found.images, generator(styles), atol=1e-6)
    plain = Mirror(MirrorConfig(steps=1, lr=1e-12, initial_candidates=0, bound_width=0.0, truncation=None))
    assert torch.equal(plain.view(generator)(w), generator(w))
    assert torch.allclose(
        plain.run(target, generator, [1], images_per_class=2).images,
        generator(generator.mapping.w_avg.lerp(w, generator.config.truncation)),
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", ["ppa", "mirror"])
def test_steps_are_in_units_of_the_latents(kind: str) -> None:
    """The first step of Adam is the rate; it is the source's in the space of the official networks alone."""
    share = 0.5 if kind == "ppa" else 1.0
    official: Any = small(official=True, truncation=0.5)
    own = small(truncation=0.5)
    z = named_rng(0, "generators/stylegan2/deviation").standard_normal((1000, own.config.z_dim))
    spread = share * own.mapping(torch.from_numpy(z)).var(dim=0).mean().sqrt().item()
    settings: dict[str, Any] = {"steps": 1, "initial_candidates": 0, "lr": 0.003, "keep": "last"}
    settings |= {"bound_width": 0.0, "warm_up": 0.0, "ramp_down": 0.0} if kind == "mirror" else {"restarts": 1}
    attack: Any = ATTACKS.get(kind)(ATTACKS.get(kind).configure(**settings))
    whole = 0.44 * share  # deviation of the official networks
    for generator, unit in ((official, 1), (own, spread / whole), (tiny_generator("dcgan"), 1 / whole)):
        start = attack.view(generator).sample_latents(1, named_rng(0, "attacks/starts", 2, 0))
        moved = attack.run(tiny_target(), generator, [2], images_per_class=1).latents - start
        assert moved.abs().median().item() == pytest.approx(0.003 * unit, rel=1e-3)


def test_mirror_stays_in_its_box() -> None:
    target, generator = tiny_target(), tiny_generator("stylegan2")
    attack = Mirror(MirrorConfig(steps=10, lr=50.0, initial_candidates=0, bound_samples=200, keep="last"))
    box = bounds(generator, 200, 0, torch.empty(0, dtype=torch.float64))
    low, high = box.low, box.high
    found = attack.run(target, generator, [0, 1], images_per_class=2)
    assert ((found.latents >= low - 1e-12) & (found.latents <= high + 1e-12)).all()
    assert torch.isclose(found.latents, low).any()
    assert torch.isclose(found.latents, high).any()


def test_l1_ball_against_a_bisection() -> None:
    draw = torch.Generator().manual_seed(1)
    points = torch.randn(20, 30, dtype=torch.float64, generator=draw) * torch.rand(20, 1, generator=draw) * 3
    points[0] = 0
    points[1, 3:] = 0
    for radius in (0.5, 5.0, 40.0):
        found = onto_l1_ball(points, radius)
        for row in range(len(points)):
            sizes, low, high = points[row].abs(), 0.0, float(points[row].abs().max())
            if sizes.sum() <= radius:
                assert torch.equal(found[row], points[row])
                continue
            for _ in range(80):
                theta = (low + high) / 2
                low, high = (theta, high) if (sizes - theta).clamp_min(0).sum() > radius else (low, theta)
            expected = points[row].sign() * (sizes - high).clamp_min(0)
            assert (found[row] - expected).abs().max() < 1e-6
            assert found[row].abs().sum().item() == pytest.approx(radius)


def test_radii_are_scaled_by_the_number_of_elements() -> None:
    # The authors' network: 512 maps up to 64 pixels, then 256 of 128 and 128 of 256.
    assert [authors_size(k) for k in (1, 2, 5, 6, 7)] == [512 * 16, 512 * 64, 512 * 64**2, 256 * 128**2, 128 * 256**2]
    generator = tiny_generator("stylegan2")
    attack, batch = IFGMI(IFConfig(radius=0.001)), Batch.of([0], 2, 0, torch.empty(0, dtype=torch.float64))
    channels, height, width = generator.hidden_shape(1)
    size = channels * height * width
    start = torch.randn(2, 8 + size + 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    project = attack.projection(generator, start, batch, 1)
    assert project is not None
    moved = start + 1
    project(moved)
    change = (moved - start).abs()
    assert change[:, :8].sum(1).tolist() == pytest.approx([2 * 8 / 512] * 2)
    assert change[:, 8 : 8 + size].sum(1).tolist() == pytest.approx([2 * size / 8192] * 2)
    assert torch.equal(moved[:, 8 + size :], start[:, 8 + size :] + 1)  # nothing moves what is painted, nor brings back
    assert IFGMI(IFConfig(radius=0.0)).projection(generator, start, batch, 1) is None


@pytest.mark.parametrize("prior", ["stylegan2", "conditional", "dcgan"])
def test_stages_go_on_where_the_one_before_ended(prior: str) -> None:
    """Where nothing moves, blocks one by one make the generator's image, unless the painted part is dropped."""
    target, generator = tiny_target(), tiny_generator(prior)
    still: dict[str, Any] = {"lr": 1e-15, "steps": 2, "later_steps": 1, "initial_candidates": 0}
    for carry in (True, False):
        found = IFGMI(IFConfig(carry_skip=carry, **still)).run(target, generator, [2, 3], images_per_class=2)
        whole = generator(found.latents, found.labels)
        same = torch.allclose(found.images, whole, atol=1e-6)
        assert same == (carry or prior != "stylegan2")


def test_maps_move_in_later_stages_and_steps_are_counted() -> None:
    target, generator = tiny_target(), tiny_generator("conditional")
    told: list[tuple[int, int]] = []
    attack = IFGMI(IFConfig(steps=30, later_steps=25, initial_candidates=0, lr=0.05))
    assert generator.num_blocks == 3  # of 4, 8 and 16 pixels: the last is not entered by a map of ours
    found = attack.run(
        target, generator, [2], images_per_class=2, callback=lambda _, done, steps, __: told.append((done, steps))
    )
    assert told == [(25, 55), (50, 55), (55, 55)]
    assert not torch.allclose(found.images, generator(found.latents, found.labels), atol=1e-3)
    first = IFGMI(IFConfig(steps=30, most_stages=1, initial_candidates=0, lr=0.05)).run(
        target, generator, [2], images_per_class=2
    )
    assert torch.allclose(first.latents, found.latents, atol=1e-9)  # later blocks of this generator read no latents
    assert (found.scores > first.scores).all()
    assert found.cost.generator_passes == 2 * 55 + 2


def test_generators_that_cannot_be_taken_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'renderer' cannot be taken apart; pass one of stylegan2"):
        IFGMI(IFConfig()).run(tiny_target(), tiny_generator("renderer"), [0])


def test_settings() -> None:
    assert PPAConfig.parse(["milestones=30,40", "beta1=0.5"]) == {"milestones": (30, 40), "beta1": 0.5}
    demo = PPA.configure(budget="demo", preset="calor")
    assert (demo.steps, demo.initial_candidates, demo.final_views) == (5, 250, 5)
    assert PPA.configure(budget=0.2, preset="calor", milestones=(30, 40)).milestones == (30, 40)
    assert PPAConfig(milestones=(30, 40)).scaled(0.2).milestones == (6, 8)
    assert Mirror.configure(budget="demo").initial_candidates == 5000
    assert IFGMI.configure(budget=0.5).later_steps == 5
    calor = IFGMI(IFGMI.configure(preset="calor"))
    assert list(calor.stages(tiny_generator("stylegan2"))) == [70, 25]
    assert list(calor.stages(tiny_generator("dcgan"))) == [70]
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (PPAConfig, {"crop": 0.0}, "crop"),
        (PPAConfig, {"beta1": 1.0}, "beta1"),
        (PPAConfig, {"final_views": -1}, "final_views"),
        (PPAConfig, {"milestones": (0,)}, "milestones"),
        (MirrorConfig, {"p_space": "maybe"}, "one of auto, on, off"),
        (MirrorConfig, {"bound_samples": 1}, "bound_samples"),
        (MirrorConfig, {"warm_up": 2.0}, "warm_up"),
        (IFConfig, {"later_steps": 0}, "later_steps"),
        (IFConfig, {"radius": -1.0}, "radius"),
        (IFConfig, {"crop": 2.0}, "crop"),
    ]
    for kind, settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            kind(**settings)
