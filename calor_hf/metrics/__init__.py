"""How much leaked: one metric a file, found by name."""

from calor_hf.metrics._base import METRICS, Evidence, Measure, Metric, View
from calor_hf.metrics._statistics import paired_difference

__all__ = ["METRICS", "Evidence", "Measure", "Metric", "View", "paired_difference"]
