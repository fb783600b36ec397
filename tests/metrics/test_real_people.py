"""Attributes, enrolment and false accepts, by hand."""

import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from calor_hf.metrics.attributes import base_rates, guessed_right
from calor_hf.metrics.enrolment import enrolment
from calor_hf.metrics.false_accepts import false_accepts, threshold


def test_attributes_are_guessed_by_the_mean_of_what_was_rebuilt() -> None:
    # Class 0: means 0.2 and -0.1 against a person of (+, +); class 3: means 0 and 0.5 against (-, +).
    rebuilt = torch.tensor([[0.9, -0.4], [-0.5, 0.2], [0.5, 0.4], [-0.5, 0.6]])
    truth = torch.tensor([[0.3, 0.7], [0.3, 0.7], [-0.2, 0.1], [-0.2, 0.1]])
    found = guessed_right(rebuilt, truth, torch.tensor([0, 0, 3, 3]))
    assert {label: row.tolist() for label, row in found.items()} == {0: [1.0, 0.0], 3: [0.5, 1.0]}
    people = torch.tensor([[0.1, -1.0], [0.2, -1.0], [0.3, 1.0], [-0.1, -0.5]])
    assert base_rates(people).tolist() == [0.75, 0.75]


def test_enrolment_is_the_area_with_its_interval_over_people_of_both_groups() -> None:
    # Pairs: 3 beats 1 and 2, 2 beats 1 and ties with 2: 3.5 of 4.
    one = enrolment(
        (torch.tensor([3.0, 2.0]), torch.tensor([0, 1])), (torch.tensor([1.0, 2.0]), torch.tensor([7, 9])), "decoys", ""
    )
    assert (one.name, one.value, one.by_identity) == ("enrolment_auc/decoys", 3.5 / 4, {0: 1.0, 1: 0.75})
    rng = torch.Generator().manual_seed(0)
    scores, others = torch.randn(60, generator=rng), torch.randn(120, generator=rng)
    same = enrolment((scores, torch.arange(60) // 3), (others, torch.arange(120) // 2), "strangers", "")
    truth = torch.cat([torch.ones(60), torch.zeros(120)])
    assert same.value == pytest.approx(roc_auc_score(truth, torch.cat([scores, others])))
    assert same.low < 0.5 < same.high
    assert math.isnan(enrolment((scores, torch.zeros(60).long()), (others, torch.arange(120)), "a", "").low)


def test_the_threshold_accepts_nineteen_of_twenty_private_images() -> None:
    private = torch.arange(20).double()
    assert threshold(private) == 1  # 1, …, 19 reach it
    people = torch.tensor([4, 4, 6, 6])
    found = false_accepts(private, torch.tensor([0.5, 1.0, 2.0, 30.0]).double(), people, "decoys", "decoys")
    assert (found.name, found.value, found.by_identity) == ("false_accepts/decoys", 0.75, {4: 0.5, 6: 1.0})
    assert "95 % of 20 test images" in found.note
    assert threshold(torch.tensor([2.0])) == 2.0
