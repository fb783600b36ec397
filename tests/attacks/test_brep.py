"""BREP-MI on a plane where the region of a class is known, against a literal loop of its own."""

import logging
import math
from typing import Any

import pytest
import torch

from calor_hf.attacks import ATTACKS
from calor_hf.core.seeding import named_rng
from tests.attacks.plane import disc, divided, run

X, Y, RADIUS = 0.6, -0.3, 1.0


def brep(**settings: Any) -> Any:
    kind = ATTACKS.get("brep")
    preset = settings.pop("preset", "original")
    return kind(kind.configure(preset=preset, **settings))


def inside(point: list[float]) -> bool:
    return math.dist(point, [X, Y]) < RADIUS


def pool(seed: int, clip: float) -> list[list[float]]:
    """The first samples of the prior, within bounds."""
    numbers = named_rng(seed, "attacks/queries/pool", 0).standard_normal((256, 2)).tolist()
    return [[min(clip, max(-clip, value)) for value in row] for row in numbers]


def authors(
    start: list[float], restart: int, config: Any, seed: int = 0
) -> tuple[list[float], list[float], float, int, int]:
    """The authors' loop, one start, one point at a time; the answers are signs."""
    rng = named_rng(seed, "attacks/brep/directions", "optimize", 2 * config.directions, 1, restart)
    z, kept, radius = start, start, config.radius
    moves = refusals = growths = queries = 0
    while moves < config.iterations and refusals < config.most_refusals and growths < config.most_growths:
        step = min(radius / 3, 3)
        offsets, signs = [], []
        for u, v in rng.standard_normal((config.directions, 2)).tolist():
            offsets.append([radius * u / math.hypot(u, v), radius * v / math.hypot(u, v)])
            signs.append(1 if inside([z[0] + offsets[-1][0], z[1] + offsets[-1][1]]) else -1)
            queries += 1
        grew = sum(signs) > config.grow_above * config.directions
        radius *= 1.3 if grew else 1
        push = [
            sum((sign - 1) / 2 * offset[axis] for sign, offset in zip(signs, offsets, strict=True))
            / config.directions
            / radius
            for axis in (0, 1)
        ]
        goal = [min(1.5, max(-1.5, z[axis] + step * push[axis])) for axis in (0, 1)]
        queries += 1
        growths += grew
        moves = 0 if grew else moves
        if not inside(goal):
            refusals += 1
            continue
        z, refusals = goal, 0
        if grew:
            kept = z
        else:
            moves += 1
    return kept, z, radius, growths, queries


def test_the_loop_is_the_authors() -> None:
    attack = brep(radius=0.3, iterations=30, directions=16, search=256)
    found = run(attack, disc(X, Y, RADIUS), [1], images_per_class=3)
    starts = [point for point in pool(0, 1.5) if inside(point)][:3]
    expected = [authors(start, restart, attack.config) for restart, start in enumerate(starts)]
    assert found.latents.tolist() == pytest.approx([pytest.approx(kept, abs=1e-9) for kept, *_ in expected])
    # The pool is asked in blocks; each finished image once more.
    assert found.cost.target_passes == 256 + sum(queries for *_, queries in expected) + 3
    assert found.scores.tolist() == [1, 1, 1]
    for start, (kept, last, radius, growths, _) in zip(starts, expected, strict=True):
        assert radius == pytest.approx(0.3 * 1.3**growths)
        assert growths >= 2
        assert 0.5 < radius < 1.5  # the disc's is 1
        assert math.dist(kept, [X, Y]) < max(0.35, math.dist(start, [X, Y]) - 0.2)
        assert last != kept


def test_one_move_by_hand() -> None:
    # Four points at distance 3; the two on the right are outside. Mean of the answers 0: no growth; a step of 1.
    # Repulsion: mean(-1 · u / 3) over the two = -(1, 0) / 4 - (0, 1) / 4.
    centers, radii = torch.tensor([[1.0, 1.0]]), torch.tensor([3.0])
    offsets = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]]])
    answers = torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    goal, radius, grew = brep().step(centers, radii, offsets, answers)
    assert goal.tolist() == [[0.75, 0.75]]
    assert (radius.tolist(), grew.tolist()) == ([3.0], [False])
    # With attraction the two on the left pull as well; nothing bounds it.
    goal, *_ = brep(preset="calor").step(centers, radii, offsets, answers)
    assert goal.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("preset", "outside", "grows"),
    [("original", 4, False), ("original", 3, True), ("calor", 8, False), ("calor", 7, True)],
)
def test_when_the_sphere_grows(preset: str, outside: int, grows: bool) -> None:
    # Of 32 points: above 0.75 in the mean of ±1 is 29 inside, above 0.5 is 25.
    offsets = torch.zeros(1, 32, 2).index_fill(2, torch.tensor([0]), 6.0)
    answers = torch.ones(1, 32)
    answers[0, :outside] = -1
    attack = brep(preset=preset, clip=None)
    goal, radius, grew = attack.step(torch.zeros(1, 2), torch.tensor([6.0]), offsets, answers)
    assert grew.tolist() == [grows]
    assert radius.item() == pytest.approx(7.8 if grows else 6.0)
    # Step 2; the authors divide by the radius that has grown already.
    push = -outside / 32 if preset == "original" else (32 - 2 * outside) / 32
    shrunk = 1.3 if grows and preset == "original" else 1
    assert goal[0, 0].item() == pytest.approx(2 * push / shrunk)
    long = attack.step(torch.zeros(1, 2), torch.tensor([90.0]), 15 * offsets, answers)[0]
    assert long[0, 0].item() == pytest.approx(1.5 * goal[0, 0].item())  # 3, not 30


