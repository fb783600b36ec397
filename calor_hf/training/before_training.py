"""What is looked at before the first step: labels that the model has no class for, weights that no loss reaches."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calor_hf.heads.features import scores_of

logger = logging.getLogger(__name__)

MANY_CLASSES = 10_000
"""From here on the scores of a batch take more memory than most models' features."""


def check_labels(dataset: Any, num_labels: int) -> None:
    """Refuse labels outside [0, num_labels), where they can be read without decoding images.

    Args:
        dataset: Data with an array ``labels``, or a ``datasets.Dataset`` with a column ``labels`` or ``label``; of
            other data nothing is known before training. Labels below 0 (ignored) and soft ones pass.
        num_labels: Classes of the model.

    Raises:
        ValueError: the model has too few classes.
    """
    labels = getattr(dataset, "labels", None)
    columns = getattr(dataset, "column_names", None) or []
    named = [name for name in ("labels", "label") if name in columns]
    if labels is None and named and hasattr(dataset, "with_format") and hasattr(dataset, "__len__"):
        labels = dataset.with_format(None)[named[0]]
    if labels is None:
        return
    values = np.asarray(labels)
    if values.ndim == 1 and values.dtype.kind in "iu" and values.max(initial=0) >= num_labels:
        raise ValueError(
            f"a label of the data is {values.max()}, but the model has {num_labels} classes (0 to {num_labels - 1}); "
            "pass num_labels= the number of classes of the data"
        )


def score_in_chunks(model: Any, classes: int | None) -> None:
    """Let ``model`` score that many classes at a time where there are labels; None: all at once.

    Raises:
        ValueError: no defended model, or one that cannot do without the scores.
    """
    if hasattr(model, "score_in_chunks"):
        model.score_in_chunks(classes)
        if classes is None and model.config.num_labels >= MANY_CLASSES and model.defense.log_odds_suffice:
            logger.info("%d classes: class_chunk=4096 (--class-chunk 4096) saves memory", model.config.num_labels)
    elif classes is not None:
        raise ValueError(
            "class_chunk needs a defended model; DefendedForImageClassification.from_base(model, 'none') is one with "
            "no defense"
        )


def unused_parameters(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[nn.Parameter]:
    """Trainable parameters that the scores do not depend on, e.g. the mask token of DINOv2 or a pooling head of SigLIP.

    One forward pass in evaluation mode, whose graph is read; no gradient is computed (they would take as much memory
    as the model), and neither weights, nor statistics, nor random state change.

    Args:
        model: Any image classification model of transformers.
        inputs: Its inputs for one image or more, on its device; without labels.
    """
    devices = [value.device for value in inputs.values() if value.device.type == "cuda"][:1]
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            outputs: Any = model(**inputs)
            used = _leaves(scores_of(outputs))
    finally:
        model.train(training)
    return [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in used]


def _leaves(result: Tensor) -> set[int]:
    found, seen, waiting = set(), set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [function for function, _ in node.next_functions]
    return found
