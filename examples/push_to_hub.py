# /// script
# requires-python = ">=3.10"
# dependencies = ["calor-hf"]
# ///
"""Publish a defended model with its evidence, from Python; ``calor-hf push`` is the command with all options.

A model that ``make demo`` trained and audited; first what would be published, then for real::

    python examples/push_to_hub.py outputs/demo/calor you/demo outputs/demo/audit-calor
    python examples/push_to_hub.py outputs/demo/calor you/demo outputs/demo/audit-calor --now

Steps, in order (`calor_hf/hub/` has each step): the numbers of training and audit are read, and refused if they
belong to other weights; the card is written from them, around what you wrote into the one before; the files on the list
of `calor_hf/hub/release.py` are uploaded; one commit makes them visible together. If the connection breaks, the old
revision stays, and the same command goes on.
"""

import sys
from pathlib import Path

from calor_hf.recipes.release import PushOptions, push

if __name__ == "__main__":
    model, repo_id, audit, *now = sys.argv[1:]
    options = PushOptions(
        model=Path(model),
        repo_id=repo_id,
        report=audit,
        license="apache-2.0",
        anonymize_labels=True,  # numbers instead of class names, which may be people's
        dry_run=now != ["--now"],
    )
    push(options)
