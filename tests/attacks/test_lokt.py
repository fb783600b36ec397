"""LOKT: students that learn hard labels, each asked for once, and the sum of their losses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForImageClassification

from calor_hf.attacks import ATTACKS, smoothing
from calor_hf.attacks._distill import RESNETS, StudentPlan, Students, _fresh, students_of
from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.lokt import LOKT
from calor_hf.attacks.prior_samples import PriorSamples
from calor_hf.auditing import load_reconstruction, run_attack
from calor_hf.data.random_views import RandomView
from calor_hf.targets.base import LabelTarget
from calor_hf.targets.module_target import ModuleTarget
from tests.attacks.test_distill import COUNT, Public, assert_same_weights, saved, stop, teacher
from tests.attacks.tiny_world import CLASSES, SIDE, ready, tiny_generator, tiny_target
from tests.tiny_models import tiny_base

PLAN = StudentPlan(epochs=3, lr=0.05, batch_size=8, seed=2, hard=True)


def student_of(view: Any, name: str, folder: Path, images: Any = None, plan: StudentPlan = PLAN) -> Any:
    (made,) = students_of(view, (name,), images or Public(), plan, folder)
    return made


def test_two_steps_are_the_formula(tmp_path: Path) -> None:
    # Batches of all images, rates 0.05 and (1 + cos(pi / 2)) / 2 · 0.05: v = 0.9 v + slope + 1e-4 w; w = w - rate v.
    name, target = saved(tmp_path, "resnet"), teacher()
    with torch.no_grad():  # so that it answers more than one class
        target.head.classifier.bias -= target(Public().images).mean(dim=0)  # type: ignore[attr-defined]
    expected: Any = AutoModelForImageClassification.from_pretrained(name).train()
    velocity = {key: torch.zeros_like(weight) for key, weight in expected.named_parameters()}
    labels = target(Public().images).argmax(dim=1)
    assert len(labels.unique()) > 1
    for rate in (0.05, 0.025):
        expected.zero_grad()
        F.cross_entropy(expected(pixel_values=Public().images).logits, labels).backward()
        with torch.no_grad():
            for key, weight in expected.named_parameters():
                velocity[key] = 0.9 * velocity[key] + weight.grad + 1e-4 * weight
                weight -= rate * velocity[key]
    plan = StudentPlan(2, 0.05, COUNT, 0, hard=True)
    made = student_of(LabelTarget(target), name, tmp_path / "students", plan=plan)
    for (key, wanted), got in zip(expected.named_parameters(), made.module.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5, msg=key)


def test_every_label_is_asked_for_once_and_counted_whenever(tmp_path: Path) -> None:
    name, target = saved(tmp_path, "resnet"), teacher()
    whole = student_of(LabelTarget(target), name, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):  # in the second epoch; labeling has read all images once
        student_of(LabelTarget(target), name, tmp_path / "halves", images=Public(at=2 * COUNT + 3, act=stop))
    view, seen = LabelTarget(target), list[int]()
    handle = target.module.register_forward_pre_hook(lambda *_: seen.append(1))
    resumed = student_of(view, name, tmp_path / "halves")
    handle.remove()
    assert not seen
    assert view.queries == COUNT
    assert_same_weights(resumed, whole)


def test_wanted_classes_take_turns() -> None:
    made: list[Tensor] = []
    generator = tiny_generator("conditional")
    generator.register_forward_pre_hook(lambda _m, inputs: made.append(inputs[1]))
    images = PriorSamples(tiny_target(), generator, 260, 1, in_turn=True)
    assert len(images) == 260
    assert torch.cat(made)[:260].bincount().tolist() == [52] * CLASSES


class Bright(torch.nn.Module):
    """Two classes: dark images and bright ones."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def forward(self, images: Tensor) -> Tensor:
        above = images.mean(dim=(1, 2, 3)) - self.level
        return 50 * torch.stack([-above, above], dim=1)


