"""Finding the classifier of any image classification model, and taking it out."""

import copy
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def find_heads(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> list[str]:
    """Module paths of the layers whose size follows ``num_labels``: the classification heads.

    The class is built twice without memory (on the meta device) with two numbers of labels; the modules that own
    parameters whose shapes differ are the heads. No input and no forward pass is needed, and nothing is guessed
    from names.

    Args:
        model_class: Class with the classifier, e.g. ``ViTForImageClassification``.
        config: Its configuration; left as it is.

    Returns:
        Paths as in ``named_modules``, in order of definition; empty if the model has no such layer.
    """
    shapes = [_parameter_shapes(model_class, config, num_labels) for num_labels in (7, 11)]
    heads = {
        name.rpartition(".")[0] for name in shapes[0].keys() & shapes[1].keys() if shapes[0][name] != shapes[1][name]
    }
    order = {name.rpartition(".")[0]: None for name in shapes[0]}
    return [path for path in order if path in heads]


def check_heads(model: nn.Module, paths: list[str]) -> int:
    """Width of the features that the classifier at ``paths`` reads.

    Args:
        model: Model with its ordinary classifier.
        paths: Module paths of the classifier's layers.

    Returns:
        Number of input features.

    Raises:
        ValueError: there is no path, a path does not exist, more than one is given, or it is no linear layer with
            as many outputs as the model has classes.
    """
    name = type(model).__name__
    if not paths:
        raise ValueError(f'no classifier head found in {name}; pass head="name.of.linear"')
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    for path in paths:
        if path not in dict(model.named_modules()):
            near = f"; its last linear layers: {', '.join(linears[-4:])}" if linears else ""
            raise ValueError(f"{name} has no module {path!r}{near}")
        if not isinstance(model.get_submodule(path), nn.Linear):
            kind = type(model.get_submodule(path)).__name__
            raise ValueError(f"expected a linear layer at {path!r} of {name}, found {kind}; pass head= the path of one")
    expected = getattr(getattr(model, "config", None), "num_labels", None)
    for path in paths:
        found = cast(nn.Linear, model.get_submodule(path)).out_features
        if expected is not None and found != expected:
            raise ValueError(
                f"{path!r} of {name} gives {found} numbers, but the model has {expected} classes: it is not the "
                "classifier; pass head= the path of the layer that gives the scores"
            )
    if len(paths) > 1:
        raise ValueError(
            f"{name} has {len(paths)} classifier heads ({', '.join(paths)}); models with one head are supported: "
            "use the sibling class without distillation head"
        )
    return cast(nn.Linear, model.get_submodule(paths[0])).in_features


def take_out_head(model: nn.Module, path: str) -> nn.Linear:
    """Replace the linear layer at ``path`` by the identity, so that the model's logits are the head's inputs.

    Returns:
        The layer taken out.
    """
    head = cast(nn.Linear, model.get_submodule(path))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    return head


def _parameter_shapes(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, num_labels: int
) -> dict[str, torch.Size]:
    config = copy.deepcopy(config)
    config.num_labels = num_labels
    with torch.device("meta"):
        model = model_class(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}
