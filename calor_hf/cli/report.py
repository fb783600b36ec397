"""`calor-hf report`: show the report of an audit again, or compare two."""

from calor_hf.cli._command import Command
from calor_hf.recipes.report import ReportOptions, show_report

main = Command("report", "Show the report of an audit, or compare reports.", ReportOptions, show_report).main