@pytest.mark.slow
def test_students_agree_with_the_target(tmp_path: Path) -> None:
    generator = tiny_generator("renderer")
    fresh = PriorSamples(tiny_target(), generator, 200, seed=77)
    images = torch.stack([fresh[index] for index in range(200)])
    target = ModuleTarget(Bright(float(images.mean(dim=(1, 2, 3)).median())), 2, SIDE)
    torch.manual_seed(5)
    tiny_base("resnet", 2).save_pretrained(tmp_path / "student")
    kind = ATTACKS.get("lokt")
    settings: dict[str, Any] = {
        "student_images": 100,
        "student_epochs": 12,
        "student_lr": 0.05,
        "student_batch": 32,
        "steps": 30,
    }
    attack: Any = kind(kind.configure(students=(str(tmp_path / "student"),), **settings))
    attack.prepare_for(target, generator, None, tmp_path, 0)
    truth = target(images).argmax(dim=1)
    assert 0.4 < truth.double().mean() < 0.6
    assert (attack.students(images).argmax(dim=1) == truth).double().mean() > 0.9
    found = attack.run(target, generator, [0, 1], images_per_class=4)
    assert found.scores.mean() > 0.8
    assert set(found.scores.tolist()) <= {0.0, 1.0}


def test_the_objective_is_the_sum_over_students_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tiny_target(), tiny_target("calor", rank=2)
    kind = ATTACKS.get("lokt")
    attack: Any = kind(kind.configure())
    assert attack.inner.config.samples == 1  # the images that students learn from are no copies to average over
    images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    batch = Batch.of([1, 4], 1, 0, images.new_empty(0))
    seen = AttackedTarget(Students([first, second]))
    mirrored = RandomView((1.0, 1.0), brightness=0, contrast=0, flip_probability=1, degrees=0)
    monkeypatch.setattr(smoothing, "VIEW", mirrored)
    got = attack.inner.identity(seen, images, batch)
    for row, label in enumerate((1, 4)):
        total = 0.0
        for model in (first, second):
            logits = model(images.flip(3))[row].tolist()
            total += max(value for other, value in enumerate(logits) if other != label) - logits[label]
        assert got[row].item() == pytest.approx(2 * total)
    assert seen.logits is not None
    mean = (first(images.flip(3)) + second(images.flip(3))) / 2
    assert torch.allclose(seen.logits, mean)


def test_queries_of_the_preparation_are_counted_once(tmp_path: Path) -> None:
    target, generator = tiny_target(), tiny_generator("dcgan")
    samples, passes = 4 * CLASSES, list[int]()
    target.module.register_forward_pre_hook(
        lambda _m, _a, kwargs: passes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    attack = ready("lokt", target, generator, tmp_path / "made")  # its own students; the folder gets others
    passes.clear()

    def audited(labels: list[int], **options: Any) -> int:
        found = run_attack(
            attack,
            target,
            generator,
            labels,
            tmp_path / "run",
            name="lokt",
            images_per_class=2,
            chunk_size=1,
            **options,
        )
        record = json.loads((tmp_path / "run" / "attack.json").read_text())
        assert record["cost"]["target_passes"] == found.cost.target_passes
        return found.cost.target_passes

    assert audited([0, 3]) == samples + 4 == sum(passes) - 2
    assert audited([0, 3], resume=True) == samples + 4
    assert audited([0, 1, 3], resume=True) == samples + 6 == sum(passes) - 4
    kept = load_reconstruction(tmp_path / "run" / "reconstructions.safetensors")
    assert kept.cost.target_passes == 6
    assert audited([2], overwrite=True) == samples + 2


def test_it_wants_to_be_prepared_for_the_target(tmp_path: Path) -> None:
    kind = ATTACKS.get("lokt")
    with pytest.raises(ValueError, match="call prepare_for"):
        kind(kind.configure()).run(tiny_target(), tiny_generator("dcgan"), [0])
    attack = ready("lokt", tiny_target(), tiny_generator("dcgan"), tmp_path)
    seven = ModuleTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIDE * SIDE, 7)).double(), 7, SIDE)
    with pytest.raises(ValueError, match="students know 5 classes, the target has 7"):
        attack.run(seven, tiny_generator("dcgan"), [0])


@pytest.mark.parametrize("name", RESNETS)
def test_students_without_weights(name: str) -> None:
    # Torchvision's counts with 1000 classes, where it has the network.
    known = {"resnet_18": 11_689_512, "resnet_34": 21_797_672, "resnet_50": 25_557_032}
    with torch.device("meta"):
        model = _fresh(name, tiny_target())
    width = RESNETS[name]["hidden_sizes"][-1]
    weights = sum(weight.numel() for weight in model.parameters()) + (width + 1) * (1000 - CLASSES)
    assert weights == known.get(name, weights)
    assert model.config.num_labels == CLASSES


@pytest.mark.parametrize("wrong", [{"students": ()}, {"student_images": 0}, {"student_lr": 0.0}, {"steps": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("s")):
        LOKT.configure(**wrong)
