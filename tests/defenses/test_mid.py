"""MID: the divergence against the sum written out, the head, its noise."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.mid import MID, BottleneckHead, MIDConfig, kl_to_standard_normal
from calor_hf.heads.classifier_head import MeanOfHeads

END = Progress.at_end("fit")


def sigma_of(raw: float) -> float:
    """softplus(raw − 5) in Python's float64, with no overflow and no underflow."""
    x = raw - 5
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def literal_kl(mean: Tensor, sigma: list[list[float]]) -> float:
    """Mean over the batch of Σ −½ (1 + 2 log σ − μ² − σ²)."""
    total = 0.0
    for means, sigmas in zip(mean.tolist(), sigma, strict=True):
        for m, s in zip(means, sigmas, strict=True):
            total += -0.5 * (1 + 2 * math.log(s) - m**2 - s**2)
    return total / len(mean)


def straight(width: int = 2) -> BottleneckHead:
    """Head whose encoder hands its inputs through: the first half means, the second raw spreads."""
    head = BottleneckHead(2 * width, width)
    with torch.no_grad():
        head.encoder.weight.copy_(torch.eye(2 * width))
        head.encoder.bias.zero_()
        head.decoder.weight.copy_(torch.eye(width))
        head.decoder.bias.zero_()
    return head


