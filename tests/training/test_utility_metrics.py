import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from calor_hf.core.calibration import calibration_error
from calor_hf.heads.chunked_scores import margins
from calor_hf.training.metrics import classification_metrics, true_class_confidence


def test_values_worked_out_by_hand() -> None:
    # p = (3/4, 1/4) with label 0; p = (1/4, 3/4) with label 0 (wrong).
    logits = np.log([[3.0, 1.0], [1.0, 3.0]])
    prediction = SimpleNamespace(predictions=logits, label_ids=np.array([0, 0]))
    found = classification_metrics(prediction)
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    assert found["confidence"] == pytest.approx(0.5)
    assert found["confidence_correct"] == pytest.approx(0.75)
    assert found["ece"] == pytest.approx(0.25)  # one bin: mean score 3/4, accuracy 1/2
    np.testing.assert_allclose(true_class_confidence(prediction), [0.75, 0.25])


def test_first_of_a_tuple_counts_and_large_logits_stay_finite() -> None:
    logits = np.array([[1e4, -1e4], [0.0, 0.0]], dtype=np.float32)
    found = classification_metrics(SimpleNamespace(predictions=(logits, logits), label_ids=np.array([0, 0])))
    assert all(math.isfinite(value) for value in found.values())


def test_scores_that_are_not_finite_are_refused() -> None:
    logits = np.array([[math.nan, 0.0], [1.0, 0.0], [math.inf, 0.0]])
    with pytest.raises(FloatingPointError, match="the scores of 2 of 3 images are not finite"):
        classification_metrics(SimpleNamespace(predictions=logits, label_ids=np.array([0, 0, 0])))


def test_no_correct_sample_gives_nan_not_a_number_made_up() -> None:
    prediction = SimpleNamespace(predictions=np.array([[0.0, 5.0]]), label_ids=np.array([0]))
    assert math.isnan(classification_metrics(prediction)["confidence_correct"])


def test_calibration_error_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    scores, correct = rng.uniform(0, 1, 1000), rng.random(1000) < 0.6
    expected = binary_calibration_error(torch.from_numpy(scores), torch.from_numpy(correct).long(), n_bins=15)
    assert calibration_error(scores, correct) == pytest.approx(expected.item(), abs=1e-6)


def test_a_score_between_two_bins_belongs_to_the_lower() -> None:
    # (0, 1/2]: scores 1/2 and 1/10, one right: |1/2 − 3/10|; (1/2, 1]: score 1, right: 0. Weighted 2/3 and 1/3.
    found = calibration_error(np.array([0.5, 0.1, 1.0]), np.array([True, False, True]), bins=2)
    assert found == pytest.approx(2 / 3 * 0.2)


def test_log_odds_give_the_metrics_of_their_logits() -> None:
    logits = torch.randn(50, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(50) % 7
    found = {name: value.numpy() for name, value in margins(logits, labels).items()}
    from_margins = classification_metrics(SimpleNamespace(predictions=found, label_ids=labels.numpy()))
    from_logits = classification_metrics(SimpleNamespace(predictions=logits.numpy(), label_ids=labels.numpy()))
    assert from_margins == pytest.approx(from_logits, rel=1e-12)
    assert 0 < from_margins["accuracy"] < 1
