"""Cost that `calor-hf plan` states, compared with the measured one: one training run and two audits.

The peak memory of a run is that of its process. Run it where nothing else runs: a plan takes the machine to be as busy
during the run as it was while it measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._paired import show

TRAIN = ["--num-train-epochs", "8", "--adapt-epochs", "2", "--max-accuracy-drop", "100", "--report-to", "none"]
AUDITS = [
    ["--attacks", "plg", "ppa", "--classes", "0-9"],
    ["--attacks", "auto", "--budget", "0.1", "--classes", "0-11"],
]
PASSES = ("generator_passes", "target_passes", "target_gradients")


def run(*words: str) -> tuple[float, float]:
    """Run ``calor-hf``; wall time in seconds, and peak memory in MiB."""
    begin = time.perf_counter()
    script = "import sys; from calor_hf.cli.main import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"calor-hf {' '.join(words)} failed")
    return time.perf_counter() - begin, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare(name: str, folder: Path, command: str, words: list[str], output: Path) -> None:
    """Plan a run, run it, and print how far apart they are."""
    file = folder / f"{name}.json"
    spent, _ = run("plan", "--json", str(file), command, *words)
    plan: dict[str, Any] = json.loads(file.read_text())
    seconds, memory = run(command, *words)
    planned = plan["memory_bytes"] / 2**20
    exact = train_passes(plan, output) if command == "train" else audit_passes(plan, output)
    print(f"{name}: planned in {spent:.0f} s")
    at_least = plan["at_least_seconds"]
    print(f"  time    planned {at_least:6.1f} to {plan['seconds']:6.1f} s, was {seconds:6.1f} s, ratio "
          f"{plan['seconds'] / seconds:.2f}")  # fmt: skip
    print(f"  memory  planned {planned:6.0f} MiB, was {memory:6.0f} MiB, ratio {planned / memory:.2f}")
    print(f"  passes  {exact}", flush=True)
    for what, ratio in (("time", plan["seconds"] / seconds), ("peak memory", planned / memory)):
        show(f"calor-hf plan, {name}: {what}, planned / was (one run)", (ratio, ratio, ratio), "0.7 to 1.3", "1")


def train_passes(plan: dict[str, Any], output: Path) -> str:
    """Training images of each stage, planned and as the run's steps make them."""
    steps = json.loads((output / "metrics.json").read_text())["steps"]
    planned = {part["name"]: part["passes"].get("model_backward", 0) for part in plan["parts"]}
    return ", ".join(f"{stage}: planned {planned[stage]}, was {32 * count}" for stage, count in steps.items())


def audit_passes(plan: dict[str, Any], output: Path) -> str:
    """Passes of each attack, planned and counted."""
    found = []
    for part in plan["parts"]:
        file = output / part["name"] / "attack.json"
        if file.is_file():
            cost = json.loads(file.read_text())["cost"]
            ratios = ", ".join(f"{name} {part['passes'][name] / max(cost[name], 1):.2f}" for name in PASSES)
            found.append(f"{part['name']}: planned / was {ratios}")
    return ", ".join(found)


def main() -> None:
    """Goal: time, memory and passes within 30 %."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = folder / "model"
        compare("train", folder, "train", [*TRAIN, "--output-dir", str(model)], model)
        for number, words in enumerate(AUDITS):
            output = folder / f"audit-{number}"
            own = [str(model), "--evaluation-model", str(model / "stage-1"), "--output-dir", str(output), *words]
            compare(f"audit {' '.join(words)}", folder, "audit", own, output)


if __name__ == "__main__":
    main()
