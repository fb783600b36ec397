"""Publish a defended model with its evidence; ``calor-hf push`` is the same.

The model that ``make demo`` trained and audited; first what would be published, then for real::

    python examples/push_to_hub.py outputs/demo you/demo --report outputs/demo-audit --license apache-2.0 --dry-run
    python examples/push_to_hub.py outputs/demo you/demo --report outputs/demo-audit --license apache-2.0

A model of real people: numbers instead of their names, and only you can see it::

    python examples/push_to_hub.py outputs/vit you/vit --report outputs/audit --anonymize-labels --private

What happens, in order (`calor_hf/hub/` has each step): the numbers of training and audit are read, and refused if they
belong to other weights; the card is written from them, around what you wrote into the one before; the files on the list
of `calor_hf/hub/release.py` are uploaded; one commit makes them visible together. If the connection breaks, the old
revision stays, and the same command goes on.
"""

import sys

from calor_hf.cli.push import main

if __name__ == "__main__":
    sys.exit(main())
