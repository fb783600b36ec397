"""Attack accuracy by hand: ties, several scores, people, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score

from calor_hf.metrics import View
from calor_hf.metrics.attack_accuracy import AttackAccuracy, topk_correct
from tests.metrics.small_evidence import small_evidence

LOGITS = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    ("k", "expected"),
    # Of (3, 1, 2), class 0 comes first, class 2 second. In the last row, 0 and 1 tie: a hit only where both fit.
    [(1, [1.0, 0.0, 0.0, 0.0]), (2, [1.0, 1.0, 0.0, 1.0]), (3, [1.0, 1.0, 1.0, 1.0])],
)
def test_hits_by_hand(k: int, expected: list[float]) -> None:
    found = topk_correct(LOGITS, torch.tensor([0, 2, 1, 0]), k)
    assert found.dtype == torch.float64
    assert found.tolist() == expected


def test_a_judge_that_says_the_same_of_all_classes_recognizes_nobody() -> None:
    assert topk_correct(torch.zeros(3, 4), torch.tensor([0, 1, 3]), 3).sum() == 0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_hits_are_those_of_sklearn(k: int) -> None:
    rng = torch.Generator().manual_seed(2)
    logits, labels = torch.randn(200, 7, generator=rng), torch.randint(7, (200,), generator=rng)
    expected = top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=np.arange(7))
    assert float(topk_correct(logits, labels, k).mean()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "k", "words"),
    [
        ([0, 1, 2, 3], 1, "3 classes, got label 3"),
        ([0, 1, 2, -1], 1, "3 classes, got label -1"),
        ([0, 1, 2, 0], 0, "k between 1 and the 3 classes"),
        ([0, 1, 2, 0], 4, "k between 1 and the 3 classes"),
        ([0, 1, 2], 1, "3 rows"),
    ],
)
def test_hits_refuses(labels: list[int], k: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        topk_correct(LOGITS, torch.tensor(labels), k)


def test_hits_refuses_scores_that_are_not_finite() -> None:
    logits = LOGITS.clone()
    logits[1, 2] = math.nan
    with pytest.raises(ValueError, match="1 of 4 rows of logits are not finite"):
        topk_correct(logits, torch.tensor([0, 1, 2, 0]))


def test_measures_by_hand() -> None:
    # Of person 0 one of two images is recognized, of person 2 none; the right class is always among the first five.
    logits = torch.tensor([
        [9.0, 0, 0, 0, 0, 1], [1.0, 9, 0, 0, 0, 0], [9.0, 8, 7, 6, 5, 4], [0.0, 5, 4, 3, 2, 1]
    ])  # fmt: skip
    evidence = small_evidence(
        evaluation_model=View("evaluation_model", torch.zeros(4, 1), torch.zeros(24, 1), logits),
        labels=torch.tensor([0, 0, 2, 2]),
    )
    top, five, identities = AttackAccuracy().measure(evidence)
    assert (top.name, top.value, top.by_identity) == ("attack_accuracy@1", 0.25, {0: 0.5, 2: 0.0})
    assert (top.images, top.identities, top.unit, top.direction) == (4, 2, "share", "leakage")
    assert (top.low, top.high) == (0.0, 0.5)
    assert top.std == pytest.approx(np.std([0.5, 0.0], ddof=1))
    assert (five.name, five.value) == ("attack_accuracy@5", 1.0)
    assert (identities.name, identities.value, identities.by_identity) == (
        "identities_recognized",
        0.5,
        {0: 1.0, 2: 0.0},
    )


def test_the_first_five_of_four_are_left_out() -> None:
    evaluation_model = View("evaluation_model", torch.zeros(2, 1), torch.zeros(24, 1), torch.eye(4)[:2])
    found = AttackAccuracy().measure(small_evidence(evaluation_model=evaluation_model, labels=torch.tensor([0, 1])))
    assert [measure.name for measure in found] == ["attack_accuracy@1", "identities_recognized"]


def test_an_oracle_is_always_right() -> None:
    evidence = small_evidence()
    assert evidence.evaluation_model is not None
    oracle = dataclasses.replace(evidence.evaluation_model, logits=torch.eye(6)[evidence.labels])
    found = AttackAccuracy().measure(dataclasses.replace(evidence, evaluation_model=oracle))
    assert [measure.value for measure in found] == [1.0, 1.0, 1.0]


def test_a_judge_without_scores_is_refused() -> None:
    evidence = small_evidence()
    with pytest.raises(ValueError, match="gives no scores"):
        AttackAccuracy().measure(dataclasses.replace(evidence, evaluation_model=evidence.extractor))
