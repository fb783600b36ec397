"""`calor-hf audit`: attack a model, evaluate the reconstructions, and report it."""

import sys
from collections.abc import Sequence

from calor_hf.cli._command import run_command
from calor_hf.cli._options import parser_for, read_options
from calor_hf.recipes.audit import AuditRecipe, run_audit

DESCRIPTION = """Attack an image classifier, let other networks evaluate the reconstructions, and write a report. Use it
under accelerate launch to share the classes between devices and nodes. For a model of the synthetic faces only --target
is needed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns as :func:`~calor_hf.cli._command.run_command`."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> None:
        run_audit(read_options(AuditRecipe, parser_for(AuditRecipe, "audit", DESCRIPTION), words))

    return run_command("audit", run, "Finished chunks are kept; go on with the same command and --resume.")


if __name__ == "__main__":
    sys.exit(main())
