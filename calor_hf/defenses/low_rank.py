"""Settings and construction of the low-rank head, shared by the defenses that have one."""

import logging
import warnings
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from calor_hf.core.config import MethodConfig, setting
from calor_hf.defenses.base import Defense, Strength
from calor_hf.heads.low_rank_head import ACTIVATIONS, INPUT_NORMS, LowRankHead, check_head, default_rank

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LowRankConfig(MethodConfig):
    """Settings of a low-rank head."""

    rank: int | None = setting(
        None, "Width of the compressed code, 1 to min(features, classes). Default: a quarter of that, at most 32."
    )
    activation: str = setting("tanh", f"Activation inside the head: {', '.join(ACTIVATIONS)}.", choices=ACTIVATIONS)
    bias: bool = setting(True, "Whether the head's layers have biases.")
    input_norm: str | None = setting(None, "batchnorm in front of the head, or None.")

    def validate(self) -> None:
        """Refuse settings from which no head can be built; the upper limit of the rank needs the model."""
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"rank must be a whole number >= 1, got {self.rank!r}")
        if self.input_norm not in INPUT_NORMS:
            raise ValueError(f"unknown input_norm {self.input_norm!r}; pass None or 'batchnorm'")


@dataclass(frozen=True, kw_only=True)
class OptionalLowRankConfig(LowRankConfig):
    """Settings of a low-rank head that a defense can do without."""

    low_rank: bool = setting(True, "Whether the head is low-rank; false keeps the model's own classifier.")

    def validate(self) -> None:
        """Refuse a rank without a low-rank head."""
        super().validate()
        if not self.low_rank and self.rank is not None:
            raise ValueError(f"low_rank=False keeps the model's classifier, so rank={self.rank} says nothing; leave it")


L = TypeVar("L", bound=LowRankConfig)
P = TypeVar("P", bound=OptionalLowRankConfig)


class LowRankDefense(Defense[L]):
    """A defense whose classifier is a :class:`~calor_hf.heads.low_rank_head.LowRankHead`."""

    @property
    def own_head(self) -> bool:
        """The classifier is replaced."""
        return True

    @classmethod
    def complete(cls, config: L, in_features: int, num_labels: int) -> L:
        """Choose the rank if it is left out, and check it against the model."""
        usual = default_rank(in_features, num_labels)
        if config.rank is None:
            config = replace(config, rank=usual)
            smaller = f"min({in_features} features, {num_labels} classes)"
            logger.info("rank not given: %d, a quarter of %s, at most 32", usual, smaller)
        rank: Any = config.rank
        check_head(in_features, num_labels, rank, config.activation, config.input_norm)
        if rank == min(in_features, num_labels):
            warnings.warn(
                f"rank {rank} is the full rank of {in_features} features and {num_labels} classes: the head hides "
                f"nothing{f'; try rank={usual}' if usual < rank else ''}",
                stacklevel=2,
            )
        return config

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength | None:
        """The rank: from half of the full one down to 2."""
        full = min(in_features, num_labels)
        return Strength("rank", max(1, full // 2), min(2, full), log=True, whole=True)

    def build_head(self, in_features: int, num_labels: int) -> LowRankHead:
        """``Linear(m -> r)``, the activation, ``Linear(r -> N)`` with random weights."""
        c = self.config
        rank = c.rank if c.rank is not None else default_rank(in_features, num_labels)
        return LowRankHead(in_features, num_labels, rank, c.activation, c.bias, c.input_norm)


class OptionalLowRankDefense(LowRankDefense[P]):
    """A defense whose classifier is low-rank if ``low_rank`` is set, else the model's own."""

    @property
    def own_head(self) -> bool:
        """The classifier is replaced by a low-rank one, if there is one."""
        return self.config.low_rank

    @classmethod
    def complete(cls, config: P, in_features: int, num_labels: int) -> P:
        """Choose the rank if it is left out, and check it against the model."""
        return super().complete(config, in_features, num_labels) if config.low_rank else config

    def build_head(self, in_features: int, num_labels: int) -> LowRankHead:
        """As :meth:`LowRankDefense.build_head`, if there is a low-rank head."""
        if not self.config.low_rank:
            raise NotImplementedError(f"{type(self).__name__} keeps the model's classifier")
        return super().build_head(in_features, num_labels)
