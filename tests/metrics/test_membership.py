"""Membership inference by the loss, against scikit-learn's curves and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from calor_hf.metrics import Measure
from calor_hf.metrics.membership import membership


def pair(scores: list[float]) -> Tensor:
    """Logits of two classes whose log-probability of class 0 grows with the score."""
    return torch.tensor([[score, 0.0] for score in scores], dtype=torch.float64)


def measured(*words: Tensor) -> dict[str, Measure]:
    return {measure.name: measure for measure in membership(*words)}


def test_area_by_hand_with_a_tie() -> None:
    # Pairs: 3 beats 1 and 2; 1 beats nothing but ties with 1: 2.5 of 4.
    zeros = torch.zeros(2, dtype=torch.int64)
    auc = measured(pair([3, 1]), zeros, pair([1, 2]), zeros)["membership_auc"]
    assert auc.value == pytest.approx(2.5 / 4)
    assert auc.direction == "leakage"
    assert math.isnan(auc.low)  # one person


def test_area_and_rate_agree_with_scikit_learn() -> None:
    rng = torch.Generator().manual_seed(0)
    labels, held_labels = torch.arange(150) % 5, torch.arange(300) % 5
    logits = torch.randn(150, 5, generator=rng) + 2 * torch.nn.functional.one_hot(labels, 5)
    held = torch.randn(300, 5, generator=rng) + torch.nn.functional.one_hot(held_labels, 5)
    found = measured(logits, labels, held, held_labels)
    losses = [
        torch.nn.functional.cross_entropy(rows.double(), of, reduction="none").numpy()
        for rows, of in ((logits, labels), (held, held_labels))
    ]
    truth = np.repeat([1, 0], [150, 300])
    auc = found["membership_auc"]
    assert auc.value == pytest.approx(roc_auc_score(truth, -np.concatenate(losses)), abs=1e-12)
    assert auc.low < auc.value < auc.high
    assert np.mean(list(auc.by_identity.values())) == pytest.approx(auc.value)  # people with equally many images
    # At most 3 of 300 others pass: the rate is the share of training images below the fourth-smallest other loss.
    limit = np.sort(losses[1])[3]
    rate = found["membership_tpr@FPR=1e-2"]
    assert rate.value == pytest.approx((losses[0] < limit).mean())
    assert 0.01 < rate.value < 1


def test_resampling_people_is_what_the_interval_does() -> None:
    rng = torch.Generator().manual_seed(1)
    labels, held_labels = torch.arange(40) % 4, torch.arange(24) % 4
    logits = torch.randn(40, 4, generator=rng) + labels[:, None] * torch.nn.functional.one_hot(labels, 4)
    held = torch.randn(24, 4, generator=rng)
    auc = measured(logits, labels, held, held_labels)["membership_auc"]
    draws = np.random.default_rng(7)
    scores = [
        rows.double().log_softmax(1)[range(len(of)), of].numpy() for rows, of in ((logits, labels), (held, held_labels))
    ]
    areas = []
    for _ in range(400):
        identities = draws.integers(0, 4, 4)
        mine, theirs = (np.concatenate([s[of.numpy() == p] for p in identities])
                        for s, of in zip(scores, (labels, held_labels), strict=True))  # fmt: skip
        areas.append(roc_auc_score(np.repeat([1, 0], [len(mine), len(theirs)]), np.concatenate([mine, theirs])))
    low, high = np.percentile(areas, [2.5, 97.5])
    assert auc.low == pytest.approx(low, abs=0.03)
    assert auc.high == pytest.approx(high, abs=0.03)


def test_people_in_one_set_alone_are_left_out() -> None:
    labels, held_labels = torch.tensor([0, 1]), torch.tensor([0, 2])
    logits = torch.zeros(2, 3)
    assert measured(logits, labels, logits, held_labels)["membership_auc"].images == 1
    alone = measured(logits[:1], torch.tensor([1]), logits, held_labels)["membership_auc"]
    assert math.isnan(alone.value)
    assert "no person" in alone.note


def test_too_few_others_cannot_tell_the_rate() -> None:
    zeros = torch.zeros(2, dtype=torch.int64)
    rate = measured(pair([3, 1]), zeros, pair([1, 2]), zeros)["membership_tpr@FPR=1e-2"]
    assert math.isnan(rate.value)
    assert "it takes 100 images" in rate.note


def test_numbers_that_are_none_are_told() -> None:
    labels = torch.tensor([0])
    with pytest.raises(ValueError, match="not finite"):
        membership(torch.tensor([[math.nan, 0.0]]), labels, torch.zeros(1, 2), labels)
    with pytest.raises(ValueError, match="held_logits"):
        membership(torch.zeros(1, 2), labels, torch.zeros(2, 2), labels)
