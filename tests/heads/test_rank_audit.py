"""Ranks of heads against NumPy's, on heads of known rank."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calor_hf import CALoRForImageClassification, DefendedForImageClassification
from calor_hf.heads.rank_audit import LayerRank, RankAudit, matrix_rank, rank_audit
from tests.tiny_models import FEATURES, HEAD_PATHS, KINDS, TWO_HEADS, tiny_base


class Bare(nn.Module):
    """A head where a defended model has its own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.classification_head = head


def audit(head: nn.Module) -> Any:
    model: Any = Bare(head)
    return rank_audit(model)


def of_rank(rows: int, columns: int, rank: int) -> Tensor:
    """Random (rows, columns) float32 matrix of small whole numbers, so that its rank is exact."""
    left = torch.randint(-3, 4, (rows, rank)).float()
    right = torch.randint(-3, 4, (rank, columns)).float()
    while np.linalg.matrix_rank((left @ right).double().numpy()) < rank:
        left, right = torch.randint(-3, 4, (rows, rank)).float(), torch.randint(-3, 4, (rank, columns)).float()
    return left @ right


def weights_of(head: nn.Module) -> list[Any]:
    return [
        m.weight.detach().double().flatten(1).numpy() for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d)
    ]


def fill(layer: Any, weight: Tensor) -> None:
    with torch.no_grad():
        layer.weight.copy_(weight)


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


@pytest.mark.parametrize(
    ("weight", "rank"),
    [
        ([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], 1),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 2),
        ([[1.0, 2.0], [3.0, 4.0], [4.0, 6.0]], 2),
        ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]], 2),
        ([[0.0, 0.0], [0.0, 0.0]], 0),
        # The tolerance is σ_max · 2 · 2.2e-16 = 4.4e-16.
        ([[1.0, 0.0], [0.0, 1e-15]], 2),
        ([[1.0, 0.0], [0.0, 1e-16]], 1),
    ],
)
def test_ranks_by_hand(weight: list[list[float]], rank: int) -> None:
    matrix = torch.tensor(weight, dtype=torch.float64)
    assert matrix_rank(matrix) == rank
    assert np.linalg.matrix_rank(matrix.numpy()) == rank


@pytest.mark.parametrize(("rows", "columns"), [(10, 16), (16, 10), (12, 12), (1, 9)])
def test_ranks_are_numpys(rows: int, columns: int) -> None:
    for rank in range(1, min(rows, columns) + 1):
        weight = of_rank(rows, columns, rank).double()
        assert matrix_rank(weight) == np.linalg.matrix_rank(weight.numpy()) == rank
        noisy = weight + 1e-9 * torch.randn(rows, columns, dtype=torch.float64)
        assert matrix_rank(noisy) == np.linalg.matrix_rank(noisy.numpy()) == min(rows, columns)
    rough = torch.randn(rows, 3, dtype=torch.float64) @ torch.randn(3, columns, dtype=torch.float64)
    assert matrix_rank(rough) == np.linalg.matrix_rank(rough.numpy()) == min(3, rows)


def test_free_dimensions_are_those_a_layer_does_not_see() -> None:
    assert LayerRank("head", 512, 530, 30).free_dimensions == 482
    assert LayerRank("head", 16, 10, 10).free_dimensions == 6
    assert LayerRank("head", 16, 16, 16).free_dimensions == 0


@pytest.mark.parametrize("rank", [0, 1, 4, 10])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_deficient_classifier_is_found_out(kind: str, rank: int) -> None:
    base = tiny_base(kind)
    classifier = base.get_submodule(HEAD_PATHS[kind])
    fill(classifier, of_rank(10, 16, rank) if rank else torch.zeros(10, 16))
    assert np.linalg.matrix_rank(weights_of(classifier)[0]) == rank
    found = rank_audit(base)
    assert (found.head_rank, found.layers[0].rank, found.layers[0].free_dimensions) == (rank, rank, 16 - rank)
    defended = rank_audit(DefendedForImageClassification.from_base(base, "none"))
    assert defended.layers == (LayerRank("classification_head.classifier", 16, 10, rank),)
    assert defended.head_rank == rank


@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_low_rank_heads_have_their_rank(kind: str, rank: int) -> None:
    expected = (
        LayerRank("classification_head.down", FEATURES[kind], rank, rank),
        LayerRank("classification_head.up", rank, 10, rank),
    )
    calor = CALoRForImageClassification.from_base(tiny_base(kind), rank=rank)
    loft = DefendedForImageClassification.from_base(tiny_base(kind), "loft", rank=rank)
    for model in (calor, loft):
        found = rank_audit(model)
        assert found == RankAudit(expected, rank)
        assert found.layers[0].free_dimensions == FEATURES[kind] - rank
        down, up = weights_of(model.classification_head)
        assert np.linalg.matrix_rank(up @ down) == rank


