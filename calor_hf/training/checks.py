"""Checks of a training run: labels, batches, the optimizer, weights without gradients, and numbers not finite."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.heads.features import scores_of
from calor_hf.training.checkpoints import complete_checkpoints

IGNORED = -100  # label of images that do not count, as in torch


def readable_labels(dataset: Any) -> NDArray[Any] | None:
    """Labels that can be read without decoding images, or None.

    That is an array ``dataset.labels``, or a column ``labels`` or ``label`` of a ``datasets.Dataset``.
    """
    labels = getattr(dataset, "labels", None)
    columns = getattr(dataset, "column_names", None) or []
    named = [name for name in ("labels", "label") if name in columns]
    if labels is None and named and hasattr(dataset, "with_format") and hasattr(dataset, "__len__"):
        labels = dataset.with_format(None)[named[0]]
    return None if labels is None else np.asarray(labels)


def check_labels(dataset: Any, num_labels: int) -> None:
    """Refuse labels outside [0, ``num_labels``) among :func:`readable_labels`; soft ones and -100 (ignored) pass.

    Raises:
        ValueError: the model does not have such a class.
    """
    values = readable_labels(dataset)
    if values is not None and values.ndim == 1 and values.dtype.kind in "iu":
        _check_range(values, num_labels)


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
        ValueError: there is none, or the data and the collator do not fit together.
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


def check_batch(batch: Any, num_labels: int, split: str, soft: bool = False) -> None:
    """Refuse a batch without labels, with labels that are no class numbers, or, without ``soft``, with soft ones.

    Raises:
        ValueError: the labels.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        found = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"a {split} batch must have a tensor named labels, got {found}; see data_collator")
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


def check_optimizer(optimizer: Any, model: nn.Module, learning_rate: float | None) -> None:
    """Refuse an optimizer that does not hold the weights that learn, or whose rate is not ``learning_rate``, if any.

    Raises:
        ValueError: another model's optimizer, or another rate.
    """
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    left = [name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) not in held]
    if left:
        raise ValueError(
            f"the optimizer lacks {len(left)} of the model's weights ({', '.join(left[:3])}), which would not learn; "
            "make it from the parameters of the defended model, or freeze these with requires_grad_(False)"
        )
    rates = sorted({group.get("initial_lr", group["lr"]) for group in optimizer.param_groups})
    if learning_rate is not None and not any(math.isclose(rate, learning_rate) for rate in rates):
        raise ValueError(
            f"learning_rate is {learning_rate:g}, and the optimizer's is {', '.join(f'{rate:g}' for rate in rates)}; "
            "later stages take a fraction of it: pass learning_rate= the same number"
        )


_REMEDIES = {
    "the scores do not depend on it": "run it without torch.no_grad() and detach()",
    "it is frozen": "call requires_grad_(True) on it, or with peft {peft}",
    "the optimizer does not hold it": "make the optimizer from the parameters of this model",
    "its learning rate is 0": "give its group of the optimizer another one",
}


def check_learns(
    heads: Mapping[str, nn.Module], rest: Sequence[nn.Parameter], optimizer: Any, unused: Container[int]
) -> None:
    """Refuse a run in which a weight of a classification head, or everything in front of the heads, cannot learn.

    A layer with an adapter of peft, or with a copy that is trained instead of it, learns if any of its weights does.

    Args:
        heads: The classification heads by path.
        rest: Weights of the model outside of them; empty if they need not learn.
        optimizer: The optimizer of the run.
        unused: Ids of weights that the scores do not depend on.

    Raises:
        ValueError: the message names the weight, the reason and the remedy.
    """
    rates = {
        id(one): group.get("initial_lr", group["lr"]) for group in optimizer.param_groups for one in group["params"]
    }

    def obstacle(weight: nn.Parameter) -> str | None:
        if id(weight) in unused:
            return "the scores do not depend on it"
        if not weight.requires_grad:
            return "it is frozen"
        if id(weight) not in rates:
            return "the optimizer does not hold it"
        return None if rates[id(weight)] > 0 else "its learning rate is 0"

    for path, head in heads.items():
        of_peft = {name for name, _ in head.named_modules() if name.endswith(("base_layer", "original_module"))}
        adapted = [name.rpartition(".")[0] for name in of_peft]
        layers: dict[str, list[str | None]] = {}
        for name, weight in head.named_parameters():
            layer = next((one for one in adapted if f".{name}".startswith(f".{one}".rstrip(".") + ".")), name)
            layers.setdefault(layer, []).append(obstacle(weight))
        for layer, found in layers.items():
            if None in found:
                continue
            name, reason = f"{path}.{layer}".rstrip("."), str(found[-1])
            remedy = _REMEDIES[reason].format(peft=f'pass modules_to_save=["{path}"], as lora_config(model) does')
            raise ValueError(
                f"{name} cannot learn, as every weight of the classification head has to: {reason}; {remedy}"
            )
    reasons = [obstacle(weight) for weight in rest]
    if reasons and None not in reasons:
        remedy = _REMEDIES[str(reasons[-1])].format(peft="name layers of the backbone as target_modules")
        raise ValueError(
            f"nothing in front of the classification head can learn: of its last weight, {reasons[-1]}; {remedy}, or "
            "train the head alone with the defense 'transfer' and freeze_ratio=1"
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
