"""Numerical rank of a classifier's head: how many directions of the features can reach the scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calor_hf.heads.classifier_head import heads_of
from calor_hf.heads.find_head import find_heads


@dataclass(frozen=True)
class LayerRank:
    """Rank of one linear layer of a head.

    Attributes:
        name: Path in the model.
        in_features: Width of its input.
        out_features: Width of its output.
        rank: Numerical rank of its weight, at most the smaller of the two.
    """

    name: str
    in_features: int
    out_features: int
    rank: int

    @property
    def free_dimensions(self) -> int:
        """Dimension of the null space: directions of the input that the layer does not see."""
        return self.in_features - self.rank


@dataclass(frozen=True)
class RankAudit:
    """Ranks of the linear layers of a model's head, and of the whole map.

    Attributes:
        layers: In order of definition.
        head_rank: Rank of the map from features to scores: of the layers' product if they follow one another,
            otherwise an upper limit, the smallest rank of a layer; for several heads the largest.
    """

    layers: tuple[LayerRank, ...]
    head_rank: int

    def __str__(self) -> str:
        shapes = ", ".join(f"{r.in_features}→{r.out_features}: {r.rank}" for r in self.layers)
        return f"{self.head_rank} ({shapes})"


def rank_audit(model: PreTrainedModel) -> RankAudit:
    """Ranks in the head of a classifier: the paper's Table 19.

    Singular values are computed in float64; those above σ_max · max(shape) · ε count, which is NumPy's default. With
    an activation between two layers, the rank of their product is that of the linear map without it.

    Args:
        model: Defended model, or any image classification model of transformers.

    Raises:
        ValueError: no linear layer in the head.

    Source:
        Yu et al., "CALoR: Towards Comprehensive Model Inversion Defense", 2024, arXiv:2410.05814, Table 19.
    """
    head = getattr(model, "classification_head", None)
    if head is not None:
        parts = {f"classification_head{f'.heads.{i}' if len(heads_of(head)) > 1 else ''}": part
                 for i, part in enumerate(heads_of(head))}  # fmt: skip
    else:
        parts = {path: model.get_submodule(path) for path in find_heads(type(model), model.config)}
    layers: list[LayerRank] = []
    ranks: list[int] = []
    for path, part in parts.items():
        found = {name: m for name, m in part.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        # In float64: the tolerance of float32 would hide small singular values that the weights do have.
        weights = [m.weight.detach().double().flatten(1).cpu() for m in found.values()]
        layers += [
            LayerRank(".".join(filter(None, (path, name))), w.shape[1], w.shape[0], matrix_rank(w))
            for name, w in zip(found, weights, strict=True)
        ]
        if weights:
            ranks.append(_rank_of_map(weights))
    if not layers:
        raise ValueError(f"no linear layer in the head of {type(model).__name__}: it has no classifier to audit")
    return RankAudit(tuple(layers), max(ranks))


def matrix_rank(weight: Tensor) -> int:
    """Numerical rank of a (rows, columns) float64 matrix, with NumPy's default tolerance."""
    return int(torch.linalg.matrix_rank(weight))


def _rank_of_map(weights: Sequence[Tensor]) -> int:
    product = weights[0]
    for weight in weights[1:]:
        if weight.shape[1] != product.shape[0]:
            return min(matrix_rank(w) for w in weights)
        product = weight @ product
    return matrix_rank(product)
