"""No defense: cross-entropy, the reference for every defense."""

from dataclasses import dataclass

from torch import Tensor

from calor_hf.core.config import MethodConfig
from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses.base import DEFENSES, Defense, cross_entropy


@dataclass(frozen=True, kw_only=True)
class NoDefenseConfig(MethodConfig):
    """:class:`NoDefense` has no settings."""


@DEFENSES.register("none")
class NoDefense(Defense[NoDefenseConfig]):
    """Cross-entropy on an ordinary classifier."""

    config_class = NoDefenseConfig
    log_odds_suffice = True

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``cross_entropy`` in nats, the mean over the batch."""
        return {"cross_entropy": cross_entropy(out)}
