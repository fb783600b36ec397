"""LoFt: the low-rank head with plain cross-entropy."""

from dataclasses import dataclass

from calor_hf.defenses.base import DEFENSES
from calor_hf.defenses.low_rank import LowRankConfig, LowRankDefense


@dataclass(frozen=True, kw_only=True)
class LoFtConfig(LowRankConfig):
    """Settings of :class:`LoFt`."""


@DEFENSES.register("loft")
class LoFt(LowRankDefense[LoFtConfig]):
    """Low-rank head trained with cross-entropy alone, CALoR's later version (Yu et al., KDD 2026).

    Only parts of the later version's text were available: its title, abstract and summaries mention low-rank filtering
    of the features and no confidence adaptation, so this is CALoR without its second stage (the rows "LoR" of the first
    version's tables).

    Source:
        Yu et al., "Rank Matters", KDD 2026, doi:10.1145/3770854.3780328; arXiv:2410.05814v4.
    """

    config_class = LoFtConfig
    log_odds_suffice = True
