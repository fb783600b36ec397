"""`calor-hf audit`: attack a model, evaluate the reconstructions, and report it."""

import sys

from calor_hf.cli._command import Command
from calor_hf.recipes.audit import AuditRecipe, run_audit
from calor_hf.recipes.report import status_of

main = Command(
    "audit",
    "Attack an image classifier, let other networks evaluate the reconstructions, and write a report. Use it under"
    " accelerate launch to share the classes between devices and nodes. For a model of the synthetic faces only the"
    " model is needed. Exit status: 0 for the verdicts leaks and found nothing, 4 for inconclusive.",
    AuditRecipe,
    run_audit,
    "Finished chunks are kept. Go on with the same command and --resume.",
    status=status_of,
).main

if __name__ == "__main__":
    sys.exit(main())
