"""No defense: cross-entropy, the reference for every defense."""

from dataclasses import dataclass

from calor_hf.core.config import MethodConfig
from calor_hf.defenses.base import DEFENSES, Defense


@dataclass(frozen=True, kw_only=True)
class NoDefenseConfig(MethodConfig):
    """:class:`NoDefense` has no settings."""


@DEFENSES.register("none")
class NoDefense(Defense[NoDefenseConfig]):
    """Cross-entropy on an ordinary classifier."""

    config_class = NoDefenseConfig
    log_odds_suffice = True
