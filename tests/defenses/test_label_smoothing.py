"""Negative label smoothing: value, gradient and schedule against what the paper and its code say."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.label_smoothing import LabelSmoothing, LabelSmoothingConfig, cross_entropies, ramp

END = Progress.at_end("fit")


def smoothed(out: Forward, alpha: float, schedule: str = "constant", progress: Progress = END) -> Tensor:
    terms = LabelSmoothing(LabelSmoothingConfig(alpha=alpha, schedule=schedule)).loss(out, progress)
    assert list(terms) == ["hard", "smooth"]
    return torch.stack(list(terms.values())).sum()


def literal(logits: Tensor, labels: Tensor, alpha: float) -> float:
    """(1 − α)·(−log p_y) + α·mean_j(−log p_j), the mean over the batch, in Python's float64."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        top = max(row)
        log_sum = top + math.log(sum(math.exp(z - top) for z in row))
        log_p = [z - log_sum for z in row]
        total += (1 - alpha) * -log_p[label] + alpha * sum(-value for value in log_p) / len(row)
    return total / len(logits)


def at_epoch(epoch: float, epochs: float, steps_per_epoch: int = 7) -> Progress:
    return Progress("fit", round(epoch * steps_per_epoch), round(epochs * steps_per_epoch), epoch, epochs)


def official(epoch: int) -> float:
    """Share of α in epoch 0 … 99 of the authors' 100, their 50 and 75 as they stand in the code."""
    if epoch < 50:
        return 0.0
    if epoch < 75:
        return (epoch + 1 - 50) / (100 - 50)
    return 1.0


def test_loss_matches_hand_computed_value() -> None:
    # p = (3/4, 1/4): hard = ln(4/3), uniform = (ln(4/3) + ln 4) / 2, 1.5 · 0.287682 − 0.5 · 0.836988 = 0.013029.
    out = Forward(logits=torch.tensor([[math.log(3.0), 0.0]]), labels=torch.tensor([0]))
    terms = LabelSmoothing(LabelSmoothingConfig(alpha=-0.5, schedule="constant")).loss(out, END)
    assert terms["hard"].item() == pytest.approx(1.5 * 0.2876821, abs=1e-6)
    assert terms["smooth"].item() == pytest.approx(-0.5 * 0.8369882, abs=1e-6)
    assert smoothed(out, -0.5).item() == pytest.approx(0.0130290, abs=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, -0.3, -0.05, -0.01, 0.0, 0.1, 0.9])
@pytest.mark.parametrize("classes", [2, 10, 530])
def test_value_is_the_formula(alpha: float, classes: int) -> None:
    for scale in (0.1, 1.0, 10.0):
        logits, labels = scale * torch.randn(5, classes), torch.randint(classes, (5,))
        found = smoothed(Forward(logits, labels), alpha).item()
        assert found == pytest.approx(literal(logits, labels, alpha), rel=1e-6, abs=1e-6)
        double = smoothed(Forward(logits.double(), labels), alpha).item()
        assert double == pytest.approx(literal(logits, labels, alpha), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("alpha", [-0.5, -0.05, 0.0, 0.2])
def test_gradient_is_the_closed_form(alpha: float) -> None:
    batch, classes = 4, 9
    logits = (3 * torch.randn(batch, classes)).requires_grad_()
    labels = torch.randint(classes, (batch,))
    smoothed(Forward(logits, labels), alpha).backward()
    assert logits.grad is not None
    for i, row in enumerate(logits.tolist()):
        total = sum(math.exp(z) for z in row)
        for j, z in enumerate(row):
            at_label = 1 - alpha if j == labels[i] else 0.0
            expected = (math.exp(z) / total - at_label - alpha / classes) / batch
            assert logits.grad[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_gradient_at_a_sure_row_still_pushes_the_scores_apart() -> None:
    # p = (1, 0, 0, 0): p_y − (1 − α) − α/4 = α (1 − 1/4) = −0.3 for α = −0.4, and −α/4 = 0.1 elsewhere.
    logits = torch.tensor([[90.0, 0.0, 0.0, 0.0]], requires_grad=True)
    smoothed(Forward(logits, torch.tensor([0])), -0.4).backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.3, 0.1, 0.1, 0.1], abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.99])
def test_positive_factors_are_the_frameworks(alpha: float, ignored: bool, weighted: bool) -> None:
    logits = torch.randn(8, 5, requires_grad=True)
    labels = torch.randint(5, (8,))
    if ignored:
        labels[[1, 4, 7]] = -100
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0]) if weighted else None
    ours = smoothed(Forward(logits, labels, class_weights=weights), alpha, "official")
    theirs = F.cross_entropy(logits, labels, weight=weights, label_smoothing=alpha)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    (a,), (b,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
def test_soft_labels_are_the_frameworks(weighted: bool) -> None:
    logits, labels = torch.randn(8, 5), torch.randn(8, 5).softmax(1)
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0]) if weighted else None
    ours = smoothed(Forward(logits, labels, class_weights=weights), 0.3)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, weight=weights, label_smoothing=0.3))


