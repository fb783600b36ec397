"""Contract of every attack with every generator."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.attacks import ATTACKS, Attack
from calor_hf.attacks.batch import AttackedTarget
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.generators import GENERATORS
from calor_hf.targets.base import LabelTarget, ScoreTarget
from calor_hf.targets.identity_losses import IDENTITY_LOSSES
from tests.attacks.tiny_world import (
    BLACK_BOX,
    CLASSES,
    PRIORS,
    SIDE,
    VARIANTS,
    WHITE_BOX,
    fits,
    length_of,
    prepared,
    prior_of,
    ready,
    short,
    tiny_generator,
    tiny_target,
)

CRITICAL = ("gmi", "ked", "lomma")
PLAIN = [variant for variant in VARIANTS if variant in ATTACKS.names()]


def _alike(name: str, prior: str) -> bool:
    """Whether an attack meets nothing in a prior that it does not meet in another one."""
    if name in BLACK_BOX:
        return prior not in ("dcgan", "conditional")
    return "discriminator" in PRIORS[prior][1] and name not in CRITICAL


# Every attack with every prior; variants, and the ensemble, with one that knows classes and one that does not. Whoever
# never asks the discriminator sees the plain dcgan in those that differ in it alone, and a black-box attack draws
# images from a prior without looking into it.
PAIRS = [
    pytest.param(variant, prior, marks=[pytest.mark.slow] * _alike(name, prior))
    for variant, (name, _) in VARIANTS.items()
    for prior in (PRIORS if variant in PLAIN and variant != "auto" else ("dcgan", "conditional"))
    if prior not in ("flow", "diffusers") or name in ("plg", "sfmi")  # noise is a latent like any other
    if fits(variant, prior)
]
LABELS = [4, 0]


def test_every_name_is_tried() -> None:
    assert {name for name, _ in VARIANTS.values()} == set(ATTACKS.names())
    assert {name for name, _ in PRIORS.values()} == set(GENERATORS.names())


@pytest.mark.parametrize(("variant", "prior"), PAIRS)
def test_result_depends_on_the_seed_and_not_on_the_grouping(variant: str, prior: str, tmp_path: Path) -> None:
    target, generator = tiny_target(), tiny_generator(prior)
    attack = ready(variant, target, generator, tmp_path, **short(variant, 3))
    options: dict[str, Any] = {"images_per_class": 2, "seed": 1}
    one = attack.run(target, generator, LABELS, chunk_size=1, **options)
    mixed = bool(attack.parts(target, generator))  # of an ensemble some may see labels alone
    check_shape(one, 2 * max(1, len(attack.parts(target, generator))), None if mixed else attack.access == "labels")
    assert_same(attack.run(target, generator, LABELS, chunk_size=3, **options), one)  # the last image is left over
    alone = attack.run(target, generator, [0], **options)
    assert torch.allclose(alone.images, one.images[one.labels == 0], atol=1e-8)
    other = attack.run(target, generator, [0], images_per_class=2, seed=2)
    assert not torch.allclose(other.images, alone.images, atol=1e-3)


# One of each family by default.
FAMILIES = ("gmi", "plg", "ppa", "if_gmi", "brep", "rlb", "mirror_blackbox")


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in VARIANTS]
)
def test_an_attack_twice_gives_the_same_bits(variant: str, tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        target, generator = tiny_target(dtype=torch.float32), prior_of(variant).float()
        attack = ready(variant, target, generator, folder)
        found.append(attack.run(target, generator, LABELS, images_per_class=2))
    for name in ("images", "labels", "latents", "scores"):
        assert torch.equal(*(getattr(one, name) for one in found)), name


def check_shape(found: Reconstruction, per_class: int, labels_alone: bool | None) -> None:
    """Classes in ascending order, images in [0, 1], scores that are the target's."""
    assert found.images.shape == (len(LABELS) * per_class, 3, SIDE, SIDE)
    assert found.labels.tolist() == [label for label in sorted(LABELS) for _ in range(per_class)]
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    own = tiny_target()(found.images.double()).softmax(1)
    if labels_alone is None:
        assert found.scores.isfinite().all()
    elif labels_alone:
        assert torch.equal(found.scores, (own.argmax(1) == found.labels).to(found.scores))
    else:
        assert torch.allclose(found.scores, own[range(len(own)), found.labels])
    assert found.cost.seconds > 0


def assert_same(a: Reconstruction, b: Reconstruction) -> None:
    for name in ("images", "labels", "latents", "scores"):
        assert torch.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-8), name
    assert a.cost.target_passes == b.cost.target_passes


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, marks=() if variant in FAMILIES else pytest.mark.slow)
        for variant in WHITE_BOX
        if variant in PLAIN
    ],
)
def test_the_objective_falls_and_the_target_agrees_more(variant: str, tmp_path: Path) -> None:
    target, generator = tiny_target(), tiny_generator("renderer" if fits(variant, "renderer") else "dcgan")
    sharpen(target)
    faster = {"lr": 0.1} if VARIANTS[variant][0] in ("ked", "lomma", "ppa", "if_gmi") else {}
    attack = ready(variant, target, generator, tmp_path, steps=40, **faster)
    start = ready(variant, target, generator, tmp_path, steps=1).run(target, generator, LABELS)
    end = attack.run(target, generator, LABELS)
    assert end.scores.mean() > start.scores.mean() + 0.02


