"""The low-rank head: its value, size, precision and refusals."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from calor_hf.heads.low_rank_head import ACTIVATIONS, LowRankHead, check_head, default_rank


def count(head: nn.Module) -> int:
    return sum(parameter.numel() for parameter in head.parameters())


def straight(width: int, activation: str = "tanh") -> LowRankHead:
    """Head whose layers are the identity matrix."""
    head = LowRankHead(width, width, width, activation, bias=False)
    with torch.no_grad():
        head.down.weight.copy_(torch.eye(width))
        head.up.weight.copy_(torch.eye(width))
    return head


def test_forward_matches_hand_computed_value() -> None:
    head = LowRankHead(2, 2, 1)
    with torch.no_grad():
        head.down.weight.copy_(torch.tensor([[1.0, 2.0]]))
        head.down.bias.fill_(0.5)
        head.up.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        head.up.bias.copy_(torch.tensor([0.0, 1.0]))
    features = torch.tensor([[1.0, -0.5]])
    # 1 - 1 + 0.5 = 0.5; tanh(0.5) = 0.462117; logits 2 · 0.462117 and 1 - 0.462117.
    assert head.code(features).tolist() == [[pytest.approx(0.462117, abs=1e-6)]]
    assert head(features).tolist() == [[pytest.approx(0.924234, abs=1e-6), pytest.approx(0.537883, abs=1e-6)]]


@pytest.mark.parametrize(
    ("activation", "code"),
    [
        ("tanh", [math.tanh(-2), math.tanh(1)]),
        ("identity", [-2, 1]),
        ("relu", [0, 1]),
        ("sigmoid", [1 / (1 + math.e**2), 1 / (1 + math.e**-1)]),
    ],
)
def test_code_passes_the_activation(activation: str, code: list[float]) -> None:
    assert straight(2, activation).code(torch.tensor([[-2.0, 1.0]]))[0].tolist() == pytest.approx(code)


def test_every_activation_is_tested() -> None:
    assert set(ACTIVATIONS) == {"tanh", "identity", "relu", "sigmoid"}


def test_parameter_count() -> None:
    # r (m + N) + r + N
    assert count(LowRankHead(512, 530, 30)) == 31_820
    assert count(LowRankHead(512, 530, 30, bias=False)) == 30 * (512 + 530)
    assert count(LowRankHead(512, 530, 30, input_norm="batchnorm")) == 31_820 + 2 * 512


def test_composed_map_has_the_rank() -> None:
    head = LowRankHead(12, 10, 3).double()
    assert torch.linalg.matrix_rank(head.up.weight @ head.down.weight) == 3
    scores = head(torch.randn(50, 12, dtype=torch.float64)) - head.up.bias
    assert torch.linalg.matrix_rank(scores, rtol=1e-10) == 3


def test_without_bias_zero_stays_zero() -> None:
    head = LowRankHead(6, 5, 2, bias=False)
    assert [name for name, _ in head.named_parameters()] == ["down.weight", "up.weight"]
    assert torch.equal(head(torch.zeros(3, 6)), torch.zeros(3, 5))


def test_batchnorm_takes_out_center_and_spread() -> None:
    plain, normed = LowRankHead(6, 5, 2), LowRankHead(6, 5, 2, input_norm="batchnorm")
    normed.load_state_dict(plain.state_dict(), strict=False)
    assert normed.norm is not None
    features = torch.randn(32, 6)
    whitened = (features - features.mean(0)) / (features.var(0, unbiased=False) + normed.norm.eps).sqrt()
    torch.testing.assert_close(normed(100 + 50 * features), plain(whitened), atol=1e-4, rtol=1e-4)


def test_batchnorm_takes_a_batch_of_one_by_the_running_statistics() -> None:
    head = LowRankHead(6, 5, 2, input_norm="batchnorm")
    head(3 + torch.randn(32, 6))
    before, feature = {name: value.clone() for name, value in head.state_dict().items()}, torch.randn(1, 6)
    scores = head(feature)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    torch.testing.assert_close(scores, head.eval()(feature))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("input_norm", [None, "batchnorm"])
def test_scores_are_float32_for_any_features(dtype: torch.dtype, input_norm: str | None) -> None:
    head = LowRankHead(6, 5, 2, input_norm=input_norm).eval()
    features = torch.randn(3, 6).to(dtype)
    scores = head(features)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, head(features.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(features), scores)
        code = head.code(features)
    assert code.dtype == torch.float32
    assert torch.equal(code, head.code(features))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_still_compute_in_float32(dtype: torch.dtype) -> None:
    head = LowRankHead(6, 5, 2)
    rounded = LowRankHead(6, 5, 2)
    rounded.load_state_dict({name: value.to(dtype).float() for name, value in head.state_dict().items()})
    features = torch.randn(3, 6)
    scores = head.to(dtype)(features.to(dtype))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, rounded(features.to(dtype).float()))


def test_float64_stays_float64() -> None:
    head = LowRankHead(6, 5, 2).double()
    assert head(torch.randn(3, 6, dtype=torch.float64)).dtype == torch.float64


def test_gradient_of_saturated_codes_survives_autocast() -> None:
    def slope(head: nn.Module) -> Tensor:
        features = torch.tensor([[4.0, -4.0]], requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = head(features)
        scores.sum().backward()
        assert features.grad is not None
        return features.grad

    ours = straight(2)
    ordinary = nn.Sequential(ours.down, nn.Tanh(), ours.up)
    # 1 - tanh(4)² = 0.001341; in bfloat16 tanh(4) is 1, so nothing is left.
    assert slope(ours).tolist() == [pytest.approx([0.001341, 0.001341], rel=1e-3)]
    assert slope(ordinary).tolist() == [[0.0, 0.0]]


def test_reset_parameters_is_a_fresh_start() -> None:
    head = LowRankHead(6, 5, 2, input_norm="batchnorm")
    before = copy.deepcopy(head.state_dict())
    head(torch.randn(8, 6))  # moves the running statistics
    head.reset_parameters()
    after = head.state_dict()
    for layer in ("down", "up"):  # torch's default for a linear layer: uniform within 1 / √inputs
        assert not torch.equal(after[f"{layer}.weight"], before[f"{layer}.weight"])
        assert after[f"{layer}.weight"].abs().max() <= after[f"{layer}.weight"].shape[1] ** -0.5
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("norm."))


def test_print_shows_the_activation() -> None:
    assert "activation=sigmoid" in repr(LowRankHead(6, 5, 2, "sigmoid"))


@pytest.mark.parametrize("rank", [0, -1, 6, True, 2.0, "2", None])
def test_impossible_ranks_are_refused(rank: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"rank must be a whole number between 1 and 5 \(the smaller of 8 features and 5 classes\), got {rank!r}",
    ):
        LowRankHead(8, 5, rank)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'gelu'; pass one of tanh, identity, relu, sigmoid"):
        LowRankHead(8, 5, 2, activation="gelu")
    with pytest.raises(ValueError, match="unknown input_norm 'layernorm'; pass None or 'batchnorm'"):
        LowRankHead(8, 5, 2, input_norm="layernorm")


def test_check_head_lets_good_heads_through() -> None:
    for rank in (1, 5):
        check_head(8, 5, rank)
        check_head(5, 8, rank, "relu", "batchnorm")


@pytest.mark.parametrize(
    ("features", "classes", "rank"),
    [(512, 530, 32), (2048, 530, 32), (512, 100, 25), (64, 50, 12), (512, 10, 2), (512, 3, 1), (2, 1000, 1), (8, 8, 2)],
)
def test_default_rank(features: int, classes: int, rank: int) -> None:
    assert default_rank(features, classes) == rank
