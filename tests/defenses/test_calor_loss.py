"""Confidence adaptation: its value and gradient against float64, its facts, its edges."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.defenses.calor import confidence_adaptation_loss, reachable_confidence, target_confidence

INF = math.inf


def logits_at(p: float, classes: int = 530, dtype: torch.dtype = torch.float64) -> Tensor:
    """One row whose class 0 has probability p, the others equal shares of the rest."""
    row = torch.zeros(1, classes, dtype=dtype)
    row[0, 0] = math.log(p) - math.log1p(-p) + math.log(classes - 1)
    return row


def value_and_gradient(logits: Tensor, labels: Tensor, a: float = 1.0, b: float = 8.0) -> tuple[Tensor, Tensor]:
    """Loss of each row, and the gradient of their sum."""
    logits = logits.detach().requires_grad_()
    loss = confidence_adaptation_loss(logits, labels, a, b, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def literal(logits: Tensor, labels: Tensor, a: float, b: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, norm of the closed-form gradient, p and 1 − p of each row in float64, without autograd.

    e_j = exp(z_j − z_y) and S = Σ_{j≠y} e_j give p = 1 / (1 + S), 1 − p = S / (1 + S) and log p = −log(1 + S) with no
    cancellation; the gradient is a p^b (1 + b log p) (δ_jy − p_j), and 1 − p_y is written as the sum that it is.
    """
    z = logits.double()
    differences = z - z.gather(1, labels[:, None])
    differences.scatter_(1, labels[:, None], -INF)
    top = differences.amax(1, keepdim=True).clamp_min(0)
    others = torch.exp(differences - top)  # times exp(top)
    rest = others.sum(1, keepdim=True)
    one = torch.exp(-top)
    log_p = -torch.where(top > 0, top + torch.log(one + rest), torch.log1p(rest)).squeeze(1)
    shares = others / (one + rest)
    rest_share = (rest / (one + rest)).squeeze(1)
    slope = a * torch.exp(b * log_p) * (1 + b * log_p)
    norm = slope.abs() * (shares.pow(2).sum(1) + rest_share.pow(2)).sqrt()
    return a * torch.exp(b * log_p) * log_p, norm, slope, shares


def random_rows(rows: int, classes: int, kind: int) -> tuple[Tensor, Tensor]:
    """Logits of scales 1e-2 … 1e3; kind 0: random label, 1: the likeliest class, 2: 1 − p down to 1e-12."""
    logits = torch.randn(rows, classes) * 10 ** (5 * torch.rand(rows, 1) - 2)
    if kind == 0:
        return logits, torch.randint(classes, (rows,))
    labels = logits.argmax(1)
    if kind == 2:
        rest = 10 ** (-12 * torch.rand(rows, dtype=torch.float64))
        others = logits.double().scatter(1, labels[:, None], -INF).logsumexp(1)
        wanted = others + torch.log1p(-rest) - rest.log()
        logits.scatter_(1, labels[:, None], wanted.float()[:, None])
    return logits, labels