def test_ignored_samples_are_as_if_they_were_not_there() -> None:
    logits, weights = torch.randn(6, 4), torch.tensor([0.5, 1.0, 2.0, 4.0])
    labels = torch.tensor([0, -100, 3, -100, 2, 2])
    counted = labels >= 0
    for weight in (None, weights):
        whole = smoothed(Forward(logits, labels, class_weights=weight), -0.3)
        rest = smoothed(Forward(logits[counted], labels[counted], class_weights=weight), -0.3)
        torch.testing.assert_close(whole, rest)


def test_half_precision_scores_are_summed_in_float32() -> None:
    logits, labels = torch.randn(4, 7).bfloat16(), torch.randint(7, (4,))
    terms = cross_entropies(logits, labels)
    assert [term.dtype for term in terms] == [torch.float32] * 2
    assert smoothed(Forward(logits, labels), -0.3).item() == pytest.approx(
        literal(logits.float(), labels, -0.3), rel=1e-6
    )


def test_extreme_scores_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], requires_grad=True)
    loss = smoothed(Forward(logits, torch.tensor([1, 0])), -0.05)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_ramp_is_the_official_table_at_every_epoch_of_100() -> None:
    found = [ramp("official", at_epoch(epoch, 100)) for epoch in range(100)]
    assert found == pytest.approx([official(epoch) for epoch in range(100)], abs=1e-12)
    # Read off by hand: the ramp reaches a half, then jumps.
    assert [found[e] for e in (0, 49, 50, 62, 74, 75, 99)] == pytest.approx([0, 0, 0.02, 0.26, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("epochs", "shares"),
    [
        (4, [0, 0, 0.5, 1]),
        (8, [0, 0, 0, 0, 0.25, 0.5, 1, 1]),
        (10, [0, 0, 0, 0, 0, 0.2, 0.4, 0.6, 1, 1]),
        (20, [0] * 10 + [0.1, 0.2, 0.3, 0.4, 0.5] + [1] * 5),
    ],
)
def test_ramp_is_scaled_to_other_lengths(epochs: int, shares: list[float]) -> None:
    assert [ramp("official", at_epoch(epoch, epochs)) for epoch in range(epochs)] == pytest.approx(shares)


def test_ramp_of_200_epochs_is_that_of_100_twice_as_long() -> None:
    for epoch in range(1, 200, 2):  # e + 1 = 2 (e' + 1) for the later of each pair
        assert ramp("official", at_epoch(epoch, 200)) == pytest.approx(official(epoch // 2))


@pytest.mark.parametrize("epoch", [0, 49, 50, 60, 74, 75, 99])
def test_ramp_stands_still_within_an_epoch(epoch: int) -> None:
    inside = [ramp("official", at_epoch(epoch + part / 7, 100)) for part in range(7)]
    assert inside == [pytest.approx(official(epoch))] * 7


def test_ramp_survives_rounding_of_the_epoch() -> None:
    # 50 epochs of 3 steps counted in thirds come out below 50.
    assert ramp("official", at_epoch(50 - 1e-12, 100)) == pytest.approx(0.02)


@pytest.mark.parametrize("epochs", [1.0, 0.5, 0.0])
def test_ramp_counts_steps_where_there_are_no_epochs_to_count(epochs: float) -> None:
    shares = {0: 0.0, 99: 0.0, 100: 0.01, 124: 0.25, 149: 0.5, 150: 1.0, 199: 1.0}
    for step, share in shares.items():
        assert ramp("official", Progress("fit", step, 200, epochs * step / 200, epochs)) == pytest.approx(share)


def test_constant_schedule_is_always_on() -> None:
    assert {ramp("constant", at_epoch(epoch, 100)) for epoch in range(100)} == {1.0}


def test_schedule_scales_negative_factors_only() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for epoch in (0, 49, 50, 70, 75):
        progress = at_epoch(epoch, 100)
        negative = smoothed(Forward(logits, labels), -0.3, "official", progress).item()
        assert negative == pytest.approx(literal(logits, labels, -0.3 * official(epoch)), rel=1e-6)
        positive = smoothed(Forward(logits, labels), 0.3, "official", progress).item()
        assert positive == pytest.approx(literal(logits, labels, 0.3), rel=1e-6)


def test_outside_training_the_factor_is_in_full_force() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    assert smoothed(Forward(logits, labels), -0.3, "official").item() == pytest.approx(literal(logits, labels, -0.3))


@pytest.mark.parametrize("alpha", [1.0, 1.5, math.nan, math.inf, -math.inf])
def test_factors_that_drop_the_label_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must be .*< 1, got"):
        LabelSmoothingConfig(alpha=alpha)


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'linear'; pass one of official, constant"):
        LabelSmoothingConfig(schedule="linear")