def test_kl_matches_hand_computed_value() -> None:
    # μ = 2, σ = 1: −½ (1 + 0 − 4 − 1) = 2;  μ = 0, σ = e: −½ (1 + 2 − 0 − e²) = 2.194528; they add up in one row.
    one = kl_to_standard_normal(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    assert one.item() == pytest.approx(4.194528, abs=1e-5)
    # A second, standard normal row halves the mean.
    two = kl_to_standard_normal(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert two.item() == pytest.approx(2.097264, abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("width", [1, 7, 256])
def test_kl_is_the_sum_written_out(width: int, scale: float) -> None:
    mean, log_std = scale * torch.randn(6, width), -2 + scale * torch.randn(6, width)
    sigma = [[math.exp(value) for value in row] for row in log_std.tolist()]
    assert kl_to_standard_normal(mean, log_std).item() == pytest.approx(literal_kl(mean, sigma), rel=1e-6)
    double = kl_to_standard_normal(mean.double(), log_std.double())
    assert double.dtype == torch.float64
    assert double.item() == pytest.approx(literal_kl(mean, sigma), rel=1e-12)


@pytest.mark.parametrize("raw", [-100.0, -60.0, -10.001, -10.0, -9.999, 0.0, 5.0, 12.0, 30.0])
def test_extreme_spreads_have_the_exact_divergence_and_gradient(raw: float) -> None:
    features = torch.tensor([[0.5, -1.0, raw, 0.25 * raw]], requires_grad=True)
    head = straight()
    mean, log_std = head.encode(features)
    assert log_std.exp()[0].tolist() == pytest.approx([sigma_of(raw), sigma_of(0.25 * raw)], rel=1e-5)
    kl = kl_to_standard_normal(mean, log_std)
    sigma = [[sigma_of(raw), sigma_of(0.25 * raw)]]
    assert kl.item() == pytest.approx(literal_kl(features[:, :2], sigma), rel=1e-6)
    kl.backward()
    assert features.grad is not None
    # d/dμ = μ;  d/draw = (σ − 1/σ) σ'(raw), with σ' = sigmoid(raw − 5).
    slopes = []
    for value, s in zip((raw, 0.25 * raw), sigma[0], strict=True):
        slopes.append((s - 1 / s) / (1 + math.exp(5 - value)))
    assert features.grad[0].tolist() == pytest.approx([0.5, -1.0, *slopes], rel=1e-5)


def test_random_extreme_spreads_are_finite() -> None:
    torch.manual_seed(1)
    raw = torch.empty(50, 8).uniform_(-100, 30)
    features = torch.cat([torch.randn(50, 8), raw], dim=1).requires_grad_()
    head = straight(8)
    mean, log_std = head.encode(features)
    sigma = [[sigma_of(value) for value in row] for row in raw.tolist()]
    kl = kl_to_standard_normal(mean, log_std)
    assert kl.item() == pytest.approx(literal_kl(features[:, :8], sigma), rel=1e-6)
    (kl + head.decode(mean, log_std).sum()).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(("features", "width"), [(2, 1), (3, 1), (5, 2), (512, 256), (513, 256)])
def test_the_code_is_half_as_wide_as_the_features(features: int, width: int) -> None:
    head = MID(MIDConfig()).build_head(features, 7)
    assert (head.encoder.in_features, head.encoder.out_features) == (features, 2 * width)
    assert (head.decoder.in_features, head.decoder.out_features) == (width, 7)
    assert head.last_layer is head.decoder
    x = torch.randn(3, features)
    scores, extras = MID(MIDConfig()).run_head(head, x)
    assert scores.shape == (3, 7)
    assert {name: tuple(value.shape) for name, value in extras.items()} == {"mean": (3, width), "log_std": (3, width)}
    s = x.double() @ head.encoder.weight.double().T + head.encoder.bias.double()
    torch.testing.assert_close(extras["mean"].double(), s[:, :width], atol=1e-5, rtol=1e-5)
    expected = torch.tensor([[sigma_of(value) for value in row] for row in s[:, width:].tolist()], dtype=torch.float64)
    torch.testing.assert_close(extras["log_std"].exp().double(), expected, atol=1e-8, rtol=1e-5)


def test_scores_are_the_decoded_noisy_code() -> None:
    head = straight()
    features = torch.tensor([[1.0, -2.0, 5.0, 3.0], [0.0, 4.0, -1.0, 9.0]])
    scores = head(features)
    # The decoder is the identity, so the noise can be read off; softplus(0) = ln 2.
    torch.manual_seed(7)
    noise = torch.randn(2, 2)
    torch.manual_seed(7)
    again = head(features)
    for i in range(2):
        for j in range(2):
            expected = features[i, j].item() + sigma_of(features[i, 2 + j].item()) * noise[i, j].item()
            assert again[i, j].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert not torch.equal(scores, again)
    assert again[0, 0].item() == pytest.approx(1 + math.log(2) * noise[0, 0].item(), rel=1e-5)


def test_noise_has_the_spread_it_should() -> None:
    # 20,000 draws of N(3, ln 2): the mean within 5 standard errors, the spread too.
    features = torch.tensor([[3.0, 3.0, 5.0, 5.0]]).expand(10_000, 4)
    scores = straight()(features)
    assert abs(scores.mean().item() - 3) < 5 * math.log(2) / math.sqrt(20_000)
    assert abs(scores.std().item() - math.log(2)) < 5 * math.log(2) / math.sqrt(40_000)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sample_at_eval", [False, True])
def test_noise_in_evaluation_is_a_choice(sample_at_eval: bool, training: bool) -> None:
    defense = MID(MIDConfig(sample_at_eval=sample_at_eval))
    head = defense.build_head(6, 4).train(training)
    features = torch.randn(3, 6)
    noisy = training or sample_at_eval
    assert torch.equal(head(features), head(features)) is not noisy
    if not noisy:
        mean, _ = head.encode(features)
        torch.testing.assert_close(head(features), head.decoder(mean))
    assert defense.stochastic is sample_at_eval


@pytest.mark.parametrize("training", [False, True])
def test_manual_seed_repeats_the_noise(training: bool) -> None:
    head = BottleneckHead(6, 4).train(training)
    features = torch.randn(3, 6)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        scores: Tensor = head(features)
        return scores

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


@pytest.mark.parametrize("cast", [Tensor.float, Tensor.bfloat16, Tensor.half])
def test_autocast_keeps_float32(cast: Callable[[Tensor], Tensor]) -> None:
    head = BottleneckHead(6, 4)
    features = cast(torch.randn(3, 6))
    torch.manual_seed(3)
    plain = head(features)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = head(features)
        codes = head.encode(features)
        kl = kl_to_standard_normal(*codes)
    assert scores.dtype == kl.dtype == torch.float32
    assert [code.dtype for code in codes] == [torch.float32] * 2
    assert torch.equal(scores, plain)
    assert kl_to_standard_normal(*(code.bfloat16() for code in codes)).dtype == torch.float32


@pytest.mark.parametrize("beta", [0.0, 0.005, 2.0])
def test_loss_is_cross_entropy_and_beta_times_the_divergence(beta: float) -> None:
    defense = MID(MIDConfig(beta=beta))
    features, labels = torch.randn(5, 8), torch.randint(3, (5,))
    scores, extras = defense.run_head(defense.build_head(8, 3), features)
    terms = defense.loss(Forward(scores, labels, features, extras=extras), END)
    assert list(terms) == ["cross_entropy", "kl"]
    sigma = [[math.exp(value) for value in row] for row in extras["log_std"].tolist()]
    assert terms["kl"].item() == pytest.approx(beta * literal_kl(extras["mean"], sigma), rel=1e-6)
    log_p = scores.double() - scores.double().exp().sum(1, keepdim=True).log()
    expected = -sum(log_p[i, label].item() for i, label in enumerate(labels.tolist())) / 5
    assert terms["cross_entropy"].item() == pytest.approx(expected, rel=1e-6)


def test_two_heads_are_two_codes_side_by_side() -> None:
    heads = [BottleneckHead(6, 4, sample_at_eval=False), BottleneckHead(9, 4, sample_at_eval=False)]
    both = MeanOfHeads(heads, [6, 9]).eval()
    features = torch.randn(3, 15)
    scores, extras = MID(MIDConfig(sample_at_eval=False)).run_head(both, features)
    parts = [head.eval()(part) for head, part in zip(heads, (features[:, :6], features[:, 6:]), strict=True)]
    torch.testing.assert_close(scores, (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(scores, both(features))
    assert extras["mean"].shape == extras["log_std"].shape == (3, 3 + 4)
    singles = [kl_to_standard_normal(*head.encode(x)) for head, x in both.parts(features)]
    torch.testing.assert_close(kl_to_standard_normal(extras["mean"], extras["log_std"]), singles[0] + singles[1])


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf])
def test_impossible_weights_are_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be .*>= 0, got"):
        MIDConfig(beta=beta)


def test_a_single_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="mid halves the features and needs at least 2 of them, got 1"):
        MID.complete(MIDConfig(), 1, 10)
    with pytest.raises(ValueError, match="needs at least 2 of them, got 1"):
        BottleneckHead(1, 10)