def test_float32_agrees_with_float64_over_100_000_random_cases() -> None:
    rows, cases, worst = 125, 0, {"value": 0.0, "gradient": 0.0}
    smallest_rest, sizes = 1.0, set()
    for batch in range(800):
        # Most batches have few classes: that is where single cases are extreme.
        classes = int(torch.randint(2, 2001 if batch % 8 == 1 else 40, ())) if batch > 3 else (2, 2000)[batch % 2]
        logits, labels = random_rows(rows, classes, batch // 2 % 3)
        a, b = float(torch.empty(()).uniform_(0.1, 4)), float(torch.empty(()).uniform_(0.5, 16))
        loss, gradient = value_and_gradient(logits, labels, a, b)

        expected, norm, slope, shares = literal(logits, labels, a, b)
        rest = shares.sum(1)
        at_label = (slope * rest)[:, None]
        error = (gradient.double() - (-slope[:, None] * shares).scatter_(1, labels[:, None], at_label)).norm(dim=1)
        size = torch.stack([norm, a * (1 - rest) ** b * rest, torch.full_like(rest, 1e-7 * a)]).amax(0)
        value_error = (loss.double() - expected).abs() / expected.abs().clamp_min(1e-7 * a)
        worst["value"] = max(worst["value"], value_error.max().item())
        worst["gradient"] = max(worst["gradient"], (error / size).max().item())
        smallest_rest, cases = min(smallest_rest, rest[rest > 0].min().item()), cases + rows
        sizes.add(classes)
    assert cases == 100_000
    assert {2, 2000} <= sizes
    assert smallest_rest < 1e-12
    assert worst["value"] <= 1e-5
    assert worst["gradient"] <= 1e-5


def test_the_literal_reference_is_the_definition() -> None:
    logits, labels = torch.randn(50, 7, dtype=torch.float64) * 3, torch.randint(7, (50,))
    z = logits.clone().requires_grad_()
    p = z.softmax(1).gather(1, labels[:, None]).squeeze(1)
    loss = 1.7 * p**5 * p.log()
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    expected, norm, _, _ = literal(logits, labels, 1.7, 5.0)
    torch.testing.assert_close(expected, loss.detach())
    torch.testing.assert_close(norm, gradient.norm(dim=1))


@pytest.mark.parametrize(("b", "p"), [(1, 0.3679), (2, 0.6065), (4, 0.7788), (8, 0.8825), (16, 0.9394)])
def test_smallest_at_the_target(b: float, p: float) -> None:
    assert target_confidence(b) == pytest.approx(p, abs=5e-5)
    target, a = target_confidence(b), 1.5
    label = torch.tensor([0])
    loss, gradient = value_and_gradient(logits_at(target), label, a, b)
    assert loss.item() == pytest.approx(-a / (b * math.e), rel=1e-12)
    assert gradient.abs().max() < 1e-14
    grid = torch.cat([logits_at(q) for q in torch.linspace(0.001, 0.999, 999).tolist()])
    losses = confidence_adaptation_loss(grid, torch.zeros(999, dtype=torch.int64), a, b, reduction="none")
    assert losses.min() >= loss.item()
    assert abs((int(losses.argmin()) + 1) / 1000 - target) <= 0.0005


def test_second_derivative_at_the_target() -> None:
    def loss(p: float) -> float:
        return confidence_adaptation_loss(logits_at(p), torch.tensor([0])).item()

    p, step = target_confidence(8), 1e-4
    curvature = (loss(p + step) - 2 * loss(p) + loss(p - step)) / step**2
    assert curvature == pytest.approx(3.779, abs=5e-4)
    assert curvature == pytest.approx(8 * math.exp((2 - 8) / 8), rel=1e-4)


@pytest.mark.parametrize(
    ("p", "value", "by_log_p", "by_logit"),
    [
        (1 / 530, -1.0e-21, -7.9e-21, -7.9e-21),
        (0.1, -2.3e-8, -1.7e-7, -1.6e-7),
        (0.3, -7.9e-5, -5.7e-4, -4.0e-4),
        (0.5, -2.71e-3, -1.78e-2, -8.9e-3),
        (0.7, -2.06e-2, -0.107, -3.2e-2),
        (math.exp(-2 / 8), -3.38e-2, -0.1353, -3.0e-2),
        (math.exp(-1 / 8), -0.04598, 0.0, 0.0),
        (0.95, -3.40e-2, 0.391, 2.0e-2),
        (0.99, -9.3e-3, 0.849, 8.5e-3),
        (0.999, -9.9e-4, 0.984, 9.8e-4),
    ],
)
def test_table_of_values_and_gradients(p: float, value: float, by_log_p: float, by_logit: float) -> None:
    loss, gradient = value_and_gradient(logits_at(p), torch.tensor([0]))
    assert loss.item() == pytest.approx(value, rel=0.04)
    assert gradient[0, 0].item() == pytest.approx(by_logit, rel=0.04, abs=1e-30 if by_logit else 1e-15)
    # ∂L/∂z_y = dL/dℓ (1 − p)
    assert gradient[0, 0].item() / (1 - p) == pytest.approx(by_log_p, rel=0.04, abs=1e-30 if by_log_p else 1e-14)


def test_strongest_pull_upwards_by_log_p_is_a_over_e_squared() -> None:
    grid = torch.linspace(0.001, 0.999, 999).tolist()
    slopes = [value_and_gradient(logits_at(p), torch.tensor([0]))[1][0, 0].item() / (1 - p) for p in grid]
    assert min(slopes) == pytest.approx(-math.exp(-2), abs=1e-4)
    assert grid[slopes.index(min(slopes))] == pytest.approx(math.exp(-2 / 8), abs=1e-3)


def test_vanishes_at_both_ends() -> None:
    for p in (1e-12, 1 - 1e-12):
        loss, gradient = value_and_gradient(logits_at(p), torch.tensor([0]))
        assert -2e-12 < loss.item() < 0
        assert gradient.abs().max() < 2e-12


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_gradient_is_the_closed_form(scale: float) -> None:
    a, b = 2.0, 3.0
    logits, labels = scale * torch.randn(40, 9, dtype=torch.float64), torch.randint(9, (40,))
    _, gradient = value_and_gradient(logits, labels, a, b)
    shares = logits.softmax(1)
    p = shares.gather(1, labels[:, None])
    closed = a * p**b * (1 + b * p.log()) * (F.one_hot(labels, 9) - shares)
    torch.testing.assert_close(gradient, closed, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(40, dtype=torch.float64), atol=1e-15, rtol=0)


def test_gradcheck() -> None:
    logits, labels = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 1, 1, 2])
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda z, reduction=reduction: confidence_adaptation_loss(z, labels, 1.5, 2.5, reduction=reduction), logits
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_huge_logits_stay_finite(dtype: torch.dtype) -> None:
    rows = list(itertools.product((-3e4, 0.0, 3e4), repeat=3))
    logits = torch.tensor(rows).to(dtype).requires_grad_()
    for label in range(3):
        loss = confidence_adaptation_loss(logits, torch.full((27,), label), reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.dtype == torch.float32
        assert gradient.dtype == dtype
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert (loss <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(20, 6).to(dtype), torch.randint(6, (20,))
    loss = confidence_adaptation_loss(logits, labels)
    assert torch.equal(loss, confidence_adaptation_loss(logits.float(), labels))


def test_autocast_changes_nothing() -> None:
    logits, labels = torch.randn(20, 6), torch.randint(6, (20,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = confidence_adaptation_loss(logits, labels)
    assert torch.equal(inside, confidence_adaptation_loss(logits, labels))


def test_almost_certain_samples_keep_their_gradient() -> None:
    # 1 − p = 1e-9 is far below the 6e-8 that float32 resolves next to 1; the exact slope is a p^b (1 + b log p)(1 − p).
    logits, label = logits_at(1 - 1e-9, classes=10, dtype=torch.float32), torch.tensor([0])
    loss, gradient = value_and_gradient(logits, label)
    assert gradient[0, 0].item() == pytest.approx(1e-9, rel=1e-4)
    assert gradient[0, 1:].tolist() == pytest.approx([-1e-9 / 9] * 9, rel=1e-4)
    assert loss.item() == pytest.approx(-1e-9, rel=1e-4)

    plain = logits.clone().requires_grad_()
    log_p = F.log_softmax(plain, dim=1)[:, 0]
    (lost,) = torch.autograd.grad((torch.exp(8 * log_p) * log_p).sum(), plain)
    assert lost[0, 0].item() == 0
    assert log_p.item() == 0


def test_masked_other_class_is_as_if_it_were_not_there() -> None:
    logits = torch.tensor([[1.0, -INF, 0.5, 2.0]])
    loss, gradient = value_and_gradient(logits, torch.tensor([3]))
    kept, kept_gradient = value_and_gradient(logits[:, [0, 2, 3]], torch.tensor([2]))
    assert torch.equal(loss, kept)
    assert torch.equal(gradient[:, [0, 2, 3]], kept_gradient)
    assert gradient[0, 1] == 0


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([-INF, 2.0, -INF, -INF], 1),  # the true class is the only one left
        ([-INF, 2.0, 1.0, 0.0], 0),  # the true class is masked
        ([-INF, 2.0, -INF, -INF], 0),  # masked, and one other left
        ([-INF, -INF, -INF, -INF], 0),
    ],
)
def test_masked_rows_count_nothing_and_leave_the_others_alone(row: list[float], label: int) -> None:
    loss, gradient = value_and_gradient(torch.tensor([row]), torch.tensor([label]))
    assert loss.tolist() == [0.0]
    assert gradient.tolist() == [[0.0] * 4]

    ordinary, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    alone, alone_gradient = value_and_gradient(ordinary, labels)
    mixed = torch.cat([ordinary[:1], torch.tensor([row]), ordinary[1:]])
    together, together_gradient = value_and_gradient(mixed, torch.tensor([0, label, 1, 2]))
    assert torch.equal(together[[0, 2, 3]], alone)
    assert torch.equal(together_gradient[[0, 2, 3]], alone_gradient)
    assert together[1] == 0
    assert together_gradient[1].tolist() == [0.0] * 4


def test_nan_is_not_hidden() -> None:
    logits = torch.tensor([[math.nan, 1.0, 2.0], [0.0, 1.0, 2.0]])
    for label in (0, 1):
        loss = confidence_adaptation_loss(logits, torch.tensor([label, 0]), reduction="none")
        assert loss[0].isnan()
        assert loss[1].isfinite()
        assert confidence_adaptation_loss(logits, torch.tensor([label, 0])).isnan()


def test_ignored_samples_count_nothing() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, -100, 2, -100, 3])
    kept = labels != -100
    full, gradient = value_and_gradient(logits, labels)
    assert torch.equal(full[kept], confidence_adaptation_loss(logits[kept], labels[kept], reduction="none"))
    assert full[~kept].tolist() == [0.0, 0.0]
    assert gradient[~kept].abs().max() == 0
    torch.testing.assert_close(
        confidence_adaptation_loss(logits, labels), confidence_adaptation_loss(logits[kept], labels[kept])
    )
    own = confidence_adaptation_loss(logits, torch.tensor([0, 1, 2, 1, 3]), ignore_index=1)
    torch.testing.assert_close(own, confidence_adaptation_loss(logits, labels))


