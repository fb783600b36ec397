"""Faults, and their messages."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.attacks import ATTACKS, GradientAttack
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.targets.module_target import ModuleTarget
from tests.attacks.tiny_world import (
    CLASSES,
    SIDE,
    STEPS,
    VARIANTS,
    prior_of,
    ready,
    tiny_attack,
    tiny_generator,
    tiny_target,
)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "no classes"), ([0, 5], r"0 to 4, got \[5\]"), ([-1], r"got \[-1\]"), ([2, 2], "every class once")],
)
def test_classes_are_checked(labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_attack("gmi").run(tiny_target(), tiny_generator("dcgan"), labels)


def test_sizes_and_class_counts_have_to_fit() -> None:
    plain = ModuleTarget(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), 5, 32)
    generator = tiny_generator("dcgan", torch.float32)
    with pytest.raises(ValueError, match="16 x 16 pixels, the target reads 32 x 32 and does not resize"):
        tiny_attack("gmi").run(plain, generator, [0])
    resizing = ModuleTarget(plain.module, 5, 32, resize=True)
    assert tiny_attack("gmi").run(resizing, generator, [0]).images.shape == (5, 3, SIDE, SIDE)
    wide = ModuleTarget(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 16, 5)), 5, (32, 16), resize=True)
    with pytest.raises(ValueError, match="square"):
        tiny_attack("gmi").run(wide, generator, [0])
    seven = ModuleTarget(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 7)), 7, SIDE)
    with pytest.raises(ValueError, match="trained for 5 classes, the target has 7"):
        tiny_attack("plg").run(seven, tiny_generator("conditional", torch.float32), [0])
    wrong = ModuleTarget(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 7)), 6, SIDE)
    with pytest.raises(ValueError, match=r"shape \(2, 6\) from the target, got \(2, 7\)"):
        tiny_attack("gmi").run(wrong, generator, [0])
    with pytest.raises(ValueError, match="images_per_class"):
        tiny_attack("gmi").run(resizing, generator, [0], images_per_class=0)
    with pytest.raises(ValueError, match="at least the 5 starts"):
        tiny_attack("gmi", initial_candidates=3).run(resizing, generator, [0])
    with pytest.raises(ValueError, match="call prepare"):
        tiny_attack("lomma").run(tiny_target(), tiny_generator("dcgan"), [0])


class Breaking(nn.Module):
    """Gives NaN from its n-th pass on."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE * SIDE, CLASSES)
        self.good = good

    def forward(self, x: Tensor) -> Tensor:
        self.good -= 1
        y: Tensor = self.linear(x.flatten(1))
        return y * (1 if self.good >= 0 else float("nan"))


@pytest.mark.parametrize(
    ("good", "message"), [(0, "ordinary image"), (5, "attacking class 1"), (STEPS + 1, "attacking class 1")]
)
def test_a_target_that_returns_nan(good: int, message: str) -> None:
    target = ModuleTarget(Breaking(good), CLASSES, SIDE)
    with pytest.raises(FloatingPointError, match=message):
        tiny_attack("gmi").run(target, tiny_generator("dcgan", torch.float32), [1])


class Hungry(nn.Module):
    """Out of memory with more than ``room`` images."""

    def __init__(self, room: int, error: BaseException) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * SIDE * SIDE, CLASSES, dtype=torch.float64)
        self.room, self.error = room, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error
        y: Tensor = self.linear(x.flatten(1))
        return y


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_target_that_returns_nan_in_the_middle(variant: str, tmp_path: Path) -> None:
    module = Breaking(10**6)
    target, generator = ModuleTarget(module, CLASSES, SIDE), prior_of(variant).to(torch.float32)
    attack = ready(variant, target, generator, tmp_path)
    module.good = 1  # the trial before all work
    with pytest.raises(FloatingPointError, match=r"the target's scores .*became NaN or infinite"):
        attack.run(target, generator, [1])


