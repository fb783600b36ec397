"""What the heads of a new defended model start from: random weights, or the classifiers that they replace."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from calor_hf.defenses.base import Defense
from calor_hf.heads.classifier_head import ClassifierHead, MeanOfHeads, same_kind
from calor_hf.heads.features import head_inputs
from calor_hf.heads.find_head import check_heads
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.heads.svd_init import svd_init

Classifiers = Sequence[nn.Linear | nn.Conv2d]
StartHeads = Callable[[list[nn.Module], Classifiers], None]
"""Fills new heads, given the classifiers that they replace."""


def check_head_init(head_init: str) -> None:
    """Refuse a start that no one knows.

    Raises:
        ValueError: neither ``random`` nor ``svd``.
    """
    if head_init not in ("random", "svd"):
        raise ValueError(f"unknown head_init {head_init!r}; pass 'random' or 'svd'")


def new_head(defense: Defense[Any], classifiers: Classifiers, num_labels: int) -> nn.Module:
    """Head of a defended model instead of ``classifiers``: their own, or the defense's; of several, their mean."""
    kept = [same_kind(classifier, num_labels) for classifier in classifiers]
    widths = [layer.weight.shape[1] for layer in kept]
    heads: list[nn.Module] = (
        [defense.build_head(width, num_labels) for width in widths]
        if defense.own_head
        else [ClassifierHead(layer) for layer in kept]
    )
    return MeanOfHeads(heads, widths) if len(heads) > 1 else heads[0]


def start_of_heads(
    head_init: str, base: PreTrainedModel, head_paths: Sequence[str], calibration: Any
) -> StartHeads | None:
    """What fills new low-rank heads of ``base``: nothing if they start at random, or the SVD of each classifier.

    Args:
        head_init: ``"random"`` or ``"svd"``.
        base: With its trained classifiers.
        head_paths: Where those are.
        calibration: Processed training images, a batch of model inputs, an iterable of such batches, or None.
    """
    if head_init == "random":
        return None
    widths = check_heads(base, head_paths)

    def start(heads: list[nn.Module], classifiers: Classifiers) -> None:
        batches = [calibration] if isinstance(calibration, Tensor | Mapping) else calibration
        features = None if calibration is None else head_inputs(base, head_paths, batches)
        parts = [None] * len(widths) if features is None else features.split(widths, dim=1)
        for new, classifier, part in zip(heads, classifiers, parts, strict=True):
            svd_init(cast(LowRankHead, new), classifier, part)

    return start
