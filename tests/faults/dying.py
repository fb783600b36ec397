"""A command in several processes, one of which dies: ``torchrun -m tests.faults.dying FOLDER STEP WORDS``.

Every process leaves its number in ``FOLDER``; that of rank 1 is killed after optimiser step ``STEP`` (0: never).
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from calor_hf.cli.main import main


def dying(folder: str, last_step: str, *words: str) -> int:
    rank, steps = os.environ["RANK"], [0]
    Path(folder, f"{rank}.pid").write_text(str(os.getpid()))

    def after_step(*_: Any) -> None:
        steps[0] += 1
        if rank == "1" and steps[0] == int(last_step):
            Path(folder, "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(after_step)
    return main(words)


if __name__ == "__main__":
    sys.exit(dying(*sys.argv[1:]))
