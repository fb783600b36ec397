"""Checks of a training run: labels, weights that the loss does not depend on, and numbers that are not finite."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.heads.features import scores_of
from calor_hf.training.checkpoints import complete_checkpoints


def check_labels(dataset: Any, num_labels: int) -> None:
    """Refuse labels of ``num_labels`` or more, if they can be read without decoding images.

    That is an array ``dataset.labels``, or a column ``labels`` or ``label`` of a ``datasets.Dataset``; other data pass,
    and so do labels below 0 (ignored) and soft ones.

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


def unused_parameters(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[nn.Parameter]:
    """Trainable parameters that the scores do not depend on, e.g. the mask token of DINOv2 or a pooling head of SigLIP.

    The graph of one forward pass in evaluation mode is read, for ``inputs`` on the model's device, without labels. No
    gradient is computed (they would take as much memory as the model), and neither weights, nor statistics, nor random
    state change.
    """
    devices = [value.device for value in inputs.values() if value.device.type == "cuda"][:1]
    training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            outputs: Any = model(**inputs)
    finally:
        model.train(training)
    used, seen, waiting = set(), set(), [scores_of(outputs).grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            used.add(id(node.variable))
        waiting += [function for function, _ in node.next_functions]
    return [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in used]


class NonFiniteLossError(FloatingPointError):
    """The loss, or a weight, became NaN or infinite."""


def not_finite(what: str, stage: str, output_dir: str) -> NonFiniteLossError:
    """Error that names the number that is not finite, the last good checkpoint, and remedies."""
    found = complete_checkpoints(output_dir)
    kept = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint had been saved"
    return NonFiniteLossError(
        f"{what} (stage '{stage}'); {kept}. Lower the learning rate, prefer bf16 to fp16, and look for images or "
        "weights with NaN, and for batches whose labels are all ignored"
    )


def bad_weight(model: nn.Module, batch_norms: Iterable[_BatchNorm] = ()) -> str | None:
    """Name of a trainable weight, or statistic of ``batch_norms``, that is not finite; None if all are."""
    weights = (pair for pair in model.named_parameters() if pair[1].requires_grad)
    statistics = ((f"a batch norm's {name}", value) for norm in batch_norms for name, value in norm.named_buffers())
    return next((name for name, value in chain(weights, statistics) if not value.isfinite().all()), None)