def test_ignored_rows_may_hold_anything() -> None:
    logits = torch.tensor([[math.nan, INF, 0.0], [0.0, 1.0, 2.0]])
    loss, gradient = value_and_gradient(logits, torch.tensor([-100, 2]))
    assert loss[0] == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_nothing_to_count_gives_zero(reduction: str, weight: Tensor | None) -> None:
    for rows, labels in ((3, torch.full((3,), -100)), (0, torch.zeros(0, dtype=torch.int64))):
        logits = torch.randn(rows, 3, requires_grad=True)
        loss = confidence_adaptation_loss(logits, labels, weight=weight, reduction=reduction)
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert torch.equal(logits.grad, torch.zeros(rows, 3))


def test_weight_matches_a_hand_computation() -> None:
    # p = 1/2 and 3/4: L = -0.5² ln 2 = -0.173287 and -0.75² ln(4/3) = -0.161821 for b = 2.
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]]), torch.tensor([0, 1])
    weight = torch.tensor([1.0, 3.0])
    rows = confidence_adaptation_loss(logits, labels, b=2.0, weight=weight, reduction="none")
    assert rows.tolist() == pytest.approx([-0.173287, 3 * -0.161821], abs=1e-6)
    total = confidence_adaptation_loss(logits, labels, b=2.0, weight=weight, reduction="sum")
    assert total.item() == pytest.approx(-0.658750, abs=2e-6)
    mean = confidence_adaptation_loss(logits, labels, b=2.0, weight=weight)
    assert mean.item() == pytest.approx(-0.658750 / 4, abs=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_and_ignored_samples_count_as_in_cross_entropy(reduction: str) -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, -100, 1, 3, 2])
    weight = torch.tensor([0.5, 2.0, 0.0, 1.5])
    rows = confidence_adaptation_loss(logits, labels, reduction="none")
    ratio = rows / F.cross_entropy(logits, labels, reduction="none").clamp_min(1e-9)  # cross-entropy → our loss
    entropy = F.cross_entropy(logits, labels, weight, reduction="none") * ratio
    shares = weight[labels.clamp_min(0)] * (labels != -100)
    expected = {"none": entropy, "sum": entropy.sum(), "mean": entropy.sum() / shares.sum()}[reduction]
    torch.testing.assert_close(confidence_adaptation_loss(logits, labels, weight=weight, reduction=reduction), expected)


