"""The training loop against gradient descent by hand; its schedule, callback, order and divergence."""

import numpy as np
import pytest
import torch
from torch import Tensor

from calor_hf.core.fit import fit, minibatches


def test_steps_by_hand() -> None:
    # Loss w·x: each step subtracts rate · x; the rate is 1 in epoch 0 and 1/10 in epoch 1.
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    seen: list[tuple[int, float, float]] = []
    fit(
        lambda x: (weight * x).sum(), optimizer, lambda epoch: [torch.tensor([1.0]), torch.tensor([2.0])], 2,
        name="it", schedule=schedule, callback=lambda epoch, loss: seen.append((epoch, loss, weight.item())),
    )  # fmt: skip
    assert np.array(seen) == pytest.approx(np.array([(0, -2.0, -3.0), (1, -6.2, -3.3)]))


def test_it_begins_and_ends_where_told() -> None:
    epochs: list[int] = []

    def batches(epoch: int) -> list[Tensor]:
        epochs.append(epoch)
        return [torch.ones(1)]

    weight = torch.zeros(1, requires_grad=True)
    fit(lambda x: (weight * x).sum(), torch.optim.SGD([weight]), batches, 5, name="it", first_epoch=3)
    assert epochs == [3, 4]


def test_divergence_is_an_error() -> None:
    weight = torch.ones(1, requires_grad=True)
    with pytest.raises(FloatingPointError, match="the head diverged in epoch 1; lower head_lr"):
        fit(
            lambda x: (weight * x).sum(), torch.optim.SGD([weight]), lambda epoch: [torch.tensor([torch.inf])], 3,
            name="the head", rate_option="head_lr",
        )  # fmt: skip


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [3, 3, 3]), (3, [3])])
def test_every_row_is_in_one_batch_of_nearly_equal_size(count: int, sizes: list[int]) -> None:
    found = minibatches(count, 4, np.random.default_rng(0))
    assert [len(rows) for rows in found] == sizes
    assert sorted(torch.cat(found).tolist()) == list(range(count))
    assert [rows.tolist() for rows in found] == [
        rows.tolist() for rows in minibatches(count, 4, np.random.default_rng(0))
    ]
