"""`calor-hf report`: show the report of an audit again, or compare two."""

from calor_hf.cli._command import Command
from calor_hf.recipes.report import ReportOptions, show_report, status_of

main = Command(
    "report",
    "Show the report of an audit, or compare reports. Exit status: 0 if it leaks, or nothing was found although"
    " it would have been; 4 if inconclusive: with --diff both audits, with --seeds any of them.",
    ReportOptions,
    show_report,
    status=status_of,
).main
