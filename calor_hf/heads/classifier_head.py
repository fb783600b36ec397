"""Heads that turn features into scores: a model's own classifier, and the mean of several heads."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassifierHead(nn.Module):
    """A base model's own classifier, applied to features in float32, as every head is."""

    def __init__(self, classifier: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.classifier = classifier

    @property
    def last_layer(self) -> nn.Linear | nn.Conv2d:
        """The layer that gives the scores."""
        return self.classifier

    def forward(self, features: Tensor) -> Tensor:
        """(batch, classes) logits from (batch, features); float32, float64 for float64 features."""
        with torch.autocast(features.device.type, enabled=False):
            return linear(self.classifier, at_least_float32(features))


class MeanOfHeads(nn.Module):
    """Heads of a model with several classifiers: each reads its part of the features, the scores are averaged.

    Args:
        heads: One or more heads with the same classes; their features lie side by side in the input.
        widths: Number of features that each reads.
    """

    def __init__(self, heads: Sequence[nn.Module], widths: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.widths = list(widths)

    def code(self, features: Tensor) -> Tensor:
        """(batch, all ranks) float32: the codes of low-rank heads side by side."""
        return torch.cat([head.code(part) for head, part in self.parts(features)], dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits from (batch, all features)."""
        return torch.stack([head(part) for head, part in self.parts(features)]).mean(0)

    def parts(self, features: Tensor) -> Iterator[tuple[Any, Tensor]]:
        """Each head with its part of the features."""
        return zip(self.heads, features.split(self.widths, dim=1), strict=True)


def heads_of(head: nn.Module) -> list[nn.Module]:
    """The heads that a model's scores come from: one, or those of a :class:`MeanOfHeads`."""
    return list(head.heads) if isinstance(head, MeanOfHeads) else [head]


def same_kind(classifier: nn.Module, num_labels: int) -> nn.Linear | nn.Conv2d:
    """``classifier`` itself if it has ``num_labels`` outputs, else one like it with random weights."""
    has_bias = classifier.bias is not None
    if isinstance(classifier, nn.Conv2d):
        if classifier.out_channels == num_labels:
            return classifier
        return nn.Conv2d(classifier.in_channels, num_labels, 1, bias=has_bias, device=classifier.weight.device)
    classifier = cast(nn.Linear, classifier)
    if classifier.out_features == num_labels:
        return classifier
    return nn.Linear(classifier.in_features, num_labels, bias=has_bias, device=classifier.weight.device)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def linear(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """(batch, outputs) of a linear layer or 1x1 convolution for (batch, inputs), in the precision of ``x``."""
    # Called as a module wherever that is possible, so that hooks, adapters and quantized layers stay in the path;
    # a layer that was cast to half precision still computes in float32.
    if getattr(layer.weight, "dtype", x.dtype) == x.dtype:
        return cast(Tensor, layer(x) if not isinstance(layer, nn.Conv2d) else layer(x[..., None, None]).flatten(1))
    return F.linear(x, layer.weight.flatten(1).to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))
