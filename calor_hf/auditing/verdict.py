"""The conclusion of an audit: it leaks, nothing was found although it would have been, or no power."""

from dataclasses import replace

from calor_hf.core.report import LeakageReport
from calor_hf.core.report_text import caveats


def concluded(report: LeakageReport) -> LeakageReport:
    """Return the report with its verdict and caveats, computed from the rest of it."""
    return replace(report, caveats=caveats(report))