def test_mibench_makes_every_move_and_keeps_the_last() -> None:
    found = run(
        brep(preset="calor", iterations=10, directions=8, radius=0.5), disc(X, Y, RADIUS), [1], images_per_class=2
    )
    assert found.cost.target_passes == 256 + 2 * (10 * 8 + 1)
    assert all(math.dist(point, [X, Y]) < 0.7 for point in found.latents.tolist())


def test_a_class_that_is_never_answered_is_handed_over_as_it_was_drawn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "calor_hf"):
        found = run(brep(search=300, iterations=2, directions=4), disc(X, Y, RADIUS), [1, 2], images_per_class=2)
    assert "answers 1 of 2 classes for none of 300 samples of the prior, such as class 2" in caplog.text
    assert found.scores.tolist() == [1, 1, 0, 0]
    assert found.latents[2:].tolist() == pytest.approx([pytest.approx(point) for point in pool(0, 1.5)[:2]])
    asked = run(brep(search=300), disc(X, Y, RADIUS), [2], images_per_class=2).cost.target_passes
    assert asked == 300 + 2


def test_starts_are_the_first_hits_of_a_pool_that_all_classes_share() -> None:
    target = disc(X, Y, RADIUS)
    attack = brep(fixed=True, iterations=1, accept=False, directions=2, keep="growth", grow_above=0.999, radius=40.0)
    found = run(attack, target, [0, 1], images_per_class=3)
    topk_correct = [[point for point in pool(0, 1.5) if inside(point) == label][:3] for label in (False, True)]
    # Nothing but class 0 lies 40 away, where the sphere grows; class 1 stays where it began.
    assert found.latents[3:].tolist() == pytest.approx([pytest.approx(point) for point in topk_correct[1]])
    assert found.cost.target_passes == 256 + 6 * (2 + 1)  # one search


def test_fewer_hits_than_images_are_used_again() -> None:
    topk_correct = [point for point in pool(0, 1.5) if math.dist(point, [X, Y]) < 0.02]
    radius = 0.02
    while len(topk_correct) != 1:
        radius *= 1.1 if not topk_correct else 0.95
        topk_correct = [point for point in pool(0, 1.5) if math.dist(point, [X, Y]) < radius]
    attack = brep(search=256, iterations=3, directions=4, radius=radius / 2, keep="last")
    found = run(attack, disc(X, Y, radius), [1], images_per_class=3)
    assert found.scores.tolist() == [1, 1, 1]
    assert len({tuple(point) for point in found.latents.tolist()}) > 1  # each with its own directions


def test_refused_moves_and_growth_have_an_end() -> None:
    start = next(point for point in pool(0, 1.5) if math.hypot(*point) < 0.5)  # far from the bounds
    tiny = disc(start[0], start[1], 1e-3)
    found = run(brep(search=256, directions=4, most_refusals=7), tiny, [1], images_per_class=1)
    assert found.latents.tolist() == pytest.approx([pytest.approx(start)])
    assert found.cost.target_passes == 256 + 7 * 5 + 1
    everywhere = divided(lambda points: torch.tensor([[0.0, 1.0]], dtype=points.dtype).expand(len(points), 2), 2)
    found = run(brep(directions=4, most_growths=9), everywhere, [1], images_per_class=1)
    assert found.cost.target_passes == 256 + 9 * 5 + 1


def test_progress_ends_where_it_should() -> None:
    told: list[tuple[int, int, float]] = []
    attack = brep(radius=0.3, iterations=60, directions=8)
    run(attack, disc(X, Y, RADIUS), [1], images_per_class=2, callback=lambda _, *rest: told.append(rest))
    steps = [step for step, *_ in told]
    assert steps == sorted(steps)
    assert told[-1] == (60, 60, 1.0)
    assert all(step < 60 and 0 <= share <= 1 for step, _, share in told[:-1])
    assert len(told) > 1


@pytest.mark.parametrize(
    "wrong", [{"directions": 0}, {"radius": 0}, {"growth": 1}, {"grow_above": 1}, {"keep": "best"}, {"search": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        brep(**wrong)
