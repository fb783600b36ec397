"""What a defended model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class DefendedImageClassifierOutput(ModelOutput):
    """What the base model returns, and what the head read.

    Attributes:
        loss: Scalar, the sum of ``loss_terms``; with labels only.
        logits: (batch, num_labels) float32 scores; None where classes were scored in chunks.
        hidden_states: As the base model returns them.
        attentions: As the base model returns them.
        features: (batch, features) entering the head.
        loss_terms: Each term of the loss under its name; with labels only.
        margins: As :func:`~calor_hf.heads.chunked_scores.odds`, where classes were scored in chunks.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    features: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    margins: dict[str, Tensor] | None = None
