"""Choosing the rank: accuracy against rank, measured on cached features."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from calor_hf.core.fit import fit
from calor_hf.core.report_text import percent
from calor_hf.core.seeding import torch_seed
from calor_hf.heads.features import collect, head_inputs
from calor_hf.heads.find_head import check_heads, find_heads
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.heads.svd_init import svd_init
from calor_hf.modeling.modeling_defended import DefendedForImageClassification
from calor_hf.training.checks import UNTRAINED, looks_untrained
from calor_hf.training.metrics import some_samples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankSuggestion:
    """A rank and why.

    Attributes:
        rank: The smallest one tried that keeps the full head's accuracy, or else that of the best low-rank head.
        curve: (rank, validation accuracy in [0, 1]) of every rank tried, growing.
        full_accuracy: Validation accuracy of an ordinary linear head on the same features.
        budget: Accuracy that the rank may cost, in [0, 1].
    """

    rank: int
    curve: tuple[tuple[int, float], ...]
    full_accuracy: float
    budget: float


def suggest_rank(
    model: PreTrainedModel,
    train_dataset: Any,
    eval_dataset: Any,
    *,
    num_labels: int | None = None,
    max_accuracy_drop: float = 1.0,
    ranks: Sequence[int] | None = None,
    activation: str = "tanh",
    bias: bool = True,
    input_norm: str | None = None,
    head_init: str = "random",
    head: str | None = None,
    max_samples: int = 20_000,
    batch_size: int = 64,
    steps: int = 500,
    seed: int = 0,
) -> RankSuggestion:
    """Smallest rank whose head classifies a model's features almost as well as a full linear head.

    The features are computed once; then a linear head, and low-rank heads of growing rank, are fitted to them until one
    is within the budget. The low-rank heads are those that training would put in: pass it the same settings. The
    backbone is not trained: further training usually lets a smaller rank do, so the suggestion is on the safe side for
    accuracy, not for privacy.

    Args:
        model: Model with useful features: pre-trained, or fine-tuned on the data. Random weights say nothing; there is
            a warning if :func:`~calor_hf.training.checks.looks_untrained`.
        train_dataset: Samples with ``labels``; plain images are used if it has ``without_augmentation()``.
        eval_dataset: Validation samples.
        num_labels: Number of classes. None means one more than the largest training label.
        max_accuracy_drop: Points of validation accuracy that the rank may cost, or one standard error, if more.
        ranks: Ranks to try, growing. None means 2, 3, 4, 6, 8, 12, 16, … up to min(features, classes).
        activation: Activation of the low-rank head.
        bias: Whether the low-rank head has biases.
        input_norm: Norm in front of the low-rank head, or None.
        head_init: Start of the low-rank head: ``random``, or ``svd`` of the linear head.
        head: Path of the model's classifier, if it cannot be found.
        max_samples: Training images used, evenly spread.
        batch_size: Images per forward pass.
        steps: Optimizer steps of each fit.
        seed: Seed of the fits.
    """
    if looks_untrained(model):
        logger.warning("the model %s. Its features say nothing about the rank; pass a trained model", UNTRAINED)
    data = (some_samples(dataset, max_samples) for dataset in (train_dataset, eval_dataset))
    (train_x, train_y), (eval_x, eval_y) = (features_of(model, DataLoader(d, batch_size), head) for d in data)
    classes = num_labels if num_labels is not None else int(train_y.max()) + 1

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "training/rank"))
        full = nn.Linear(train_x.shape[1], classes)
        _fit(full, train_x, train_y, steps)
        full_accuracy = _accuracy(full, eval_x, eval_y)
        error = math.sqrt(full_accuracy * (1 - full_accuracy) / len(eval_y))
        budget = max(max_accuracy_drop / 100, error)
        curve: list[tuple[int, float]] = []
        for rank in ranks if ranks is not None else _growing(min(train_x.shape[1], classes)):
            low = LowRankHead(train_x.shape[1], classes, rank, activation, bias, input_norm)
            if head_init == "svd":
                svd_init(low, full, train_x)
            _fit(low, train_x, train_y, steps)
            accuracy = _accuracy(low, eval_x, eval_y)
            curve.append((rank, accuracy))
            shares = percent(accuracy, 2), percent(full_accuracy, 2)
            logger.info("rank %d: %s validation accuracy (full: %s)", rank, *shares)
            if accuracy >= full_accuracy - budget:
                break
    return RankSuggestion(_smallest(curve, full_accuracy, budget), tuple(curve), full_accuracy, budget)


def _smallest(curve: Sequence[tuple[int, float]], full_accuracy: float, budget: float) -> int:
    rank, accuracy = curve[-1]
    if accuracy >= full_accuracy - budget:
        return rank
    # A head of full rank would defend nothing, and the loss is not the rank's but Tanh's.
    best = max(accuracy for _, accuracy in curve)
    chosen = next(rank for rank, accuracy in curve if accuracy >= best - budget)
    logger.warning(
        "no rank stays within %.1f points of a full head on these features (%s, at best %s with a low-rank "
        "head); rank %d is the smallest within them of the best low-rank head",
        *(100 * budget, percent(full_accuracy), percent(best), chosen),
    )
    return chosen


def _growing(limit: int) -> Iterator[int]:
    rank = 2.0
    while round(rank) < limit:
        yield round(rank)
        rank *= 1.5 if math.log2(rank).is_integer() else 4 / 3
    yield limit


def features_of(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], head: str | None = None
) -> tuple[Tensor, Tensor]:
    """(samples, width) inputs of a model's classifier and (samples,) labels, on the CPU; ``head`` is its path."""
    labels: list[Tensor] = []

    def noted() -> Iterator[Mapping[str, Tensor]]:
        for batch in batches:
            labels.append(batch["labels"].cpu())
            yield batch

    if isinstance(model, DefendedForImageClassification):
        features = collect(model, noted(), lambda outputs: outputs.features)
    else:
        paths = [head] if head is not None else find_heads(type(model), model.config)
        check_heads(model, paths)
        features = head_inputs(model, paths, noted())
    return features, torch.cat(labels)


def _fit(head: nn.Module, x: Tensor, y: Tensor, steps: int, batch_size: int = 256) -> None:
    # On embeddings of 40 and 100 people, 500 of these steps give what 3000 at 6e-3 do, and 300 at 5e-3 do not.
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-2, weight_decay=1e-2)
    # Each epoch is one batch: the number of steps is given, whatever the number of samples.
    fit(
        lambda rows: F.cross_entropy(head(x[rows]), y[rows]),
        optimizer,
        lambda _step: [torch.randint(len(x), (min(batch_size, len(x)),))],
        steps,
        name="the head",
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )


@torch.no_grad()
def _accuracy(head: nn.Module, x: Tensor, y: Tensor) -> float:
    return float((head.eval()(x).argmax(dim=1) == y).float().mean())
