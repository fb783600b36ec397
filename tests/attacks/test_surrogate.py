"""Surrogate: the student is what is attacked, its adversarial training is the formula, and the target scores."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from calor_hf.attacks import ATTACKS
from calor_hf.attacks._distill import STEPS, TARGET, StudentPlan, _worst, students_of
from calor_hf.attacks.auto import Auto, AutoConfig
from calor_hf.attacks.specs import parse_attack
from calor_hf.attacks.surrogate import Surrogate
from calor_hf.core.seeding import named_rng
from calor_hf.modeling import defend
from calor_hf.targets.base import ScoreTarget
from calor_hf.targets.hf_target import HFTarget
from tests.attacks.tiny_world import CLASSES, SIDE, Pictures, ready, tiny_attack, tiny_generator, tiny_target
from tests.tiny_models import tiny_base
from tests.training.small_task import image_processor


def test_worst_images_by_hand() -> None:
    # The loss rises with the value at a rate of 1 and -1: five steps of half of eps end at the edge of the ball.
    images = torch.tensor([[[[0.5, 0.5, 0.99, 0.01]]]])
    slope = torch.tensor([1.0, -1, 1, -1])
    found = _worst(lambda x: (x * slope).sum(), images, 0.03)
    assert found.flatten().tolist() == pytest.approx([0.53, 0.47, 1, 0])
    flat = _worst(lambda x: 0 * x.sum(), images, 0.03)  # the start is anywhere in the ball
    assert 0 < float((flat - images).abs().max()) <= 0.03 + 1e-6


def test_robust_distillation_is_the_formula(tmp_path: Path) -> None:
    # One step of SGD on all images: w - lr (slope + 1e-4 w), of the divergence at images that raise it.
    torch.manual_seed(0)
    target = HFTarget(defend(tiny_base("vit", CLASSES), "at_at"), image_processor())
    images = torch.rand(4, 3, 32, 32)
    plan = StudentPlan(epochs=1, lr=0.05, batch_size=4, seed=2, eps=0.02)
    public: Any = list(images)
    starts: list[torch.Tensor] = []
    draw = torch.rand
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape: starts.append(draw(*shape)) or starts[-1])  # type: ignore[func-returns-value]
        (made,) = students_of(target, (TARGET,), public, plan, tmp_path)
    (start,) = starts
    twin = copy.deepcopy(target)
    shown = images[named_rng(2, "attacks/students/order", 0).permutation(4).tolist()]
    aim = target(shown).softmax(1).detach()

    def divergence(x: torch.Tensor) -> torch.Tensor:
        q = twin(x).softmax(1)
        return (aim * (aim.log() - q.log())).sum() / 4

    x = (shown + 0.02 * (2 * start - 1)).clamp(0, 1)
    for _ in range(STEPS):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(divergence(x), x)
        x = (x.detach() + 0.01 * slope.sign()).clamp(shown - 0.02, shown + 0.02).clamp(0, 1)
    slopes = torch.autograd.grad(divergence(x), list(twin.module.parameters()), allow_unused=True)
    for (name, weight), slope, got in zip(
        twin.module.named_parameters(), slopes, made.module.parameters(), strict=True
    ):
        change = -0.05 * ((0 if slope is None else slope) + 1e-4 * weight)
        torch.testing.assert_close(got, weight + change, rtol=1e-4, atol=1e-6, msg=name)


def test_the_student_is_attacked_and_the_target_scores(tmp_path: Path) -> None:
    torch.manual_seed(6)
    tiny_base("resnet", CLASSES).save_pretrained(tmp_path / "student")
    target, generator = tiny_target(), tiny_generator("dcgan")
    students = {"students": (str(tmp_path / "student"),), "student_eps": 0.0}
    attack: Any = ready("surrogate", target, generator, tmp_path, **students)
    found = attack.run(target, generator, [1, 3], seed=4)
    alone = tiny_attack("plg", steps=6).run(attack.surrogate, generator, [1, 3], seed=4)
    assert torch.equal(found.images, alone.images)
    assert not torch.allclose(found.images, tiny_attack("plg", steps=6).run(target, generator, [1, 3], seed=4).images)
    own = target(found.images.double()).softmax(1)[range(10), found.labels]
    torch.testing.assert_close(found.scores, own)
    assert (found.cost.target_passes, found.cost.target_gradients) == (10, 0)
    assert (
        attack.prepare_for(target, generator, Pictures(), tmp_path, 0).target_passes == 12
    )  # one epoch of the pictures


def test_several_students_answer_their_mean(tmp_path: Path) -> None:
    attack: Any = ready("surrogate", tiny_target(), tiny_generator("dcgan"), tmp_path, students=(TARGET, TARGET))
    images = torch.rand(2, 3, SIDE, SIDE)
    one, two = (student(images) for student in attack.surrogate.students)
    torch.testing.assert_close(attack.surrogate(images), (one + two) / 2)


def test_what_knows_at_at() -> None:
    target, other = (HFTarget(defend(tiny_base("resnet"), name), image_size=SIDE) for name in ("at_at", "none"))
    adaptive = [spec for spec in ("plg@adaptive", "plg@smoothed", "surrogate", "surrogate@robust", "plg")
                if parse_attack(spec).attack.adaptive_to(target)]  # fmt: skip
    assert adaptive == ["plg@smoothed", "surrogate", "surrogate@robust"]
    auto, prior = Auto(AutoConfig()), tiny_generator("renderer")
    with_it, without = (auto.parts(of, prior) for of in (target, other))
    assert with_it == (*without, "plg-smoothed")
    assert (auto.adaptive_to(target), auto.adaptive_to(other)) == (True, False)
    assert not any(parse_attack(spec).attack.adaptive_to(other) for spec in adaptive)
    assert "students (random weights)" in parse_attack("surrogate").changed
    assert parse_attack("surrogate@robust", budget=0.1).attack.config.student_epochs == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attack": "brep"}, "attack must be one white-box attack, such as plg@adaptive or ppa, got brep"),
        ({"attack": "auto"}, "one white-box attack"),
        ({"attack": "surrogate"}, "one white-box attack"),
        ({"attack": "plug"}, "unknown attack 'plug'"),
        ({"students": ()}, "pass at least one"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ATTACKS.get("surrogate").config_class(**settings)


def test_an_unprepared_or_foreign_one_is_refused(tmp_path: Path) -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    with pytest.raises(ValueError, match=r"call prepare_for\(...\) first"):
        tiny_attack("surrogate").run(target, generator, [0])
    attack = ready("surrogate", target, generator, tmp_path)
    assert isinstance(attack, Surrogate)
    wider = HFTarget(tiny_base("resnet", CLASSES + 1), image_size=SIDE)
    with pytest.raises(ValueError, match="knows 5 classes, the target has 6; prepare the attack for this target"):
        attack.run(wider, tiny_generator("dcgan", torch.float32), [0])
    plan = StudentPlan(1, 0.1, 4, 0)
    with pytest.raises(ValueError, match="only a model of transformers, seen white-box, can be copied"):
        students_of(ScoreTarget(target), (TARGET,), Pictures(), plan, tmp_path / "other")
