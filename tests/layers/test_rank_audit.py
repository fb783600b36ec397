"""Ranks of heads against NumPy's, on heads of known rank."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calor_hf import CALoRForImageClassification, DefendedForImageClassification
from calor_hf.layers.rank_audit import rank_audit
from tests.tiny_models import FEATURES, KINDS, tiny_base


class Bare(nn.Module):
    """A head where a defended model has its own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.classification_head = head


def audit(head: nn.Module) -> Any:
    model: Any = Bare(head)
    return rank_audit(model)


@pytest.mark.parametrize("rank", [0, 1, 5, 12])
def test_rank_deficient_layer(rank: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(20, 12)
    with torch.no_grad():
        # Products of whole numbers are exact, so that the rank survives float32.
        layer.weight.copy_(torch.randint(-3, 4, (12, rank)).float() @ torch.randint(-3, 4, (rank, 20)).float())
    expected = int(np.linalg.matrix_rank(layer.weight.detach().numpy().astype(np.float64)))
    found = audit(layer)
    assert expected == rank
    assert found.head_rank == found.layers[0].rank == expected
    assert (found.layers[0].in_features, found.layers[0].out_features) == (20, 12)
    assert found.layers[0].free_dimensions == 20 - rank


def test_rank_of_the_product_can_be_less_than_that_of_any_layer() -> None:
    # The first layer gives coordinates 0 to 2, the second reads 1 to 3: two are left.
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.diag(torch.tensor([1.0, 1, 1, 0])))
        second.weight.copy_(torch.diag(torch.tensor([0.0, 1, 1, 1])))
    found = audit(nn.Sequential(first, nn.Tanh(), second))
    assert [layer.rank for layer in found.layers] == [3, 3]
    assert found.head_rank == 2


@pytest.mark.parametrize("kind", KINDS)
def test_stock_model_and_low_rank_head(kind: str) -> None:
    full = min(FEATURES[kind], 10)
    assert rank_audit(tiny_base(kind)).head_rank == full
    kept = rank_audit(DefendedForImageClassification.from_base(tiny_base(kind), "label_smoothing"))
    assert kept.head_rank == full
    found = rank_audit(CALoRForImageClassification.from_base(tiny_base(kind), rank=3))
    assert [layer.name for layer in found.layers] == ["classification_head.down", "classification_head.up"]
    assert [(layer.in_features, layer.out_features, layer.rank) for layer in found.layers] == [
        (FEATURES[kind], 3, 3), (3, 10, 3),
    ]  # fmt: skip
    assert found.head_rank == 3
    assert str(found) == f"3 ({FEATURES[kind]}→3: 3, 3→10: 3)"


def test_bottleneck_of_mid_halves_the_width() -> None:
    # Table 19 of the paper: 512 features, 256 in front of the scores. Here 16 and 8; the encoder gives mean and spread.
    found = rank_audit(DefendedForImageClassification.from_base(tiny_base("vit"), "mid"))
    assert [(layer.in_features, layer.out_features) for layer in found.layers] == [(16, 16), (8, 10)]
    assert found.head_rank == 8


def test_of_two_heads_the_larger_rank_counts() -> None:
    model = CALoRForImageClassification.from_base(tiny_base("DeiTForImageClassificationWithTeacher"), rank=2)
    found = rank_audit(model)
    assert len(found.layers) == 4
    assert found.layers[2].name == "classification_head.heads.1.down"
    assert found.head_rank == 2


def test_head_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear layer in the head of Bare"):
        audit(nn.Identity())
