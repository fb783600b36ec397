"""One attack for the benchmarks, by each process of a launch: prints the seconds that it took, in the first one."""

import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.attacks import CLASSES, EACH, world
from calor_hf.auditing import run_attack
from calor_hf.core.processes import process_state


def main() -> None:
    """Attack twice; the first time allocates."""
    torch.set_num_threads(1)
    target, generator, attack = world(steps=60)
    with tempfile.TemporaryDirectory() as folder:
        for run in range(2):
            process_state().wait_for_everyone()
            begin = time.perf_counter()
            place = Path(folder) / str(run)
            run_attack(attack, target, generator, range(CLASSES), place, name="gmi", images_per_class=EACH)
            seconds = time.perf_counter() - begin
    if process_state().is_main_process:
        print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
