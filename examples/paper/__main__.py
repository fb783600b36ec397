"""The paper's laboratory: ``python -m examples.paper NAME`` repeats an analysis of the paper."""

import sys

from examples.paper.study_command import main

if __name__ == "__main__":
    sys.exit(main())
