"""`calor-hf report`: show the report of an audit again, or compare two."""

import sys
from collections.abc import Sequence

from calor_hf.cli._command import run_command
from calor_hf.cli._options import parser_for, read_options
from calor_hf.recipes.report import ReportOptions, show_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns as :func:`~calor_hf.cli._command.run_command`."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = parser_for(ReportOptions, "report", "Show the report of an audit, or compare reports.")
    return run_command("report", lambda: show_report(read_options(ReportOptions, parser, words)), "Nothing was lost.")


if __name__ == "__main__":
    sys.exit(main())
