"""AT-AT: its adversarial images and loss against literal loops, its units, and what it refuses."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calor_hf.core.outputs import Forward, Progress
from calor_hf.core.seeding import StepDraws, named_rng
from calor_hf.data.pixel_input import PixelScale
from calor_hf.defenses.at_at import other_classes
from calor_hf.defenses.training_run import TrainingRun
from calor_hf.modeling import DefendedForImageClassification
from tests.tiny_models import tiny_base

CLASSES, BATCH, SEED, SIDE = 6, 4, 11, 32
# Neither the mean nor the deviation is 0.5, the range is [0, 255], and the model reads blue first.
SCALE = PixelScale(mean=(100.0, 128.0, 150.0), std=(60.0, 128.0, 50.0), scale=255.0, reverse_channels=True)
END = Progress.at_end("fit")
EPS, STEP, STEPS = 0.0005, 0.0001, 5


def started(**settings: Any) -> Any:
    torch.manual_seed(3)
    model = DefendedForImageClassification.from_base(tiny_base("resnet", CLASSES), "at_at", **settings).train()
    unused: Any = None
    run = TrainingRun(model, SCALE, SEED, unused, unused, unused, unused)
    model.in_training_run = True
    model.defense.begin(run)
    return model


def pictures() -> Tensor:
    """Images in [0, 1], of which some values are at the ends of the range."""
    draw = torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    return (1.2 * draw - 0.1).clamp(0, 1)


def changed_batch(model: Any, labels: list[int], step: int = 0) -> dict[str, Any]:
    inputs = {"pixel_values": SCALE.normalize(pictures()), "labels": torch.tensor(labels)}
    draws = StepDraws.of_batch(SEED, step, len(labels), BATCH)
    found: dict[str, Any] = model.defense.on_batch(inputs, draws, END)
    return found


def literal_examples(model: Any, wanted: list[int]) -> Tensor:
    """The authors' loop on tensors in [-1, 1]: start, targeted steps, projection onto ball and range."""
    original = 2 * pictures() - 1
    numbers = named_rng(SEED, "defenses/at_at/start", 0).random((BATCH, 3 * SIDE * SIDE))
    found = original + EPS * (2 * torch.from_numpy(numbers).float() - 1).view_as(original)[:, [2, 1, 0]]
    found = found.clamp(-1, 1)
    for _ in range(STEPS):
        found.requires_grad_()
        logits = model(pixel_values=SCALE.normalize((found + 1) / 2)).logits
        cost = sum(row[label] - row.logsumexp(0) for row, label in zip(logits, wanted, strict=True))  # to be raised
        (slope,) = torch.autograd.grad(cost, found)
        moved = (found + STEP * slope.sign()).detach()
        for row in range(BATCH):
            delta = (moved[row] - original[row]).clamp(-EPS, EPS)
            moved[row] = (original[row] + delta).clamp(-1, 1)
        found = moved
    return found


def test_examples_are_those_of_the_authors_loop_whatever_the_normalization() -> None:
    model, twin = started(), started()
    found = changed_batch(model, [0, 1, 2, 3])
    wanted = found["labels"][BATCH:].tolist()
    shown = 2 * SCALE.images(found["pixel_values"]) - 1
    torch.testing.assert_close(shown[:BATCH], 2 * pictures() - 1, rtol=0, atol=1e-6)
    expected = literal_examples(twin, wanted)
    same = (shown[BATCH:] - expected).abs() < 1e-6
    assert same.float().mean() > 0.999  # the sign of a gradient of zero may differ
    change = (shown[BATCH:] - shown[:BATCH]).abs()
    assert EPS * 0.99 < float(change.max()) < EPS + 1e-6
    assert float(shown.abs().max()) <= 1 + 1e-6
    # The network was in training mode while they were looked for: a pass updates the statistics of batch norm.
    assert int(model.backbone.resnet.embedder.embedder.normalization.num_batches_tracked) == STEPS


def test_they_raise_the_wanted_score_and_depend_on_the_step() -> None:
    model = started(eps=0.5, step=0.1)
    found = changed_batch(model, [0, 1, 2, 3])
    model.eval()
    with torch.no_grad():
        chances = model(pixel_values=found["pixel_values"]).logits.softmax(1)
    wanted = found["labels"][BATCH:, None]
    assert (chances[BATCH:].gather(1, wanted) > chances[:BATCH].gather(1, wanted)).all()
    again, later = changed_batch(started(), [0, 1, 2, 3], step=0), changed_batch(started(), [0, 1, 2, 3], step=1)
    assert torch.equal(again["pixel_values"], changed_batch(started(), [0, 1, 2, 3])["pixel_values"])
    assert not torch.equal(again["pixel_values"][BATCH:], later["pixel_values"][BATCH:])


def test_other_classes_are_uniform_and_never_the_own() -> None:
    labels = torch.tensor([0, 2, 1, -100])
    # Three classes: half of the numbers lead to the next class, half to the one after; -100 does not count.
    assert other_classes(labels, np.array([[0.0], [0.49], [0.5], [0.9]]), 3).tolist() == [1, 0, 0, -100]
    many = torch.full((6000,), 4)
    found = other_classes(many, named_rng(0, "tests").random((6000, 1)), 7)
    counts = torch.bincount(found, minlength=7)
    assert counts[4] == 0
    assert (counts[[0, 1, 2, 3, 5, 6]] - 1000).abs().max() < 4 * (6000 * 5 / 36) ** 0.5


def test_loss_by_hand() -> None:
    # Clean: p = 3/4 of class 0, ln(4/3) = 0.287682. Adversarial: p = 1/4 of class 1, 0.08 · ln 4 = 0.110904.
    defense = started().defense
    logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    terms = defense.loss(Forward(logits, torch.tensor([0, 1]), training=True), END)
    assert {name: value.item() for name, value in terms.items()} == {
        "clean": pytest.approx(0.287682, abs=1e-6), "adversarial": pytest.approx(0.110904, abs=1e-6),
    }  # fmt: skip
    outside = defense.loss(Forward(logits, torch.tensor([0, 1])), END)
    assert outside["clean"].item() == pytest.approx((0.287682 + 1.386294) / 2, abs=1e-6)
    assert outside.keys() == {"clean"}


def test_precision_that_rounds_the_change_away_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"eps=0\.0005, which torch.bfloat16 rounds away .*float32 or fp16, or set eps"
    ):
        started().defense.stages(SimpleNamespace(bf16=True, num_train_epochs=1, max_steps=-1))
    for autocast, model in ((True, started()), (False, started().bfloat16())):
        context = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
        with context, pytest.raises(ValueError, match=r"torch.bfloat16 rounds away"):
            changed_batch(model, [0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        assert len(changed_batch(started(eps=0.01, step=0.002), [0, 1, 2, 3])["labels"]) == 2 * BATCH


def test_soft_labels_are_refused() -> None:
    inputs = {"pixel_values": torch.zeros(2, 3, SIDE, SIDE), "labels": torch.full((2, CLASSES), 1 / CLASSES)}
    with pytest.raises(ValueError, match="at_at needs one whole-number label per image"):
        started().defense.on_batch(inputs, StepDraws.of_batch(SEED, 0, 2, BATCH), END)


def test_a_longer_search_costs_more_in_the_plan() -> None:
    assert started().defense.step_cost == pytest.approx(6)
    assert started(steps=11).defense.step_cost == pytest.approx(10.8)
