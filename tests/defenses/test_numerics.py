"""Every registered defense on scores and features at the edges of floating point."""

import dataclasses
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from torch import Tensor

from calor_hf.core.outputs import Progress
from calor_hf.defenses import DEFENSES
from tests.defenses.test_defense_contract import CLASSES, FEATURES, NAMED_STAGES, PUBLISHED, forward_pass, head_of, make

SIGNS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(1, CLASSES // 2)
EYE = torch.eye(CLASSES)
# Scores and labels: far apart, all equal, of one class alone, right within rounding of 1 (1 - p is 7e-11) and wrong
# likewise, of a single image.
CASES: dict[str, tuple[Tensor, Tensor]] = {
    **{f"±{size:g}": (size * SIGNS, torch.tensor([2, 2])) for size in (1e4, 1e30)},
    **{f"all {level:g}": (torch.full((2, CLASSES), level), torch.tensor([0, 3])) for level in (0.0, 1e30)},
    "one class": (torch.randn(4, CLASSES, generator=torch.Generator().manual_seed(0)), torch.full((4,), 2)),
    "sure": (25 * EYE, torch.arange(CLASSES)),
    "sure and wrong": (25 * EYE, torch.arange(CLASSES).roll(1)),
    "one image": (torch.tensor([[0.5, -1.0, 2.0, 0.0, 1.0, -3.0]]), torch.tensor([4])),
}

Slopes = list[Decimal]
"""Derivatives of a term of one image by the logarithms of its probabilities."""


def log_likelihood(factor: str) -> Callable[[Slopes, int], tuple[Decimal, Slopes]]:
    """``factor`` times the logarithm of the label's probability."""
    return lambda log_p, y: (Decimal(factor) * log_p[y], [Decimal(factor) * (j == y) for j in range(CLASSES)])


def adaptation(log_p: Slopes, y: int) -> tuple[Decimal, Slopes]:
    power = (8 * log_p[y]).exp()
    return power * log_p[y], [power * (1 + 8 * log_p[y]) * (j == y) for j in range(CLASSES)]


def uniform(log_p: Slopes, _: int) -> tuple[Decimal, Slopes]:
    return Decimal("0.05") * sum(log_p) / CLASSES, [Decimal("0.05") / CLASSES] * CLASSES


# The terms that depend on the scores, with the default settings, as their sources write them.
TERMS = {
    "cross_entropy": log_likelihood("-1"),
    "confidence_adaptation": adaptation,
    "hard": log_likelihood("-1.05"),
    "smooth": uniform,
    "clean": log_likelihood("-0.8"),
    "trapdoor": log_likelihood("-0.2"),
}


def exact(term: str, logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Mean of a term over a batch and its gradient, with sixty digits."""
    values, gradient = [], []
    with localcontext() as context:
        context.prec = 60
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            gaps = [Decimal(z) - Decimal(max(row)) for z in row]
            total = sum(gap.exp() for gap in gaps)
            log_p = [gap - Decimal(total).ln() for gap in gaps]
            value, slopes = TERMS[term](log_p, label)
            values.append(value)
            pull = sum(slopes)
            gradient.append([float(s - pull * own.exp()) / len(labels) for s, own in zip(slopes, log_p, strict=True)])
        return float(sum(values) / len(values)), torch.tensor(gradient)


def loss_of(name: str, stage: str, case: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Terms of the loss, scores with their gradient, and labels."""
    logits, labels = CASES[case]
    if name == "trap_mid":  # poisoned images follow the clean ones
        logits, labels = torch.cat([logits, logits.flip(0)]), torch.cat([labels, labels])
    logits = logits.clone().requires_grad_()
    _, out = forward_pass(make(name), batch=len(labels))
    terms = make(name).loss(dataclasses.replace(out, logits=logits, labels=labels), Progress.at_end(stage))
    torch.stack(list(terms.values())).sum().backward()
    return terms, logits, labels


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "stage"), NAMED_STAGES)
def test_loss_and_gradient_are_finite(name: str, stage: str, case: str) -> None:
    terms, logits, _ = loss_of(name, stage, case)
    assert all(value.isfinite() for value in terms.values())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "stage"), [pair for pair in NAMED_STAGES if pair[0] in PUBLISHED])
def test_loss_and_gradient_are_exact(name: str, stage: str, case: str) -> None:
    terms, logits, labels = loss_of(name, stage, case)
    slack = 1e-12 if stage == "adapt" else 1e-6  # cross-entropy of float32 is blind next to 1, the adapt loss is not
    half, expected = len(labels) // 2, torch.zeros_like(logits)
    parts = {"clean": slice(0, half), "trapdoor": slice(half, None)}
    assert terms.keys() - {"kl", "input", "label"} <= TERMS.keys()  # those three do not depend on the scores
    for term in terms.keys() & TERMS.keys():
        part = parts.get(term, slice(None))
        value, gradient = exact(term, logits.detach()[part], labels[part])
        assert terms[term].item() == pytest.approx(value, rel=1e-5, abs=slack)
        expected[part] += gradient
    torch.testing.assert_close(logits.grad, expected, rtol=1e-4, atol=slack)


OWN_HEADS = [name for name in DEFENSES.names() if make(name).own_head]


@pytest.mark.parametrize("name", OWN_HEADS)
def test_features_at_the_end_of_half_precision_are_read_in_float32(name: str) -> None:
    defense = make(name)
    head, features = head_of(defense), torch.tensor([[65504.0, -65504.0] * (FEATURES // 2)]).repeat(2, 1)
    scores = []
    for x in (features, features.half()):
        torch.manual_seed(4)
        scores.append(defense.run_head(head, x)[0])
    assert scores[1].dtype == torch.float32
    assert scores[1].isfinite().all()
    assert torch.equal(*scores)


@pytest.mark.parametrize(("name", "stage"), NAMED_STAGES)
def test_hidden_layers_at_the_end_of_half_precision(name: str, stage: str) -> None:
    logits, out = forward_pass(make(name), scale=65504.0)
    terms = make(name).loss(out, Progress.at_end(stage))
    torch.stack(list(terms.values())).sum().backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(x.grad is None or x.grad.isfinite().all() for x in (logits, *out.hooked))
