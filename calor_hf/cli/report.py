"""`calor-hf report`: show the report of an audit again, or compare two."""

from calor_hf.cli._command import Command
from calor_hf.recipes.report import ReportOptions, show_report, status_of

main = Command(
    "report",
    "Show the report of an audit, or compare reports. Exit status: 0 for the verdicts leaks and found nothing, 4 for"
    " inconclusive: with --diff if both audits are, with --seeds if any is.",
    ReportOptions,
    show_report,
    status=status_of,
).main
