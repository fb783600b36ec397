"""Accuracy, likelihood, calibration and thresholds of a model, by hand."""

import math

import pytest
import torch
from torch import Tensor

from calor_hf.metrics.utility import THRESHOLDS, utility


def logits_of(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_numbers_by_hand() -> None:
    # Three images of two people; the first two right with 0.96 and 0.6, the third wrong with 0.9.
    logits = logits_of([[0.96, 0.04], [0.4, 0.6], [0.9, 0.1]])
    found = {measure.name: measure for measure in utility(logits, torch.tensor([0, 1, 1]))}
    assert found["accuracy"].value == pytest.approx(2 / 3)
    assert found["accuracy"].by_identity == {0: 1.0, 1: 0.5}
    assert found["nll"].value == pytest.approx(-(math.log(0.96) + math.log(0.6) + math.log(0.1)) / 3)
    assert found["confidence"].value == pytest.approx((0.96 + 0.6 + 0.1) / 3)
    # Each image is alone in its bin: |1 − 0.96|, |1 − 0.6|, |0 − 0.9|.
    assert found["calibration_error"].value == pytest.approx((0.04 + 0.4 + 0.9) / 3)
    assert found["accepted@0.5"].value == 1
    assert found["wrong@0.5"].value == pytest.approx(1 / 3)
    assert found["accepted@0.85"].value == pytest.approx(2 / 3)
    assert found["wrong@0.85"].value == pytest.approx(1 / 2)
    assert found["accepted@0.95"].value == pytest.approx(1 / 3)
    assert found["wrong@0.95"].value == 0
    assert found["accepted@0.99"].value == 0
    assert math.isnan(found["wrong@0.99"].value)
    assert found["wrong@0.99"].note
    assert all(math.isnan(measure.std) for measure in found.values())
    assert len(found) == 4 + 2 * len(THRESHOLDS)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "n >= 1"),
        (torch.zeros(2, 2), torch.tensor([0]), "2 rows|1 rows"),
        (torch.tensor([[math.nan, 0.0]]), torch.tensor([0]), "not finite"),
        (torch.zeros(1, 2), torch.tensor([2]), "label 2"),
    ],
)
def test_what_is_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        utility(logits, labels)


def test_one_picture_has_no_interval() -> None:
    found = {measure.name: measure for measure in utility(logits_of([[0.7, 0.3]]), torch.tensor([0]))}
    assert found["accuracy"].value == 1
    assert math.isnan(found["accuracy"].low)
