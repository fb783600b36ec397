"""A student of people who differ in color: what it learns, that shuffled names teach nothing, what is refused."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.metrics import Measure
from calor_hf.metrics.knowledge_extraction import KnowledgeExtraction, recognized, train_student
from tests.metrics.small_evidence import noisy, small_evidence

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.1]])
IDENTITIES = torch.tensor([1, 3, 4, 9])


def colored(rows: Tensor, seed: int, side: int = 16) -> Tensor:
    """A image for each row, all in the color of that person, with noise."""
    images = COLOURS[rows][:, :, None, None].expand(-1, -1, side, side)
    return noisy(images, 0.05, torch.Generator().manual_seed(seed))


def mean_color(classes: int) -> nn.Module:
    """A linear student that sees the mean color alone."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))


def measured(changes: dict[str, Any], **options: Any) -> dict[str, Measure]:
    rows, known = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat_interleave(6)
    evidence = small_evidence(**{
        "images": colored(rows, 1), "labels": IDENTITIES[rows], "private_images": colored(known, 2),
        "private_labels": IDENTITIES[known], "held_images": colored(known, 3), "held_labels": IDENTITIES[known],
        **changes,
    })  # fmt: skip
    options = {"build": mean_color, "epochs": 40, "runs": 2, **options}
    return {measure.name: measure for measure in KnowledgeExtraction(**options).measure(evidence)}


def test_people_that_can_be_told_apart_are_learned() -> None:
    found = measured({})
    assert set(found) == {"knowledge_extraction", "knowledge_extraction_held"}
    for measure in found.values():
        assert (measure.value, measure.std, measure.images, measure.identities) == (1.0, 0.0, 16, 4)
        assert measure.by_identity == dict.fromkeys(IDENTITIES.tolist(), 1.0)
        assert (measure.unit, measure.direction) == ("share", "leakage")
        assert "by 2 students trained on 16 reconstructions alone, on 24 private images" in measure.note
        assert "chance is 1/4 = 0.25" in measure.note


def test_the_default_student_learns_them_too() -> None:
    from calor_hf.metrics.knowledge_extraction import small_resnet

    found = measured({}, build=small_resnet, epochs=75, runs=1)  # as published; 16 images are one step per epoch
    assert found["knowledge_extraction"].value == 1.0
    assert math.isnan(found["knowledge_extraction"].std)  # of one training


def test_reconstructions_of_the_wrong_people_teach_the_wrong_names() -> None:
    found = measured({"labels": IDENTITIES.roll(1).repeat_interleave(4)})
    assert found["knowledge_extraction"].value == 0.0


def test_shuffled_names_teach_nothing() -> None:
    # Each person's four reconstructions show all four colors: what a student makes of them is luck.
    found = measured(
        {"labels": IDENTITIES.repeat_interleave(4), "images": colored(torch.arange(4).repeat(4), 1)}, runs=40
    )
    share = found["knowledge_extraction"]
    assert share.value == pytest.approx(0.25, abs=0.15)
    assert share.std > 0.05


def test_people_who_were_not_attacked_are_not_asked_about() -> None:
    rows = torch.tensor([0, 0, 1, 2, 3])
    strangers = {"held_images": colored(rows, 5), "held_labels": torch.tensor([1, 7, 3, 4, 9])}
    held = measured(strangers)["knowledge_extraction_held"]
    assert (held.value, held.identities) == (1.0, 4)
    assert "on 4 private images" in held.note
    others = {"held_images": colored(rows, 5), "held_labels": torch.full((5,), 7)}
    held = measured(others)["knowledge_extraction_held"]
    assert math.isnan(held.value)
    assert held.note == "no image of the attacked people to be evaluated on"


def test_no_held_out_pictures_leave_one_number() -> None:
    assert set(measured({"held_images": None, "held_labels": None})) == {"knowledge_extraction"}


def test_private_pictures_of_another_size_are_resized() -> None:
    known = torch.arange(4).repeat_interleave(6)
    sizes: list[tuple[int, ...]] = []

    class Student(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.inner = mean_color(classes)

        def forward(self, images: Tensor) -> Any:
            sizes.append(tuple(images.shape[-2:]))
            return self.inner(images)

    found = measured({"private_images": colored(known, 2, side=24)}, build=Student)
    assert found["knowledge_extraction"].value == 1.0
    assert set(sizes) == {(16, 16)}


def test_one_person_alone_is_no_question() -> None:
    alone = {"labels": torch.full((16,), 3)}
    for measure in measured(alone).values():
        assert math.isnan(measure.value)
        assert measure.note == "a single person, which every student would name"


def test_the_same_seed_gives_the_same_student_and_batches_are_even() -> None:
    sizes: list[int] = []

    def build(classes: int) -> nn.Module:
        student = mean_color(classes)
        student.register_forward_pre_hook(lambda _, images: sizes.append(len(images[0])))
        return student

    rows = torch.arange(13) % 4
    state = torch.get_rng_state()
    first, again, other = (
        train_student(colored(rows, 1), IDENTITIES[rows], build, epochs=2, batch_size=4, seed=seed)
        for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert not first.training
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(one, two) and not torch.equal(one, three) for one, two, three in pairs)
    assert sorted(sizes[:4]) == [3, 3, 3, 4]  # not 4, 4, 4, 1: one image has no batch statistics


def test_recognized_by_hand() -> None:
    last = nn.Linear(3, 3, bias=False)
    nn.init.eye_(last.weight)
    student = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)  # its logits are the mean color
    images = torch.eye(3)[:, :, None, None].expand(3, 3, 16, 16)
    assert recognized(student, images, torch.tensor([0, 1, 1])).tolist() == [1.0, 1.0, 0.0]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="epochs >= 1, batch_size >= 2 and runs >= 1, got 1, 1 and 1"):
        KnowledgeExtraction(epochs=1, batch_size=1, runs=1)
    with pytest.raises(ValueError, match=r"expected images \(n, 3, height, width\) in \[0, 1\]"):
        measured({"images": colored(torch.arange(4).repeat_interleave(4), 1) * 2})
    with pytest.raises(ValueError, match="expected images"):
        measured({"private_images": colored(torch.arange(4).repeat_interleave(6), 1) - 1})
    spoilt = colored(torch.arange(4).repeat_interleave(6), 1)
    spoilt[3, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 24 rows of images are not finite"):
        measured({"held_images": spoilt})
    with pytest.raises(FloatingPointError, match=r"the student diverged in epoch [23]; lower learning_rate"):
        measured({}, learning_rate=1e38)
