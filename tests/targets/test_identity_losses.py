"""Objectives of attacks, by hand."""

import math

import pytest
import torch

from calor_hf.targets.identity_losses import (
    IDENTITY_LOSSES,
    cross_entropy,
    max_margin,
    negative_logit,
    poincare_distance,
)

LOGITS = torch.tensor([[math.log(3.0), 0.0], [0.0, -2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])


def test_cross_entropy() -> None:
    assert cross_entropy(LOGITS, LABELS).tolist() == pytest.approx([math.log(4 / 3), math.log(1 + math.e**2)])


def test_logit_and_margin() -> None:
    assert negative_logit(LOGITS, LABELS).tolist() == pytest.approx([-math.log(3), 2.0])
    assert max_margin(LOGITS, LABELS).tolist() == pytest.approx([-math.log(3), 2.0])
    three = torch.tensor([[1.0, 5.0, 2.0]])
    assert max_margin(three, torch.tensor([2])).item() == 3.0


def test_poincare_distance_by_its_formula() -> None:
    # u = (0.6, -0.4), v = (0, 1 - ξ): |u|² = 0.52, |u - v|² = 0.36 + (1.4 - ξ)²
    xi = 1e-4
    delta = 2 * (0.36 + (1.4 - xi) ** 2) / ((1 - 0.52) * (1 - (1 - xi) ** 2))
    found = poincare_distance(torch.tensor([[3.0, -2.0]], dtype=torch.float64), torch.tensor([1]))
    assert found.item() == pytest.approx(math.acosh(1 + delta), rel=1e-9)


def test_poincare_gradient_does_not_flatten_out_where_cross_entropy_does() -> None:
    logits = torch.tensor([[20.0, 0.0, -4.0]], dtype=torch.float64, requires_grad=True)
    (steep,) = torch.autograd.grad(poincare_distance(logits, LABELS[:1]).sum(), logits)
    (flat,) = torch.autograd.grad(cross_entropy(logits, LABELS[:1]).sum(), logits)
    assert steep.abs().max() > 1e5 * flat.abs().max()
    corner = torch.tensor([[5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (edge,) = torch.autograd.grad(poincare_distance(corner, torch.tensor([0])).sum(), corner)
    assert edge.isfinite().all()
    with pytest.raises(ValueError, match=r"xi must be in \(0, 1\)"):
        poincare_distance(logits, LABELS[:1], xi=0.0)


@pytest.mark.parametrize("name", IDENTITY_LOSSES)
def test_every_objective_falls_as_the_label_rises(name: str) -> None:
    values = [IDENTITY_LOSSES[name](torch.tensor([[z, 1.0, -1.0]]), torch.tensor([0])).item() for z in (-2.0, 0.5, 2.0)]
    assert values[0] > values[1] > values[2]
