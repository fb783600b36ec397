"""Students of a target: what they learn, what is saved, and what happens when they are interrupted."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel

from calor_hf.attacks._distill import StudentPlan, _fresh, students_of
from calor_hf.attacks.prior_samples import PriorSamples
from calor_hf.attacks.specs import parse_attack
from calor_hf.targets.hf_target import HFTarget
from tests.attacks.tiny_world import CLASSES, SIDE, tiny_generator, tiny_target
from tests.tiny_models import tiny_base

COUNT = 24
PLAN = StudentPlan(epochs=3, lr=0.05, batch_size=8, seed=2)


class Public(Dataset[Tensor]):
    """Random public images; ``at`` a read, counted from 1, ``act`` is called."""

    def __init__(self, count: int = COUNT, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8))
        self.reads, self.at, self.act = 0, at, act

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        if self.reads == self.at:
            self.act()
        return self.images[index]


def stop() -> None:
    raise KeyboardInterrupt


def teacher() -> HFTarget:
    """A target that is sure of its answers, so that there is something to learn."""
    with torch.random.fork_rng(devices=[]):
        target = tiny_target(dtype=torch.float32)
    with torch.no_grad():
        for weight in target.head.parameters():  # type: ignore[attr-defined]
            weight *= 20
    return target


@pytest.fixture
def student(tmp_path: Path) -> str:
    """Folder of a tiny model."""
    return saved(tmp_path, "resnet")


def saved(folder: Path, kind: str, classes: int = CLASSES) -> str:
    torch.manual_seed(5)
    tiny_base(kind, classes).save_pretrained(folder / kind)
    return str(folder / kind)


def trained(
    name: str, folder: Path, target: HFTarget | None = None, images: Dataset[Tensor] | None = None,
    plan: StudentPlan = PLAN,
) -> Any:  # fmt: skip
    """The one student of a call."""
    (found,) = students_of(target or teacher(), (name,), images or Public(), plan, folder)
    return found


def divergence(target: Any, student: Any) -> float:
    """Mean Σ p ln(p / q) in nats."""
    with torch.no_grad():
        p, q = (model(Public().images).softmax(dim=1) for model in (target, student))
    pairs: list[list[float]] = torch.stack([p.flatten(), q.flatten()], dim=1).tolist()
    return sum(a * math.log(a / b) for a, b in pairs) / COUNT


def assert_same_weights(a: Any, b: Any) -> None:
    left, right = a.module.state_dict(), b.module.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_two_steps_are_the_formula(student: str, tmp_path: Path) -> None:
    # Batches of all images: v = 0.9 v + slope + 1e-4 w; w = w - lr v.
    target = teacher()
    expected: Any = AutoModelForImageClassification.from_pretrained(student).train()
    velocity = {name: torch.zeros_like(weight) for name, weight in expected.named_parameters()}
    p = target(Public().images).softmax(dim=1).detach()
    for _ in range(2):
        q = expected(pixel_values=Public().images).logits.softmax(dim=1)
        loss = (p * (p.log() - q.log())).sum() / COUNT
        expected.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, weight in expected.named_parameters():
                velocity[name] = 0.9 * velocity[name] + weight.grad + 1e-4 * weight
                weight -= 0.05 * velocity[name]
    made = trained(student, tmp_path / "students", target, plan=StudentPlan(2, 0.05, COUNT, 0))
    for (name, wanted), got in zip(expected.named_parameters(), made.module.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5, msg=name)
    record = json.loads((tmp_path / "students" / "0" / "distillation.json").read_text())
    assert record["divergence"] == pytest.approx(loss.item(), rel=1e-4)
    assert (record["epochs"], record["lr"], record["batch_size"], record["seed"]) == (2, 0.05, COUNT, 0)


def test_nothing_warns(student: str, tmp_path: Path) -> None:
    torch.set_warn_always(True)  # not only at the first time in a process
    try:
        trained(student, tmp_path / "students")
    finally:
        torch.set_warn_always(False)


def test_a_student_moves_towards_the_target(student: str, tmp_path: Path) -> None:
    target = teacher()
    before = divergence(target, HFTarget(AutoModelForImageClassification.from_pretrained(student), image_size=SIDE))
    made = trained(student, tmp_path / "students", target, plan=StudentPlan(15, 0.05, 8, 0))
    assert divergence(target, made) < before / 2
    assert not made.module.training
    assert not any(weight.requires_grad for weight in made.module.parameters())
    assert made.num_classes == CLASSES


def test_the_teacher_stays_as_it_was(student: str, tmp_path: Path) -> None:
    # The fault of a published toolbox: a teacher in training mode labels by batch statistics, and moves them.
    target = teacher()
    target.module.train()
    state = {name: value.clone() for name, value in target.module.state_dict().items()}
    made = trained(student, tmp_path / "students", target)
    assert target.module.training
    after = target.module.state_dict()
    assert [name for name in state if not torch.equal(state[name], after[name])] == []
    assert all(weight.requires_grad and weight.grad is None for weight in target.module.parameters())
    assert_same_weights(made, trained(student, tmp_path / "of one in evaluation mode"))


def test_the_rate_is_halved_every_twenty_epochs(student: str, tmp_path: Path) -> None:
    rates: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(note)
    try:
        trained(student, tmp_path / "students", images=Public(2), plan=StudentPlan(41, 0.01, 2, 0))
    finally:
        hook.remove()
    assert rates == pytest.approx([0.01] * 20 + [0.005] * 20 + [0.0025])


def test_each_epoch_sees_every_image_in_another_order(student: str, tmp_path: Path) -> None:
    order: list[int] = []

    class Noted(Public):
        def __getitem__(self, index: int) -> Tensor:
            order.append(index)
            return super().__getitem__(index)

    trained(student, tmp_path / "students", images=Noted(17))  # 17 = 2 · 8 + 1: one alone has no batch statistics
    epochs = [order[16 * epoch : 16 * (epoch + 1)] for epoch in range(3)]
    assert len(order) == 3 * 16
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("kind", ["resnet", "EfficientNetForImageClassification"])  # the latter has dropout
def test_interrupted_and_resumed_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    name = saved(tmp_path, kind)
    torch.manual_seed(0)
    whole = trained(name, tmp_path / "whole")
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        trained(name, tmp_path / "halves", images=Public(at=COUNT + 3, act=stop))  # in the second epoch
    images = Public()
    resumed = trained(name, tmp_path / "halves", images=images)
    assert images.reads == 2 * COUNT
    assert_same_weights(resumed, whole)
    assert not (tmp_path / "halves" / "0" / "checkpoint.pt").exists()


@pytest.mark.parametrize("kind", ["resnet", "EfficientNetForImageClassification"])
def test_the_plan_decides_and_not_what_was_drawn_before(kind: str, tmp_path: Path) -> None:
    name = saved(tmp_path, kind, classes=7)  # so its head is new
    torch.manual_seed(0)
    one = trained(name, tmp_path / "one")
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert_same_weights(trained(name, tmp_path / "again"), one)
    torch.manual_seed(0)
    trained(name, tmp_path / "once more")
    assert torch.equal(torch.get_rng_state(), state)
    other = trained(name, tmp_path / "other", plan=StudentPlan(3, 0.05, 8, seed=3))
    with pytest.raises(AssertionError):
        assert_same_weights(other, one)


def test_a_second_call_reads_what_is_saved(student: str, tmp_path: Path) -> None:
    made = trained(student, tmp_path / "students")
    images = Public()
    again = trained(student, tmp_path / "students", images=images)
    assert images.reads == 0
    assert_same_weights(again, made)


def test_a_checkpoint_of_another_plan_is_not_taken_up(student: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(student, tmp_path / "students", images=Public(at=COUNT + 3, act=stop))
    plan, images = StudentPlan(2, 0.01, 8, 2), Public()
    made = trained(student, tmp_path / "students", images=images, plan=plan)
    assert images.reads == 2 * COUNT
    assert_same_weights(made, trained(student, tmp_path / "fresh", plan=plan))


def test_several_students_differ_and_lie_side_by_side(tmp_path: Path) -> None:
    name = saved(tmp_path, "resnet", classes=7)
    first, second = students_of(teacher(), (name, name), Public(), PLAN, tmp_path / "students")
    with pytest.raises(AssertionError):
        assert_same_weights(first, second)  # the new heads start from other seeds
    assert sorted(path.name for path in (tmp_path / "students").iterdir()) == ["0", "1"]


def test_a_folder_of_a_model_gives_a_student_for_the_targets_classes(tmp_path: Path) -> None:
    made = trained(saved(tmp_path, "resnet", classes=7), tmp_path / "students")
    assert made(Public().images[:4]).shape == (4, CLASSES)


@pytest.mark.parametrize("name", ["efficientnet_b9", "no/such/folder"])
def test_an_unknown_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"(?s)no student model '{name}' .*pass efficientnet_b0, efficientnet_b1"):
        trained(name, tmp_path / "students")


# The published counts with 1000 classes, of which 1281 (b0, b1) or 1409 (b2) weights per class are the classifier's.
@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("efficientnet_b0", 5_288_548 - 1281 * (1000 - CLASSES)),
        ("efficientnet_b1", 7_794_184 - 1281 * (1000 - CLASSES)),
        ("efficientnet_b2", 9_109_994 - 1409 * (1000 - CLASSES)),
    ],
)
def test_the_students_of_the_paper(name: str, weights: int) -> None:
    with torch.device("meta"):
        model = _fresh(name, teacher_on_cpu := tiny_target())
    assert sum(weight.numel() for weight in model.parameters()) == weights
    assert model.config.num_labels == teacher_on_cpu.num_classes


def test_an_efficientnet_answers() -> None:
    model = _fresh("efficientnet_b0", tiny_target())
    assert HFTarget(model, image_size=32)(torch.rand(2, 3, 32, 32)).shape == (2, CLASSES)


def test_a_diverged_student_is_refused_each_time(student: str, tmp_path: Path) -> None:
    plan = StudentPlan(2, 1e30, 8, 0)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="diverged in epoch 1; lower student_lr"):
            trained(student, tmp_path / "students", plan=plan)
    trained(student, tmp_path / "students")  # a lower rate begins anew


def break_first_save(monkeypatch: pytest.MonkeyPatch, weights_too: bool) -> None:
    """The disk is full at the student's configuration, or at its weights."""
    intact, left = PreTrainedModel.save_pretrained, [1]

    def save_pretrained(self: Any, folder: Path, **options: Any) -> None:
        if left and left.pop():
            if not weights_too:
                Path(folder).mkdir(exist_ok=True)
                self.config.save_pretrained(folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        intact(self, folder, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)


@pytest.mark.parametrize("weights_too", [True, False])
def test_a_student_that_could_not_be_saved_is_saved_the_next_time(
    weights_too: bool, student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(student, tmp_path / "whole")
    break_first_save(monkeypatch, weights_too)
    with pytest.raises(OSError, match="No space left"):
        trained(student, tmp_path / "students")
    assert_same_weights(trained(student, tmp_path / "students"), whole)
    records = [json.loads((tmp_path / part / "0" / "distillation.json").read_text()) for part in ("whole", "students")]
    assert records[0] == records[1]


def test_drawn_images_take_the_place_of_public_ones() -> None:
    target, generator = tiny_target(), tiny_generator("conditional")
    generator.train()
    images = PriorSamples(target, generator, 260, seed=1)
    assert len(images) == 260
    whole = torch.stack([images[index] for index in range(260)])
    assert whole.shape == (260, 3, SIDE, SIDE)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole * 255, (whole * 255).round(), rtol=0, atol=1e-4)
    assert len(whole.flatten(1).unique(dim=0)) == 260
    assert generator.training
    assert all(weight.requires_grad and weight.grad is None for weight in generator.parameters())
    assert torch.equal(PriorSamples(target, generator, 260, seed=1).images, images.images)
    assert not torch.equal(PriorSamples(target, generator, 260, seed=2).images, images.images)


def test_a_student_of_drawn_images_is_trained(student: str, tmp_path: Path) -> None:
    images = PriorSamples(teacher(), tiny_generator("dcgan"), 16, seed=1)
    made = trained(student, tmp_path / "students", images=images)
    assert isinstance(made.module, nn.Module)
    assert torch.isfinite(made(Public().images)).all()


def test_students_of_random_weights_are_told() -> None:
    assert "students (random weights)" in parse_attack("lomma").changed
    assert "lomma.students (random weights)" in parse_attack("auto:members=lomma").changed
    hub = parse_attack("lomma@imagenet")
    assert hub.changed == ()
    assert hub.attack.config.students[0] == "google/efficientnet-b0"
    assert parse_attack("lomma:students=none").changed == ("students",)


def test_the_schedule_of_students_follows_their_epochs() -> None:
    short = parse_attack("lomma@calor", budget=0.2).attack.config
    assert (short.student_epochs, short.student_halving) == (20, 4)  # of 100 and 20: four halvings either way