ERRORS: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "host"])
def test_out_of_memory_halves_the_chunk_and_goes_on(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    module = Hungry(100, error)
    target, generator = ModuleTarget(module, CLASSES, SIDE), tiny_generator("dcgan")
    expected = tiny_attack("plg").run(target, generator, range(5), images_per_class=2)
    module.room = 2
    chunks: list[Reconstruction] = []
    with caplog.at_level(logging.WARNING, "calor_hf"):
        found = tiny_attack("plg").run(target, generator, range(5), images_per_class=2, on_chunk=chunks.append)
    assert [record.message for record in caplog.records] == [
        "out of memory with 5 classes at a time; going on with 2",
        "out of memory with 2 classes at a time; going on with 1",
    ]
    assert [chunk.labels.unique().tolist() for chunk in chunks] == [[0], [1], [2], [3], [4]]
    assert torch.allclose(found.images, expected.images, atol=1e-8)


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "host"])
@pytest.mark.parametrize("name", ["brep", "rlb", "mirror_blackbox"])
def test_queries_are_split_where_memory_runs_out(
    name: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    module = Hungry(1000, error)
    target, generator = ModuleTarget(module, CLASSES, SIDE), tiny_generator("dcgan")
    expected = tiny_attack(name).run(target, generator, [0, 3], images_per_class=2)
    module.room = 3
    with caplog.at_level(logging.WARNING, "calor_hf"):
        found = tiny_attack(name).run(target, generator, [0, 3], images_per_class=2)
    assert "images at a time; going on with" in caplog.text
    assert torch.allclose(found.images, expected.images, atol=1e-8)
    assert found.cost.target_passes == expected.cost.target_passes  # what failed was not answered


@pytest.mark.parametrize("prior", ["dcgan", "conditional"])
def test_a_pool_that_a_failed_chunk_scored_is_counted_with_the_next(prior: str) -> None:
    module = Hungry(256, MemoryError())
    target, generator = ModuleTarget(module, CLASSES, SIDE), tiny_generator(prior)
    attack = tiny_attack("ppa", initial_candidates=20, restarts=1, steps=3)
    expected = attack.run(target, generator, range(5), images_per_class=10, chunk_size=10)
    module.room = 20  # the pool fits, fifty rows do not
    found = attack.run(target, generator, range(5), images_per_class=10)
    for name in ("generator_passes", "target_passes", "target_gradients"):
        assert getattr(found.cost, name) == getattr(expected.cost, name), name
    assert torch.allclose(found.images, expected.images, atol=1e-8)


def test_one_class_that_does_not_fit_is_an_error() -> None:
    target = ModuleTarget(Hungry(2, MemoryError()), CLASSES, SIDE)
    with pytest.raises(MemoryError, match=r"one class at a time \(3 images\)"):
        tiny_attack("gmi").run(target, tiny_generator("dcgan"), [0], images_per_class=3)


def test_other_errors_are_not_taken_for_memory() -> None:
    target = ModuleTarget(Hungry(2, RuntimeError("shapes")), CLASSES, SIDE)
    with pytest.raises(RuntimeError, match="shapes"):
        tiny_attack("gmi").run(target, tiny_generator("dcgan"), [0], images_per_class=3)


def test_progress_tells_the_targets_view() -> None:
    told: list[tuple[list[int], int, int, float]] = []
    target, generator = tiny_target(), tiny_generator("dcgan")
    attack = tiny_attack("gmi", steps=60)
    attack.run(
        target,
        generator,
        [0, 1, 2],
        images_per_class=2,
        chunk_size=4,
        callback=lambda *a: told.append((list(a[0]), *a[1:])),
    )
    assert [entry[:3] for entry in told] == [(c, s, 60) for c in ([0, 1], [2]) for s in (25, 50, 60)]
    assert all(0 <= entry[3] <= 1 for entry in told)


def test_selection_keeps_what_the_target_prefers() -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    every = tiny_attack("gmi").run(target, generator, [0, 1], images_per_class=6)
    best = tiny_attack("gmi", restarts=3).run(target, generator, [0, 1], images_per_class=2)
    for label in (0, 1):
        scores = every.scores[every.labels == label].sort(descending=True).values
        assert best.scores[best.labels == label].sort(descending=True).values.tolist() == scores[:2].tolist()


def test_best_is_the_best_on_the_way() -> None:
    """With steps that overshoot, the latents with the lowest loss are what is kept, image by image."""
    target, generator = tiny_target(), tiny_generator("dcgan")
    options = {"views": 0, "objective": "ce", "lr": 30.0, "steps": 20}
    path = []
    for steps in range(1, 20):
        found = tiny_attack("plg", **{**options, "steps": steps}).run(target, generator, [0])
        path.append(torch.nn.functional.cross_entropy(target(found.images), found.labels, reduction="none").detach())
    kept = tiny_attack("plg", **options, keep="best").run(target, generator, [0])
    losses = torch.nn.functional.cross_entropy(target(kept.images), kept.labels, reduction="none").detach()
    lowest = torch.stack(path).amin(0)
    assert (losses <= lowest + 1e-9).all()
    assert (losses < path[-1] - 1e-6).any()


def test_attack_is_told_apart_from_the_loop() -> None:
    """No attack writes a loop of its own."""
    for name in ATTACKS.names():
        kind: Any = ATTACKS.get(name)
        if issubclass(kind, GradientAttack):
            assert kind.attack is GradientAttack.attack
            assert kind.run is GradientAttack.run


def test_chosen_starts_are_the_targets_favorites(tmp_path: Path) -> None:
    from calor_hf.core.seeding import named_rng

    target, generator = tiny_target(), tiny_generator("dcgan")
    found = tiny_attack("plg", initial_candidates=30, lr=1e-12, steps=1).run(target, generator, [3], images_per_class=2)
    pool = generator.sample_latents(30, named_rng(0, "attacks/starts/pool"))
    with torch.no_grad():
        order = target(generator(pool)).softmax(1)[:, 3].argsort(descending=True)
    assert torch.allclose(found.latents, pool[order[:2].sort().values], atol=1e-9) or torch.allclose(
        found.latents, pool[order[:2]], atol=1e-9
    )
