"""Scores of very many classes in chunks: the numbers and gradients of the dense ones, and never the dense scores."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.calor import CALoR, CALoRDefenseConfig
from calor_hf.defenses.none import NoDefense, NoDefenseConfig
from calor_hf.heads.chunked_scores import check_chunks, margins, margins_in_chunks
from calor_hf.heads.classifier_head import ClassifierHead, MeanOfHeads
from calor_hf.heads.low_rank_head import LowRankHead

BATCH, WIDTH, CLASSES, RANK = 7, 5, 11, 3
CHUNKS = (1, 2, 3, 10, 11, 100)  # 10: the last chunk has one class


def a_head(kind: str, dtype: torch.dtype = torch.float64) -> LowRankHead | ClassifierHead:
    torch.manual_seed(0)
    head = LowRankHead(WIDTH, CLASSES, RANK) if kind == "low rank" else ClassifierHead(nn.Linear(WIDTH, CLASSES))
    return head.to(dtype)


def some_features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(BATCH, WIDTH, dtype=dtype, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 10, 5, 5, 9, 3, 1])


def test_log_odds_and_best_rival_by_hand() -> None:
    # Scores log 1, log 2, log 5 of class 0, 1, 2: p = 1/8, 2/8, 5/8.
    logits = torch.tensor([[1.0, 2.0, 5.0]] * 3, dtype=torch.float64).log()
    found = margins(logits, torch.tensor([2, 0, -100]))
    assert found["log_odds"][:2].tolist() == pytest.approx([math.log(3 / 5), math.log(7)])
    assert found["best_rival"][:2].tolist() == pytest.approx([math.log(2 / 5), math.log(5)])


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("kind", ["low rank", "linear"])
def test_values_and_gradients_are_those_of_dense_scores(kind: str, chunk: int) -> None:
    head, features = a_head(kind), some_features().requires_grad_()
    pull = torch.linspace(-1, 2, BATCH, dtype=torch.float64)
    dense = margins(head(features), LABELS)
    chunked = margins_in_chunks(head, features, LABELS, chunk)
    for name, value in dense.items():
        torch.testing.assert_close(chunked[name], value)
    wanted = torch.autograd.grad(dense["log_odds"] @ pull, [features, *head.parameters()])
    found = torch.autograd.grad(chunked["log_odds"] @ pull, [features, *head.parameters()])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("chunk", [3, 100])
def test_gradient_by_finite_differences(chunk: int) -> None:
    head = a_head("low rank")
    check: Callable[[Tensor], Tensor] = lambda features: margins_in_chunks(head, features, LABELS, chunk)["log_odds"]  # noqa: E731
    assert torch.autograd.gradcheck(check, some_features().requires_grad_())


def test_losses_of_odds_are_those_of_logits() -> None:
    head, features = a_head("low rank"), some_features()
    labels = LABELS.clone()
    labels[2] = -100
    for weights in (None, torch.rand(CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))):
        dense = Forward(head(features), labels, class_weights=weights)
        found = margins_in_chunks(head, features, labels, 4)
        chunked = Forward(features.new_empty(BATCH, 0), labels, class_weights=weights, log_odds=found["log_odds"])
        for defense, stage in (
            (NoDefense(NoDefenseConfig()), "fit"),
            (CALoR(CALoRDefenseConfig()), "fit"),
            (CALoR(CALoRDefenseConfig(ca_a=2.0, ca_b=4.0)), "adapt"),
        ):
            wanted, got = (defense.loss(out, Progress(stage)) for out in (dense, chunked))
            torch.testing.assert_close(got, wanted)


def test_extreme_scores_stay_finite() -> None:
    head = ClassifierHead(nn.Linear(1, 4, bias=False))
    with torch.no_grad():
        head.classifier.weight.copy_(torch.tensor([[1e4], [-1e4], [0.0], [1e4]]))
    features = torch.tensor([[1.0], [-3e30]], requires_grad=True)
    found = margins_in_chunks(head, features, torch.tensor([1, 1]), 2)
    loss = F.softplus(found["log_odds"])
    # Two rivals ahead by 2e4; the nearest rival behind by 3e34.
    assert loss.tolist() == pytest.approx([2e4 + math.log(2), 0.0])
    loss.sum().backward()
    assert features.grad is not None
    assert features.grad[0].item() == pytest.approx(2e4)
    assert features.grad[1].item() == 0.0


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operation gave."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_nothing_as_large_as_the_scores_is_made() -> None:
    batch, classes = 64, 500
    head = LowRankHead(WIDTH, classes, RANK)
    features, labels = torch.randn(batch, WIDTH, requires_grad=True), torch.arange(batch)
    with LargestTensor() as dense:
        margins(head(features), labels)["log_odds"].sum().backward()
    with LargestTensor() as chunked:
        margins_in_chunks(head, features, labels, 16)["log_odds"].sum().backward()
    assert dense.elements == batch * classes
    assert chunked.elements == classes * RANK  # the gradient of the weight


def test_a_frozen_layer_gets_no_gradient_but_its_input_does() -> None:
    head, features = a_head("low rank"), some_features().requires_grad_()
    head.last_layer.requires_grad_(False)
    margins_in_chunks(head, features, LABELS, 4)["log_odds"].sum().backward()
    assert head.last_layer.weight.grad is None
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_half_precision_features_and_autocast_compute_in_float32() -> None:
    head, features = a_head("low rank", torch.float32), some_features(torch.float32).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = margins_in_chunks(head, features, LABELS, 4)
        wanted = margins(head(features), LABELS)
    assert found["log_odds"].dtype == torch.float32
    torch.testing.assert_close(found["log_odds"], wanted["log_odds"])


class Adapted(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("head", "chunk", "message"),
    [
        (LowRankHead(4, 6, 2), 0, "class_chunk must be a whole number"),
        (LowRankHead(4, 6, 2), 2.0, "class_chunk must be a whole number"),
        (ClassifierHead(Adapted(4, 6)), 2, "ordinary nn.Linear"),
        (ClassifierHead(nn.Conv2d(4, 6, 1)), 2, "ordinary nn.Linear"),
        (MeanOfHeads([LowRankHead(4, 6, 2), LowRankHead(4, 6, 2)], [4, 4]), 2, "got MeanOfHeads"),
        (ClassifierHead(nn.Linear(4, 1)), 2, "at least 2 classes"),
    ],
)
def test_what_cannot_be_scored_in_chunks_is_refused(head: nn.Module, chunk: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_chunks(head, chunk)


def test_soft_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="soft labels"):
        margins_in_chunks(a_head("linear"), some_features(), torch.full((BATCH, CLASSES), 1 / CLASSES), 4)
