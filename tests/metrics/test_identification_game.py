"""Identification game: values by hand."""

import dataclasses

import pytest
import torch

from calor_hf.metrics import METRICS, Evidence, View
from calor_hf.metrics.identification_game import log_odds, submitted


def flat(*levels: float) -> torch.Tensor:
    """Images of one gray each."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 2, 2)


def test_the_surest_comes_first_and_an_image_counts_once() -> None:
    images = flat(0.1, 0.5, 0.11, 0.9, 0.5)
    assert submitted(images, torch.tensor([1.0, 3.0, 2.0, 0.0, 3.0])) == [1, 2, 3]  # 4 repeats 1, and 0 is like 2
    assert submitted(flat(*torch.linspace(0, 1, 20)), torch.zeros(20)) == list(range(8))  # all alike sure: as they come


def test_log_odds_do_not_saturate() -> None:
    logits = torch.tensor([[200.0, 0.0], [300.0, 0.0], [1.0, 0.0]])
    assert log_odds(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [200, 300, 1]
    three = torch.tensor([[0.0, 0.0, 0.0]])
    assert log_odds(three, torch.tensor([1])).item() == pytest.approx(-0.6931472)  # 1 to 2


def test_the_attacker_chooses_and_not_the_evaluation_model() -> None:
    # Person 0: recognized in the second surest image; person 1: in the surest; person 2: in the third.
    right = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0, 1])
    sure = torch.tensor([9.0, 8.0, 7.0, 9.0, 8.0, 7.0, 9.0, 8.0, 7.0])
    labels = torch.arange(3).repeat_interleave(3)
    seen = torch.where(right > 0, labels, (labels + 1) % 3)
    logits = torch.nn.functional.one_hot(seen, 3).float()
    view = View("net", logits, logits[:3], logits, logits[:3])
    images = flat(*torch.linspace(0, 1, 9))
    evidence = Evidence(images, labels, images[:3], torch.arange(3), evaluation_model=view, attacker_scores=sure)
    found = {one.name: one for one in METRICS.get("identification_game")().measure(evidence)}
    assert list(found) == ["best_guess/evaluation_model", "guesses@2/evaluation_model"]  # three images: no four guesses
    assert found["best_guess/evaluation_model"].by_identity == {0: 0, 1: 1, 2: 0}
    assert found["guesses@2/evaluation_model"].by_identity == {0: 1, 1: 1, 2: 0}
    without = dataclasses.replace(view, logits=None)
    with pytest.raises(ValueError, match="no network recognizes people"):
        METRICS.get("identification_game")().measure(dataclasses.replace(evidence, evaluation_model=without))