def test_reductions_agree() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 2, 1, 3, 2])
    rows = confidence_adaptation_loss(logits, labels, reduction="none")
    assert rows.shape == (6,)
    torch.testing.assert_close(confidence_adaptation_loss(logits, labels, reduction="sum"), rows.sum())
    torch.testing.assert_close(confidence_adaptation_loss(logits, labels), rows.mean())
    with pytest.raises(ValueError, match="unknown reduction 'average'; pass mean, sum or none"):
        confidence_adaptation_loss(logits, labels, reduction="average")


def test_masked_samples_count_in_the_mean() -> None:
    # They have loss 0 and are samples: only ignore_index takes samples out.
    logits = torch.tensor([[0.0, 0.0], [-INF, 0.0]])
    assert confidence_adaptation_loss(logits, torch.tensor([0, 0]), b=2.0).item() == pytest.approx(-math.log(2) / 8)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least 2 classes, got 1: its confidence is always 1"):
        confidence_adaptation_loss(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    "labels", [torch.full((3, 4), 0.25), torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64)], ids=str
)
def test_soft_labels_are_refused_with_the_reason(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"soft labels \(mixup, cutmix, distillation\) do not have; switch them off"):
        confidence_adaptation_loss(torch.zeros(3, 4), labels)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 4, 5)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected logits \(batch, classes\) for 3 labels, got"):
        confidence_adaptation_loss(torch.zeros(shape), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("label", [4, -1])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        confidence_adaptation_loss(torch.zeros(2, 4), torch.tensor([0, label]))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, INF])
