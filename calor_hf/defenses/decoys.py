"""Decoy identities: each class is trained on its private identity and k − 1 others, all treated alike."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.base import DEFENSES, Defense, cross_entropy
from calor_hf.heads.classifier_head import MeanOfHeads, at_least_float32, linear
from calor_hf.heads.low_rank_head import LowRankHead, check_head

SCORES = "identity_scores"
"""Name of the identity scores among the outputs of the head."""


@dataclass(frozen=True, kw_only=True)
class DecoysConfig(MethodConfig):
    """Settings of :class:`Decoys`."""

    k: int = setting(4, "Identities per class, 2 to 16: the private one and k - 1 decoys.", ge=2, le=16)
    rank: int | None = setting(None, "Width of a low-rank head with Tanh, >= 1. Default: a linear head.", ge=1)


class DecoyHead(nn.Module):
    """Scores of k·N identities, and class scores: the logsumexp over the k identities of each class.

    Class c has the identities c·k to c·k + k − 1, in the order of the data, which is random and secret. Scores are
    computed in float32.

    Args:
        in_features: Width m of the features.
        num_labels: Number N of classes.
        k: Identities per class.
        rank: Width r of ``Linear(m -> r)``, Tanh, ``Linear(r -> k·N)``; None means ``Linear(m -> k·N)``.
    """

    def __init__(self, in_features: int, num_labels: int, k: int, rank: int | None = None) -> None:
        super().__init__()
        self.k = k
        self.scorer: nn.Linear | LowRankHead = (
            nn.Linear(in_features, k * num_labels) if rank is None else LowRankHead(in_features, k * num_labels, rank)
        )

    @property
    def last_layer(self) -> nn.Linear:
        """The layer that gives the identity scores."""
        return self.scorer if isinstance(self.scorer, nn.Linear) else self.scorer.last_layer

    def identity_scores(self, features: Tensor) -> Tensor:
        """(batch, k·N) logits of the identities, float32, from (batch, in_features)."""
        with torch.autocast(features.device.type, enabled=False):
            x = at_least_float32(features)
            return linear(self.scorer, x) if isinstance(self.scorer, nn.Linear) else cast(Tensor, self.scorer(x))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, num_labels) logits, float32."""
        return class_scores(self.identity_scores(features), self.k)


def class_scores(identity_scores: Tensor, k: int) -> Tensor:
    """(..., classes) logits from (..., k·classes): the logsumexp over the k identities of each class."""
    by_class: Tensor = identity_scores.unflatten(-1, (-1, k))
    # The softmax over classes is then the sum of the identities' probabilities, so that the model is an ordinary one
    # of N classes for whatever saves, loads or exports it.
    return by_class.logsumexp(dim=-1)


@DEFENSES.register("decoys")
class Decoys(Defense[DecoysConfig]):
    """Decoy identities: k per class, of which the model does not tell the private one (this library, 2026).

    Training data carry ``identities`` in [0, k·N) in addition to ``labels``, and the loss is the cross-entropy over
    identities; identity i belongs to class i // k. With labels alone, the loss is that over classes. Nothing here
    knows which identity of a class is the private one: ``calor-hf decoys deal`` draws that, and keeps it apart.

    If private identities and decoys are exchangeable, an attacker names the private one of a class with probability
    1/k, however strong the attack. This holds only for an attacker whose other knowledge (photographs, registers, face
    search) is symmetric in the k identities; it fails completely if decoys do not exist and the attacker can search
    real faces, and if another model of the private people alone is released.
    """

    config_class = DecoysConfig
    release_warning = (
        "keep the assignment of the decoys, and every other model of the private people, secret: with either of them "
        "the decoys hide no one"
    )

    @property
    def own_head(self) -> bool:
        """The classifier is replaced."""
        return True

    @property
    def identities_per_class(self) -> int:
        """The setting k."""
        return self.config.k

    @classmethod
    def complete(cls, config: DecoysConfig, in_features: int, num_labels: int) -> DecoysConfig:
        """Check the rank against the model."""
        if config.rank is not None:
            check_head(in_features, config.k * num_labels, config.rank)
        return config

    def build_head(self, in_features: int, num_labels: int) -> DecoyHead:
        """The head with random weights."""
        return DecoyHead(in_features, num_labels, self.config.k, self.config.rank)

    def run_head(self, head: nn.Module, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and ``identity_scores`` (heads, batch, k·N)."""
        parts: list[tuple[Any, Tensor]] = [(head, features)]
        if isinstance(head, MeanOfHeads):
            parts = list(head.parts(features))
        scores = torch.stack([part.identity_scores(some) for part, some in parts])
        return class_scores(scores, self.config.k).mean(0), {SCORES: scores}

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``identity_cross_entropy``, in nats; ``cross_entropy`` over classes if there are no identities.

        Each of several heads learns the identities by itself. ``class_weights`` weigh the identities of a class alike.
        """
        if out.identities is None:
            return {"cross_entropy": cross_entropy(out)}
        # Alike within a class: weights by identity would treat the private one differently.
        weights = None if out.class_weights is None else out.class_weights.repeat_interleave(self.config.k)
        # A loss over classes would leave open which identity an image is, and costs far more accuracy.
        losses = [F.cross_entropy(scores, out.identities, weight=weights) for scores in out.extras[SCORES]]
        return {"identity_cross_entropy": torch.stack(losses).mean()}
