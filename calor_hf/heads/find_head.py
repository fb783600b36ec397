"""Finding the classifier of any image classification model, and taking it out."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

_FOUND: dict[tuple[type[PreTrainedModel], str], list[str]] = {}


def find_heads(model_class: type[PreTrainedModel], config: PretrainedConfig) -> list[str]:
    """Module paths of the layers whose size follows ``num_labels``: the classification heads.

    The class is built twice without memory (on the meta device) with two numbers of labels; the modules that own
    parameters whose shapes differ are the heads. No input and no forward pass is needed, and nothing is guessed
    from names. Paths are remembered by class and configuration.

    Args:
        model_class: Class with the classifier, e.g. ``ViTForImageClassification``.
        config: Its configuration; left as it is.

    Returns:
        Paths as in ``named_modules``, in order of definition; empty if the model has no such layer.
    """
    key = model_class, config.to_json_string(use_diff=False)
    if key in _FOUND:
        return list(_FOUND[key])
    shapes: list[dict[str, torch.Size]] = []
    for num_labels in (7, 11):
        # num_labels rewrites the label names of a configuration, so it is set on a copy.
        copied = copy.deepcopy(config)
        copied.num_labels = num_labels
        with torch.device("meta"):
            model = model_class(copied)
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    first, second = shapes
    heads = [name.rpartition(".")[0] for name in first if name in second and first[name] != second[name]]
    _FOUND[key] = list(dict.fromkeys(heads))
    return list(_FOUND[key])


def check_heads(model: nn.Module, paths: Sequence[str]) -> list[int]:
    """Number of features that each classifier at ``paths`` reads, in a model with its ordinary classifiers.

    Raises:
        ValueError: there is no path, a path does not exist, or it is no linear layer (or 1x1 convolution) with as
            many outputs as the model has classes.
    """
    name = type(model).__name__
    if not paths:
        raise ValueError(
            f"no classifier head found in {name}: no layer's size follows num_labels, as where the scores are words "
            'of a language model; pass head="name.of.linear" if there is one'
        )
    modules = dict(model.named_modules())
    linears = [path for path, module in modules.items() if isinstance(module, nn.Linear)]
    expected = getattr(getattr(model, "config", None), "num_labels", None)
    widths = []
    for path in paths:
        if path not in modules:
            near = f"; its last linear layers: {', '.join(linears[-4:])}" if linears else ""
            raise ValueError(f"{name} has no module {path!r}{near}")
        if (size := _size(modules[path])) is None:
            raise ValueError(
                f"expected a linear layer or 1x1 convolution at {path!r} of {name}, found "
                f"{type(modules[path]).__name__}; pass head= the path of one"
            )
        width, found = size
        if expected is not None and found != expected:
            raise ValueError(
                f"{path!r} of {name} gives {found} numbers, but the model has {expected} classes: it is not the "
                "classifier; pass head= the path of the layer that gives the scores"
            )
        widths.append(width)
    return widths


def take_out_heads(model: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    """Take out and return the classifiers at ``paths``, so that the model's scores become the classifiers' inputs.

    A single classifier is replaced by the identity. If a model returns the mean of several as its scores, each is
    replaced by a :class:`HeadSlot`, and the scores become their inputs side by side.
    """
    heads = [model.get_submodule(path) for path in paths]
    widths = [cast("tuple[int, int]", _size(head))[0] for head in heads]
    for index, (path, head) in enumerate(zip(paths, heads, strict=True)):
        slot = HeadSlot(widths, index, isinstance(head, nn.Conv2d)) if len(paths) > 1 else NoHead()
        _set_module(model, path, slot)
    return heads


def put_back_heads(model: nn.Module, paths: Sequence[str], heads: Sequence[nn.Module]) -> None:
    """Undo :func:`take_out_heads`, which returned ``heads``."""
    for path, head in zip(paths, heads, strict=True):
        _set_module(model, path, head)


class NoHead(nn.Identity):
    """Stands where the classifier was."""

    @property
    def weight(self) -> Tensor:
        """No weight: CLIP and SigLIP of transformers before 5.23 start the one they expect here."""
        return torch.empty(0)


class HeadSlot(NoHead):
    """Stands where one of several classifiers was: its input, between zeros for the inputs of the others.

    Args:
        widths: Number of features that each classifier reads.
        index: Which of them this is.
        channels_first: Features lie along the second axis, as a convolution reads them, not along the last.
    """

    def __init__(self, widths: Sequence[int], index: int, channels_first: bool = False) -> None:
        super().__init__()
        self.count = len(widths)
        self.padding = (sum(widths[:index]), sum(widths[index + 1 :]))
        self.channels_first = channels_first

    def forward(self, input: Tensor) -> Tensor:
        """(batch, width) to (batch, all widths); other axes stay."""
        # F.pad counts axes from the last one, so those behind the channels are named too.
        before_axis = (0, 0) * (input.ndim - 2) if self.channels_first else ()
        # The model takes the mean over its classifiers; times their number it is their inputs side by side.
        return F.pad(input, (*before_axis, *self.padding)) * self.count


def _size(head: nn.Module) -> tuple[int, int] | None:
    if isinstance(head, nn.Linear):
        return head.in_features, head.out_features
    if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) and head.groups == 1:
        return head.in_channels, head.out_channels
    return None


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