@pytest.mark.parametrize(
    "settings", [{"input_norm": "batchnorm"}, {"bias": False}, {"activation": "identity"}], ids=str
)
def test_only_linear_layers_count(settings: dict[str, Any]) -> None:
    model = DefendedForImageClassification.from_base(tiny_base("vit"), "loft", rank=3, **settings)
    assert str(rank_audit(model)) == "3 (16→3: 3, 3→10: 3)"


def test_layers_that_miss_each_other_let_nothing_through() -> None:
    model = DefendedForImageClassification.from_base(tiny_base("vit"), "loft", rank=3)
    down, up = torch.zeros(3, 16), torch.zeros(10, 3)
    down[0, 0] = down[1, 1] = 1.0  # the code is (x0, x1, 0)
    up[:, 2] = 1.0  # the scores read only what is always 0
    fill(model.classification_head.down, down)
    fill(model.classification_head.up, up)
    found = rank_audit(model)
    assert [(layer.rank, layer.free_dimensions) for layer in found.layers] == [(2, 14), (1, 2)]
    assert found.head_rank == 0


@pytest.mark.parametrize(("features", "labels"), [(16, 10), (16, 4), (32, 20)])
def test_mid_reads_all_features_and_its_code_limits_the_scores(features: int, labels: int) -> None:
    # Encoder m → 2 ⌊m/2⌋ with full rank; decoder ⌊m/2⌋ → N. They do not follow one another, so the smallest counts.
    kind = "dinov2" if features == 32 else "vit"
    model = DefendedForImageClassification.from_base(tiny_base(kind, labels), "mid")
    found = rank_audit(model)
    half = features // 2
    assert found.layers == (
        LayerRank("classification_head.encoder", features, features, features),
        LayerRank("classification_head.decoder", half, labels, min(half, labels)),
    )
    assert found.head_rank == min(half, labels)
    fill(model.classification_head.encoder, of_rank(features, features, 2))
    assert rank_audit(model).head_rank == 2


@pytest.mark.parametrize("class_name", TWO_HEADS)
def test_two_heads_with_different_ranks(class_name: str) -> None:
    base = tiny_base(class_name)
    stock = rank_audit(base)
    assert len(stock.layers) == 2
    assert stock.head_rank == 10
    fill(base.get_submodule(stock.layers[0].name), of_rank(10, stock.layers[0].in_features, 2))
    assert [layer.rank for layer in rank_audit(base).layers] == [2, 10]
    assert rank_audit(base).head_rank == 10
    fill(base.get_submodule(stock.layers[1].name), of_rank(10, stock.layers[1].in_features, 5))
    assert rank_audit(base).head_rank == 5

    defended = rank_audit(DefendedForImageClassification.from_base(base, "loft", rank=3))
    assert [layer.name for layer in defended.layers] == [
        f"classification_head.heads.{head}.{layer}" for head in (0, 1) for layer in ("down", "up")
    ]
    assert [layer.rank for layer in defended.layers] == [3] * 4
    assert defended.head_rank == 3


def test_a_convolution_as_classifier_counts_like_a_linear_layer() -> None:
    model = DefendedForImageClassification.from_base(tiny_base("vit"), "none")
    convolution = nn.Conv2d(16, 10, 1)
    with torch.no_grad():
        convolution.weight.copy_(of_rank(10, 16, 4)[..., None, None])
    model.classification_head.classifier = convolution
    assert str(rank_audit(model)) == "4 (16→10: 4)"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_ranks_are_counted_in_float64(dtype: torch.dtype) -> None:
    base = tiny_base("vit")
    fill(base.classifier, of_rank(10, 16, 2))  # small whole numbers: exact in every format
    assert rank_audit(base.to(dtype)).head_rank == 2


def test_the_model_is_left_as_it_was() -> None:
    model = DefendedForImageClassification.from_base(tiny_base("vit"), "loft", rank=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rank_audit(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_a_classifier_is_refused() -> None:
    base = DefendedForImageClassification.from_base(tiny_base("vit"), "none").backbone
    with pytest.raises(
        ValueError, match="no linear layer in the head of ViTForImageClassification: it has no classifier"
    ):
        rank_audit(base)