def test_strength_and_sharpness_must_be_positive_and_finite(value: float) -> None:
    logits, labels = torch.zeros(1, 2), torch.tensor([0])
    with pytest.raises(ValueError, match="a must be a positive finite number, got"):
        confidence_adaptation_loss(logits, labels, a=value)
    with pytest.raises(ValueError, match="b must be a positive finite number, got"):
        confidence_adaptation_loss(logits, labels, b=value)


def test_logits_are_left_as_they_were() -> None:
    logits = torch.tensor([[1.0, -INF, 2.0]])
    confidence_adaptation_loss(logits, torch.tensor([0]))
    assert logits.tolist() == [[1.0, -INF, 2.0]]


def test_reachable_confidence() -> None:
    assert reachable_confidence(8) == pytest.approx(0.29, abs=0.01)
    sharper = [reachable_confidence(b) for b in (1, 2, 4, 8, 16, 32)]
    assert sharper == sorted(sharper)
    shares = [reachable_confidence(8, share) for share in (0.001, 0.01, 0.1, 0.5)]
    assert shares == sorted(shares)
    assert len({*sharper, *shares}) == 9  # strictly; reachable_confidence(8) is in both
    assert all(0 < reachable_confidence(b) < target_confidence(b) for b in (0.5, 1, 8, 64))


def test_reachable_confidence_is_where_the_gradient_passes_the_share() -> None:
    def pull(p: float) -> float:
        return -value_and_gradient(logits_at(p), torch.tensor([0]))[1][0, 0].item()

    strongest = max(pull(p) for p in torch.linspace(0.001, 0.88, 880).tolist())
    assert pull(reachable_confidence(8)) / strongest == pytest.approx(0.01, rel=1e-3)
