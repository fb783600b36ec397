"""Mode ranking: values by hand."""

import math

import pytest
import torch

from calor_hf.metrics.mode_ranking import mode_ranking


def test_the_private_identity_is_ranked_by_the_mean_of_its_images() -> None:
    # Class 0: means 3 and 2; class 1: 1 and 4; class 2: a tie. Private are the places 0, 0 and 1.
    scores = torch.tensor([1.0, 2.0, 5.0, 2.0, 1.0, 4.0, 1.0, 4.0, 7.0, 7.0, 7.0, 7.0])
    labels = torch.arange(3).repeat_interleave(4)
    found = mode_ranking(scores, labels, torch.tensor([0, 0, 1]), 2)
    assert found.by_identity == {0: 1.0, 1: 0.0, 2: 0.5}
    assert found.value == 0.5
    sure = mode_ranking(scores[:4].repeat(10), torch.arange(10).repeat_interleave(4), torch.zeros(10), 2)
    assert (sure.value, sure.high) == (1, 1)
    assert sure.low == pytest.approx(0.025 ** (1 / 10))  # Clopper-Pearson of ten in ten
    few = mode_ranking(scores[:3], torch.arange(3), torch.tensor([0, 0, 1]), 2)
    assert math.isnan(few.value)
    assert "rebuild 2 or more" in few.note
