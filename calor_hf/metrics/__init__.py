"""Leakage metrics, one per file, found by name."""

from typing import TYPE_CHECKING, Any

from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, View, mean_over_identities, mean_over_images
from calor_hf.metrics.statistics import paired_difference

if TYPE_CHECKING:
    from calor_hf.metrics._evaluate import AccuracyDifference, load_metric

__all__ = [
    "METRICS", "AccuracyDifference", "Evidence", "Measure", "Metric", "View", "load_metric", "mean_over_identities",
    "mean_over_images", "paired_difference",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in ("AccuracyDifference", "load_metric"):
        raise AttributeError(f"module 'calor_hf.metrics' has no attribute {name!r}; it has {', '.join(__all__)}")
    from calor_hf.metrics import _evaluate  # here, as `evaluate` takes seconds to import

    return getattr(_evaluate, name)
