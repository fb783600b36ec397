"""Decoys: class scores from identity scores, and the loss over identities, by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.decoys import SCORES, DecoyHead, Decoys, DecoysConfig, class_scores
from calor_hf.modeling import defend, export_model
from tests.tiny_models import tiny_base

END = Progress.at_end("fit")


def test_class_probability_is_the_sum_of_its_identities() -> None:
    # e^s = 1, 3, 2, 2: identities have 1/8, 3/8, 1/4, 1/4, and the two classes 1/2 each.
    scores = torch.tensor([[0.0, math.log(3.0), math.log(2.0), math.log(2.0)]])
    assert class_scores(scores, 2).softmax(dim=1).tolist() == [[pytest.approx(0.5), pytest.approx(0.5)]]
    head = DecoyHead(1, 2, 2)
    with torch.no_grad():
        head.last_layer.weight.zero_()
        head.last_layer.bias.copy_(scores[0])
    assert torch.equal(head(torch.ones(1, 1)), class_scores(scores, 2))


def test_loss_matches_hand_computed_value() -> None:
    scores = torch.tensor([[0.0, math.log(3.0), 0.0, 0.0]])
    defense = Decoys(DecoysConfig(k=2))
    logits, extras = class_scores(scores, 2), {SCORES: scores[None]}
    of_classes = defense.loss(Forward(logits, torch.tensor([0]), extras=extras), END)
    assert of_classes["cross_entropy"].item() == pytest.approx(math.log(6 / 4))
    of_identities = defense.loss(Forward(logits, torch.tensor([0]), extras=extras, identities=torch.tensor([1])), END)
    assert of_identities["identity_cross_entropy"].item() == pytest.approx(math.log(6 / 3))
    # Two images of two classes, the second class with three times the weight: (ln 2 + 3 · ln 6) / 4.
    two = Forward(
        logits.repeat(2, 1), torch.tensor([0, 1]), class_weights=torch.tensor([1.0, 3.0]),
        extras={SCORES: scores.repeat(2, 1)[None]}, identities=torch.tensor([1, 2]),
    )  # fmt: skip
    expected = (math.log(2) + 3 * math.log(6)) / 4
    assert defense.loss(two, END)["identity_cross_entropy"].item() == pytest.approx(expected)


@pytest.mark.parametrize("rank", [None, 3])
def test_head_learns_as_a_plain_classifier_of_identities(rank: int | None) -> None:
    head = DecoyHead(5, 2, 3, rank)
    x, identities = torch.randn(4, 5), torch.tensor([0, 5, 2, 3])
    defense = Decoys(DecoysConfig(k=3, rank=rank))
    logits, extras = defense.run_head(head, x)
    loss = defense.loss(Forward(logits, identities // 3, extras=extras, identities=identities), END)
    loss["identity_cross_entropy"].backward()
    parts: list[Any] = [head.scorer] if rank is None else [head.scorer.down, nn.Tanh(), head.scorer.up]
    F.cross_entropy(nn.Sequential(*parts)(x), identities).backward()  # adds the same again
    assert head.last_layer.weight.grad is not None
    half = head.last_layer.weight.grad.clone()
    head.zero_grad()
    F.cross_entropy(nn.Sequential(*parts)(x), identities).backward()
    torch.testing.assert_close(half, 2 * head.last_layer.weight.grad)


def test_heads_of_two_classifiers_learn_the_identities_each() -> None:
    model = defend(tiny_base("DeiTForImageClassificationWithTeacher"), "decoys", k=2)
    classes = model.config.num_labels
    out = model.train()(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1]), identities=torch.tensor([1, 2]))
    out.loss.backward()
    assert out.logits.shape == (2, classes)
    heads: Any = model.classification_head
    assert all(head.last_layer.weight.grad.abs().sum(dim=1).gt(0).all() for head in heads.heads)


def test_head_is_exported(tmp_path: Path) -> None:
    model = defend(tiny_base("vit"), "decoys", rank=3)
    assert export_model(model, tmp_path / "model.pt2", "torch", image_size=32) <= 1e-5


def test_settings_and_inputs_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k must be in \[2, 16\], got 1"):
        DecoysConfig(k=1)
    with pytest.raises(ValueError, match=r"rank must be a whole number between 1 and 16 .*got 17"):
        Decoys.complete(DecoysConfig(rank=17), 16, 6)
    with pytest.raises(ValueError, match="copies a classifier of the private people"):
        defend(tiny_base("vit"), "decoys", rank=3, head_init="svd")
    model = defend(tiny_base("vit"), "decoys")
    with pytest.raises(ValueError, match="labels are missing: leave identities out"):
        model(torch.randn(1, 3, 32, 32), identities=torch.tensor([0]))
    with pytest.raises(ValueError, match="this model has the defense 'loft'"):
        defend(tiny_base("vit"), "loft")(
            torch.randn(1, 3, 32, 32), labels=torch.tensor([0]), identities=torch.tensor([0])
        )
