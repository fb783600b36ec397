"""Checks of what a training run meets: labels, batches, and numbers that are not finite."""

from collections.abc import Iterable, Mapping
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.training.checkpoints import complete_checkpoints

IGNORED = -100  # label of images that do not count, as in torch
UNTRAINED = "looks untrained: every norm layer is as initialized, as with random weights or weights that were not found"


def readable_labels(dataset: Any) -> NDArray[Any] | None:
    """Labels that can be read without decoding images, or None.

    That is an array ``dataset.labels``, or a column ``labels`` or ``label`` of a ``datasets.Dataset``.
    """
    return _readable(dataset, "labels", "label")


def readable_identities(dataset: Any) -> NDArray[Any] | None:
    """Identities that can be read without decoding images, or None; as :func:`readable_labels`."""
    return _readable(dataset, "identities")


def _readable(dataset: Any, *names: str) -> NDArray[Any] | None:
    values = getattr(dataset, names[0], None)
    columns = getattr(dataset, "column_names", None) or []
    named = [name for name in names if name in columns]
    if values is None and named and hasattr(dataset, "with_format") and hasattr(dataset, "__len__"):
        values = dataset.with_format(None)[named[0]]
    return None if values is None else np.asarray(values)


def check_labels(dataset: Any, num_labels: int) -> None:
    """Refuse labels outside [0, ``num_labels``) among :func:`readable_labels`; soft ones and -100 (ignored) pass.

    Raises:
        ValueError: the model does not have such a class.
    """
    values = readable_labels(dataset)
    if values is not None and values.ndim == 1 and values.dtype.kind in "iu":
        _check_range(values, num_labels)


def check_identities(dataset: Any, k: int) -> None:
    """Refuse identities that do not belong to their labels, if both can be read without decoding images.

    Raises:
        ValueError: as :func:`check_batch`.
    """
    identities, labels = readable_identities(dataset), readable_labels(dataset)
    if k and identities is not None and labels is not None:
        _check_identities(identities, labels, k)


def _check_identities(identities: NDArray[Any], labels: NDArray[Any], k: int) -> None:
    if identities.shape != labels.shape or identities.dtype != np.int64 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"identities must be one int64 number per image, with one whole-number label each, got {identities.dtype} "
            f"of shape {identities.shape} with {labels.dtype} labels of shape {labels.shape}; soft labels (mixup, "
            "cutmix) have no identity"
        )
    wrong = np.flatnonzero(np.where(labels == IGNORED, identities != IGNORED, identities // k != labels))
    if len(wrong):
        raise ValueError(
            f"an image has the label {labels[wrong[0]]} and the identity {identities[wrong[0]]}, but with k={k} a "
            f"class c has the identities {k}c to {k}c + {k - 1}; pass the data of calor-hf decoys deal, and their k"
        )


def _check_range(labels: NDArray[Any], num_labels: int) -> None:
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= num_labels)]
    if len(wrong):
        raise ValueError(
            f"a label of the data is {wrong.max()}, but the model has {num_labels} classes (0 to {num_labels - 1}); "
            f"pass num_labels= the number of classes of the data, and {IGNORED} for images that do not count"
        )
    if len(labels) and (labels == IGNORED).all():
        raise ValueError(f"every label of the data is {IGNORED}, so no image counts; number the classes from 0")


def first_batches(loader: Any, split: str, count: int = 1) -> list[Any]:
    """At most ``count`` batches of ``loader``, at least one.

    Raises:
        ValueError: no batch could be made, or the data and the collator do not fit together.
    """
    try:
        found = list(islice(loader, count))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"no {split} batch can be made: {type(error).__name__}: {error}; samples must be dictionaries with "
            "pixel_values and labels, unless data_collator makes such batches of them (a data set with set_transform "
            "needs remove_unused_columns=False)"
        ) from error
    if not found:
        raise ValueError(f"the {split} data are empty; pass images")
    return found


def check_batch(batch: Any, num_labels: int, split: str, soft: bool = False, k: int = 0) -> None:
    """Refuse a batch without labels, with labels that are no class numbers, or, without ``soft``, with soft ones.

    Identities have to belong to the labels, ``k`` to a class; with ``k`` = 0 the loss does not read any.

    Raises:
        ValueError: the labels, or the identities.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        found = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"a {split} batch must have a tensor named labels, got {found}; see data_collator")
    identities = batch.get("identities")
    if identities is not None and not k:
        raise ValueError(
            f"a {split} batch has identities, which only the defense 'decoys' reads; leave them out, or train that one"
        )
    if identities is not None:
        _check_identities(identities.cpu().numpy(), labels.cpu().numpy(), k)
    if labels.ndim == 1 and labels.dtype == torch.int64:
        _check_range(labels.cpu().numpy(), num_labels)
        return
    mixed = labels.is_floating_point() and labels.shape[1:] == (num_labels,) and bool((labels >= 0).all())
    if not (soft and mixed and torch.allclose(labels.sum(dim=1), labels.new_ones(len(labels)), atol=1e-2)):
        allowed = f" or soft labels (batch, {num_labels}) that add up to 1" if soft else ", no soft ones"
        raise ValueError(
            f"the labels of a {split} batch must be one int64 class per image{allowed}, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; return int(label) from the data set, and mix images in get_train_dataloader only"
        )


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
    """Return the name of a weight, or statistic of ``batch_norms``, that is not finite; None if all are finite."""
    weights = (pair for pair in model.named_parameters() if pair[1].requires_grad)
    statistics = ((f"a batch norm's {name}", value) for norm in batch_norms for name, value in norm.named_buffers())
    return next((name for name, value in chain(weights, statistics) if not value.isfinite().all()), None)


def looks_untrained(model: nn.Module) -> bool:
    """Whether every norm layer of ``model`` is as initialized: random weights, or a checkpoint that was not loaded.

    A norm layer is as initialized if its running statistics, or weight and bias if it has no such statistics, are
    constant. Training changes them, and hardly anything else does. A model without norm layers passes as trained.
    """
    norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    kept = [[*norm.buffers(recurse=False)] or [*norm.parameters(recurse=False)] for norm in norms]
    found = [value.detach() for values in kept for value in values if value.is_floating_point()]
    return bool(found) and all(bool((value == value.flatten()[0]).all()) for value in found)
