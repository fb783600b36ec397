"""Mirror's genetic algorithm: its draws by hand, its box, and a hill that it climbs."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from calor_hf.attacks import ATTACKS
from calor_hf.attacks._p_space import Box, bounds, from_p, has_p_space, to_p
from calor_hf.attacks.mirror_blackbox import cross, parents, with_elite
from calor_hf.core.seeding import named_rng
from tests.attacks.plane import Plane, hill, run
from tests.attacks.tiny_world import tiny_generator


def mirror(**settings: Any) -> Any:
    kind = ATTACKS.get("mirror_blackbox")
    return kind(kind.configure(**settings))


EVENLY = (torch.arange(1000) + 0.5).double() / 1000


def test_parents_are_drawn_in_proportion_to_their_scores() -> None:
    drawn = parents(torch.tensor([0.02, 0.0, 0.04, 0.14]), EVENLY)
    assert drawn.bincount(minlength=4).tolist() == [100, 0, 200, 700]
    assert parents(torch.zeros(4), EVENLY).bincount().tolist() == [250] * 4  # no one is better than the others
    assert parents(torch.tensor([1.0, 0.0]), torch.tensor([1 - 1e-15, 0.0], dtype=torch.float64)).tolist() == [0, 0]


@pytest.mark.parametrize(("first", "second", "share"), [(0.3, 0.1, 0.75), (0.0, 0.2, 0.0), (0.2, 0, 1.0), (0, 0, 0.5)])
def test_children_take_after_the_better_parent(first: float, second: float, share: float) -> None:
    ones, zeros = torch.ones(1, 1000).double(), torch.zeros(1, 1000).double()
    scores = torch.tensor([first]).double(), torch.tensor([second]).double()
    assert cross(ones, zeros, *scores, EVENLY[None]).mean().item() == pytest.approx(share)


@pytest.mark.parametrize("curved", [False, True])
def test_a_generation_by_hand(curved: bool) -> None:
    attack = mirror(population=5, candidates=5, mutation=0.4, mutation_size=0.5)
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 3)))
    scores = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05]).double()
    box = Box(*(torch.full((3,), value, dtype=torch.float64) for value in (-0.8, 1.1, 2.0)))
    got = attack.children(latents, scores, box, curved, named_rng(1, "tests/children"))

    rng = named_rng(1, "tests/children")
    pairs, crossing, mutating, change = rng.random((2, 4)), rng.random((4, 3)), rng.random((4, 3)), rng.random(3)
    edges = [0.1, 0.5, 0.7, 0.95, 1.0]
    for child in range(4):
        a, b = (next(i for i, edge in enumerate(edges) if number < edge) for number in pairs[:, child])
        p, q = float(scores[a]), float(scores[b])
        for k in range(3):
            value = float(latents[a if crossing[child, k] < p / (p + q) else b, k])
            if mutating[child, k] < 0.4:
                point = value * 5 if curved and value < 0 else value
                point += 0.5 * 2.0 * (2 * change[k] - 1)
                value = point * 0.2 if curved and point < 0 else point
            assert float(got[child, k]) == pytest.approx(min(1.1, max(-0.8, value)), abs=1e-12)


def test_the_elite_lives_on() -> None:
    latents, scores = torch.arange(3.0)[:, None], torch.tensor([0.1, 0.9, 0.3])
    after, now = with_elite(latents, scores, torch.tensor([[7.0], [8.0]]), torch.tensor([0.2, 0.4]))
    assert after.flatten().tolist() == [1, 7, 8]
    assert now.tolist() == pytest.approx([0.9, 0.2, 0.4])


def test_p_space_there_and_back() -> None:
    w = torch.tensor([-2.0, -0.1, 0.0, 3.0])
    assert to_p(w).tolist() == pytest.approx([-10.0, -0.5, 0.0, 3.0])
    assert torch.allclose(from_p(to_p(w)), w)


@pytest.mark.parametrize("p_space", [True, False])
def test_bounds_are_mean_and_deviation(p_space: bool) -> None:
    box = bounds(Plane(), 300, 4, torch.empty(0, dtype=torch.float64), p_space, width=2.0)
    drawn = [
        named_rng(4, "attacks/mirror/box", start).standard_normal((count, 2)) for start, count in ((0, 256), (256, 44))
    ]
    points = np.concatenate(drawn)
    if p_space:
        points = np.where(points < 0, 5 * points, points)
    edges = [points.mean(0) - 2 * points.std(0), points.mean(0) + 2 * points.std(0)]
    if p_space:
        edges = [np.where(edge < 0, edge / 5, edge) for edge in edges]
    assert np.allclose([box.low, box.high, box.std], [*edges, points.std(0)])
    assert box.clip(torch.full((1, 2), 99.0).double()).tolist() == [box.high.tolist()]


def test_p_space_belongs_to_stylegans() -> None:
    assert [has_p_space(Plane(), choice) for choice in ("auto", "on", "off")] == [False, True, False]
    styled = tiny_generator("stylegan2")
    assert [has_p_space(styled, choice) for choice in ("auto", "on", "off")] == [True, True, False]


def test_it_climbs_and_counts() -> None:
    settings = {"population": 20, "candidates": 100, "bound_samples": 1000, "enough": 1.0, "bound_width": 3.0}
    target = hill(1.5, -1.0, sharpness=4.0)
    first, later = (run(mirror(generations=count, **settings), target, [1, 0], images_per_class=3) for count in (1, 25))
    assert later.scores[3:].min() > first.scores[3:].max()
    assert all(math.dist(point, [1.5, -1.0]) < 0.15 for point in later.latents[3:].tolist())
    # The samples are everybody's, and one of them is class 0 beyond doubt.
    assert later.cost.target_passes == 100 + 25 * 19
    assert later.scores[3:].tolist() == sorted(later.scores[3:].tolist(), reverse=True)


def test_good_enough_is_the_end() -> None:
    settings = {"population": 20, "candidates": 100, "bound_samples": 100, "generations": 50}
    found = run(mirror(enough=0.5, **settings), hill(0, 0), [1], images_per_class=1)
    assert found.cost.target_passes == 100
    told: list[Any] = []
    run(mirror(enough=2.0, **settings), hill(0, 0), [1], callback=lambda *a: told.append(a[1:3]))
    assert told == [(step, 50) for step in range(5, 51, 5)]


def test_the_first_generation_is_the_best_of_the_samples() -> None:
    target = hill(0.5, 0.5)
    found = run(mirror(population=6, candidates=300, bound_samples=2, enough=0.0), target, [1], images_per_class=6)
    rngs = [named_rng(0, "attacks/queries/pool", block) for block in (0, 1)]
    pool = np.concatenate([rng.standard_normal((256, 2)) for rng in rngs])
    nearest = sorted(pool[:300].tolist(), key=lambda point: math.dist(point, [0.5, 0.5]))[:6]
    assert found.latents.tolist() == pytest.approx([pytest.approx(point) for point in nearest])


def test_more_images_than_the_population_are_refused() -> None:
    with pytest.raises(ValueError, match="population of 4, got images_per_class 5; raise population"):
        run(mirror(population=4, candidates=10), hill(0, 0), [1], images_per_class=5)


def test_samples_are_of_the_class_where_the_generator_knows_it() -> None:
    from tests.attacks.tiny_world import tiny_target

    found = mirror(population=4, candidates=30, bound_samples=10, generations=2, enough=1.0).run(
        tiny_target(), tiny_generator("conditional"), [0, 3], images_per_class=1
    )
    assert found.cost.target_passes == 2 * 30 + 2 * 2 * 3


@pytest.mark.parametrize(
    "wrong", [{"population": 1}, {"candidates": 9}, {"mutation": 1.1}, {"p_space": "yes"}, {"bound_width": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        mirror(**wrong)