def sharpen(target: Any) -> None:
    """Scores that differ visibly from image to image."""
    with torch.no_grad():
        target.head.classifier.weight *= 20


@pytest.mark.parametrize("variant", VARIANTS)
def test_target_and_generator_are_left_as_they_were(variant: str, tmp_path: Path) -> None:
    target, generator = tiny_target(), prior_of(variant, "dcgan of ked")
    attack = ready(variant, target, generator, tmp_path)
    target.module.train()
    list(generator.children())[-1].train()
    next(target.module.parameters()).requires_grad_(False)
    networks = (target.module, generator)
    before = [state_of(module) for module in networks]
    attack.run(target, generator, [1], images_per_class=2)
    after = [state_of(module) for module in networks]
    for old, new in zip(before, after, strict=True):
        assert old[1:] == new[1:]
        assert all(torch.equal(old[0][name], new[0][name]) for name in old[0])
    assert all(weight.grad is None for module in networks for weight in module.parameters())


def state_of(module: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[bool]]:
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return weights, [part.training for part in module.modules()], [w.requires_grad for w in module.parameters()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_other_network_runs(variant: str, tmp_path: Path) -> None:
    """An evaluation model, or anything else that lies about, is never asked."""
    target, generator = tiny_target(), prior_of(variant)
    attack = ready(variant, target, generator, tmp_path)
    head: Any = target.head
    own = [value for value in reachable(attack) if isinstance(value, nn.Module)]  # such as students
    known = {id(part) for module in (target.module, generator, head, *own) for part in module.modules()}
    strangers: list[str] = []

    def note(module: nn.Module, _: Any) -> None:
        if id(module) not in known and type(module).__name__ not in ("NoHead", "HeadSlot"):
            strangers.append(type(module).__name__)

    evaluation_model = nn.Linear(3, 3)
    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        attack.run(target, generator, [1], images_per_class=2)
        evaluation_model(torch.zeros(3))
    finally:
        handle.remove()
    assert strangers == ["Linear"]  # the evaluation model, asked by this test alone


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stochastic_target_is_drawn_by_image_and_step(variant: str, tmp_path: Path) -> None:
    target = tiny_target("mid", beta=1.0, sample_at_eval=True)
    assert target.stochastic
    generator = prior_of(variant)
    attack = ready(variant, target, generator, tmp_path, **short(variant, 3))
    images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    assert not torch.equal(target(images), target(images))
    one = attack.run(target, generator, [4, 2], chunk_size=1)
    assert torch.allclose(attack.run(target, generator, [4, 2]).images, one.images, atol=1e-8)
    alone = attack.run(target, generator, [2], seed=1)
    assert not torch.allclose(alone.images, one.images[one.labels == 2], atol=1e-3)


@pytest.mark.parametrize("variant", [variant for variant in WHITE_BOX if variant in PLAIN])
@pytest.mark.parametrize(
    ("objective", "gradient"),
    [(objective, "plain") for objective in IDENTITY_LOSSES]
    + [("ce", "straight_through"), ("logit", "straight_through")],
)
def test_every_objective_and_gradient(variant: str, objective: str, gradient: str, tmp_path: Path) -> None:
    target, generator = tiny_target("calor", rank=3), tiny_generator("dcgan")
    runs = []
    for choice in ({}, {"objective": objective, "gradient": gradient}):
        attack = ready(variant, target, generator, tmp_path, **choice, steps=3)
        runs.append(attack.run(target, generator, [1], images_per_class=2))
    assert runs[1].images.isfinite().all()
    default = ready(variant, target, generator, tmp_path).config
    if (objective, gradient) != (default.objective, default.gradient):
        assert not torch.equal(runs[0].latents, runs[1].latents)


@pytest.mark.parametrize("variant", WHITE_BOX)
def test_cost_is_what_was_spent(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, generator = tiny_target(), tiny_generator("dcgan" if fits(variant, "renderer") else "conditional")
    attack = ready(variant, target, generator, tmp_path)
    made: list[int] = []
    seen: list[int] = []
    features, run_blocks = AttackedTarget.features, type(generator).run_blocks

    def paint(self: Any, *args: Any, **options: Any) -> Any:
        hidden, image = run_blocks(self, *args, **options)
        made.append(0 if image is None else len(image))  # all images are made by the last block
        return hidden, image

    def count(self: AttackedTarget, images: Tensor) -> Tensor:
        seen.append(len(images))
        return features(self, images)

    monkeypatch.setattr(AttackedTarget, "features", count)
    monkeypatch.setattr(type(generator), "run_blocks", paint)
    found = attack.run(target, generator, [0, 3], images_per_class=2)
    assert found.cost.generator_passes == sum(made) - 2  # two images are tried first
    assert found.cost.target_passes == sum(seen)
    assert 0 < found.cost.target_gradients < found.cost.target_passes


@pytest.mark.parametrize("variant", BLACK_BOX)
@pytest.mark.parametrize("prior", ["dcgan", "conditional"])
def test_queries_are_what_the_target_was_asked(variant: str, prior: str, tmp_path: Path) -> None:
    target, generator = tiny_target(), tiny_generator(prior)
    seen: list[int] = []
    made: list[int] = []
    target.module.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    attack, spent = prepared(variant, target, generator, tmp_path)
    assert spent.target_passes == sum(seen)
    assert sum(seen) == 0 or type(attack).prepare is not Attack.prepare
    seen.clear()
    generator.register_forward_hook(lambda _m, inputs, _o: made.append(len(inputs[0])))
    found = attack.run(target, generator, [0, 3, 4], images_per_class=2, chunk_size=1)
    assert found.cost.target_passes == sum(seen) - 2  # two images are tried first
    assert found.cost.generator_passes == sum(made) - 2
    assert found.cost.target_gradients == 0
    assert found.cost.target_passes >= 6


@pytest.mark.parametrize("variant", BLACK_BOX)
def test_an_attack_is_handed_its_view_and_nothing_behind_it(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    kind, handed = ATTACKS.get(VARIANTS[variant][0]), list[Any]()
    for hook in ("check", "prepare", "explore", "attack"):
        intact = getattr(kind, hook)

        def note(self: Any, view: Any, *rest: Any, _intact: Any = intact) -> Any:
            handed.append(view)
            return _intact(self, view, *rest)

        monkeypatch.setattr(kind, hook, note)
    attack = ready(variant, target, generator, tmp_path)
    attack.run(target, generator, [0, 1], images_per_class=2)
    assert len(handed) == 4
    expected = LabelTarget if attack.access == "labels" else ScoreTarget
    answer = handed[0](torch.rand(2, 3, SIDE, SIDE))
    assert answer.dtype == (torch.int64 if attack.access == "labels" else torch.float64)
    hidden = {id(part) for part in target.module.modules()} | {id(target), id(target.head)}
    hidden |= {id(weight) for weight in target.module.parameters()}
    for root in (*handed, attack):
        assert root is attack or type(root) is expected
        assert not [value for value in reachable(root) if id(value) in hidden]


def reachable(root: Any) -> list[Any]:
    """Everything that attributes, items and modules lead to."""
    found: dict[int, Any] = {}
    rest = [root]
    while rest:
        value = rest.pop()
        if id(value) in found or isinstance(value, str | bytes | int | float | type):
            continue
        found[id(value)] = value
        rest += list(vars(value).values()) if hasattr(value, "__dict__") else []
        rest += list(value.values()) if isinstance(value, dict) else []
        rest += list(value) if isinstance(value, list | tuple | set) else []
        rest += [value.__self__] if hasattr(value, "__self__") else []
    return list(found.values())


def test_the_walk_would_find_a_network() -> None:
    target = tiny_target()
    seen = ScoreTarget(target)
    seen.leak = [{"a": target.features}]  # type: ignore[attr-defined]
    assert target.module in reachable(seen)
    assert any(weight is next(target.module.parameters()) for weight in reachable(seen))


@pytest.mark.parametrize("name", ATTACKS.names())
def test_settings_presets_and_budgets(name: str) -> None:
    kind = ATTACKS.get(name)
    length = length_of(kind)
    config = kind.configure()
    assert kind.config_class.from_dict(config.to_dict()) == config

    def made(**options: Any) -> int:
        return int(getattr(kind(kind.configure(**options)).config, length))

    assert made(budget="demo") == round(0.05 * made())
    assert made(budget=0.5) == made() // 2
    assert made(**{"budget": "demo", length: 7}) == 7
    assert made(budget=1e-9) == 1
    negative: dict[str, Any] = {length: -1}
    with pytest.raises(ValueError, match=length):
        kind.configure(**negative)
    calor = kind.configure(preset="calor")
    assert (calor != config) == ("calor" in kind.presets)
    for preset in kind.presets:
        assert kind.configure(preset=preset) != config
    for wrong in ({"preset": "calour"}, {"budget": "papr"}, {"budget": 0}, {"budget": -1}, {"stepps": 3}, {"steps": -1},
                  {"objective": "cee"}, {"gradient": "none"}, {"keep": "first"}, {"restarts": 0}):  # fmt: skip
        with pytest.raises(ValueError, match=r"stepps|cal|budget|steps|objective|gradient|keep|restarts"):
            kind.configure(**wrong)


def test_classes_of_the_target() -> None:
    assert tiny_target().num_classes == CLASSES
