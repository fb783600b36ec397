"""The low-rank classification head of CALoR."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.heads.classifier_head import at_least_float32, linear

ACTIVATIONS: dict[str, Any] = {
    "tanh": torch.tanh, "identity": nn.Identity(), "relu": F.relu, "sigmoid": torch.sigmoid
}  # fmt: skip
INPUT_NORMS = (None, "batchnorm")


def check_head(
    in_features: int, num_labels: int, rank: int, activation: str = "tanh", input_norm: str | None = None
) -> None:
    """Raise ``ValueError`` for a head that cannot be built; the message says what to pass instead."""
    limit = min(in_features, num_labels)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
        raise ValueError(
            f"rank must be a whole number between 1 and {limit} (the smaller of {in_features} features and "
            f"{num_labels} classes), got {rank!r}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; pass one of {', '.join(ACTIVATIONS)}")
    if input_norm not in INPUT_NORMS:
        raise ValueError(f"unknown input_norm {input_norm!r}; pass None or 'batchnorm'")


def default_rank(in_features: int, num_labels: int) -> int:
    """Rank used when none is given: a quarter of the smaller side, at least 1 and at most 32."""
    return min(32, max(1, min(in_features, num_labels) // 4))


class BatchNorm(nn.BatchNorm1d):
    """``BatchNorm1d`` that takes a batch of one sample too, such as an epoch's last, while training."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, features) normalized, from the same."""
        if self.training and len(x) == 1:
            # One sample has no variance: the running statistics normalize it, as in evaluation, and stay as they are.
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class LowRankHead(nn.Module):
    """``Linear(m -> r)``, an activation, ``Linear(r -> N)``: only r directions of the features reach the scores.

    The head computes in float32, also under autocast and in half-precision models.

    Args:
        in_features: Width m of the features.
        num_labels: Number N of classes.
        rank: Width r of the compressed code, 1 <= r <= min(m, N).
        activation: Between the two layers: ``tanh`` (the paper's choice), ``identity``, ``relu`` or ``sigmoid``.
        bias: Whether both layers have a bias. The paper's formulas show none and its 2-D example is reproduced only
            without; the authors' code has them, and so do we by default.
        input_norm: ``"batchnorm"`` puts a ``BatchNorm1d(m)`` in front, as the authors' code does (it helps where
            features are far from centered and Tanh saturates); None is the paper's text.

    Raises:
        ValueError: rank outside [1, min(m, N)], or an unknown activation or input_norm.

    Source:
        Yu et al., "CALoR: Towards Comprehensive Model Inversion Defense", 2024, arXiv:2410.05814, section 4.
    """

    def __init__(
        self,
        in_features: int,
        num_labels: int,
        rank: int,
        activation: str = "tanh",
        bias: bool = True,
        input_norm: str | None = None,
    ) -> None:
        super().__init__()
        check_head(in_features, num_labels, rank, activation, input_norm)
        self.activation = activation
        self.norm = BatchNorm(in_features) if input_norm == "batchnorm" else None
        self.down = nn.Linear(in_features, rank, bias=bias)
        self.up = nn.Linear(rank, num_labels, bias=bias)

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that gives the scores."""
        return self.up

    def compress(self, features: Tensor) -> Tensor:
        """(batch, rank) float32 in front of the activation, from (batch, in_features)."""
        with torch.autocast(features.device.type, enabled=False):
            x = at_least_float32(features)
            if self.norm is not None:
                # Batch norm takes inputs in the precision of its weights, which changes if the model is cast.
                x = self.norm(x.to(self.norm.weight.dtype)).to(x.dtype)
            return linear(self.down, x)

    def code(self, features: Tensor) -> Tensor:
        """(batch, rank) float32 that the second layer reads, from (batch, in_features); in (-1, 1) for ``tanh``."""
        with torch.autocast(features.device.type, enabled=False):
            # No half precision here: near ±1 the steps of a bfloat16 Tanh are so coarse that 1 − tanh² is lost.
            return cast(Tensor, ACTIVATIONS[self.activation](self.compress(features)))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits, float32 (float64 for a float64 head), from (batch, in_features) of any type."""
        with torch.autocast(features.device.type, enabled=False):
            return linear(self.up, self.code(features))

    def reset_parameters(self) -> None:
        """Fresh random weights: the framework's default for every layer."""
        if self.norm is not None:
            self.norm.reset_parameters()
        self.down.reset_parameters()
        self.up.reset_parameters()

    def extra_repr(self) -> str:
        """Activation, for ``print(model)``."""
        return f"activation={self.activation}"
