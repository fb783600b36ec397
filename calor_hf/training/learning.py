"""Which weights learn: the heads, what is in front of them, and what neither the scores nor the optimizer know."""

import math
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.core.seeding import unchanged_randomness
from calor_hf.defenses.base import Defense
from calor_hf.heads.features import scores_of
from calor_hf.heads.find_head import find_heads


def heads_by_path(model: Any) -> dict[str, nn.Module]:
    """Classification heads of a defended or an ordinary model."""
    if isinstance(getattr(model, "defense", None), Defense):
        return {"classification_head": model.classification_head}
    with unchanged_randomness():  # the class is built anew
        paths = find_heads(type(model), model.config)
    return {path: model.get_submodule(path) for path in paths}


def freeze(weights: Iterable[nn.Parameter]) -> None:
    """Let ``weights`` stay as they are."""
    for weight in weights:
        weight.requires_grad_(False)


def in_front_of_heads(model: nn.Module) -> tuple[list[nn.Parameter], list[_BatchNorm]]:
    """Weights and batch norms of ``model`` outside of its classification heads."""
    inside = {id(part) for head in heads_by_path(model).values() for part in (*head.parameters(), *head.modules())}
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and id(part) not in inside]
    return [weight for weight in model.parameters() if id(weight) not in inside], norms


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


def check_learns(model: nn.Module, optimizer: Any, unused: Container[int], head_alone: bool) -> None:
    """Refuse a run in which a weight of a classification head, or everything in front of the heads, cannot learn.

    A layer with an adapter of peft, or with a copy that is trained instead of it, learns if any of its weights does.

    Args:
        model: The model; inside a ``PeftModel``, the one in it.
        optimizer: The optimizer of the run.
        unused: Ids of weights that the scores do not depend on.
        head_alone: Whether only the heads need to learn.

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

    for path, head in heads_by_path(model).items():
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
    reasons = [] if head_alone else [obstacle(weight) for weight in in_front_of_heads(model)[0]]
    if reasons and None not in reasons:
        remedy = _REMEDIES[str(reasons[-1])].format(peft="name layers of the backbone as target_modules")
        raise ValueError(
            f"nothing in front of the classification head can learn: of its last weight, {reasons[-1]}; {remedy}, or "
            "pass head_only=True (--head-only) to train the head alone"
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
