"""Training as it can be speeded up, and against what a privacy-minded user would take instead.

CALoRTrainer against the plain Trainer, both in bfloat16, compiled, or in two processes of one thread each; and against
DP-SGD (Opacus) on the same model. ViT-S geometry at 112 pixels, each run in a process of its own, in turns.
bfloat16 is left out if the processor has no instructions for it (here it was 30 times slower than float32), DP-SGD
without ``pip install opacus``.
"""

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import torch

from benchmarks._paired import ONE, TWO, in_turns, median_interval, run_module, show

PAIRS, BATCH = 5, 16
RUN = "benchmarks._training_run"
MODES: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": True},
    "torch.compile": {"torch_compile": True, "steps": 8},
    "2 processes": {},
}


def run(who: str, mode: str) -> Callable[[], dict[str, float]]:
    """A run of ``who``, to be called."""
    options = json.dumps({"batch": BATCH, "steps": 5, **MODES.get(mode, {})})
    return lambda: run_module(RUN, who, options, launcher=TWO if mode == "2 processes" else ONE)


def main() -> None:
    """Print all ratios."""
    for mode in MODES:
        if mode == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            print("bf16 left out: this processor has no instructions for it")
            continue
        ours, plain = in_turns(run("calor", mode), run("plain", mode), PAIRS)
        show(f"training images/s, {mode}, CALoRTrainer / Trainer", _ratio(ours, plain), ">= 0.95", "1: the base model")
    if importlib.util.find_spec("opacus") is None:
        print("DP-SGD left out: pip install opacus")
        return
    ours, private = in_turns(run("calor", ""), run("private", ""), PAIRS)
    show("training images/s, CALoRTrainer / Opacus DP-SGD", _ratio(ours, private), ">= 1", "training without noise")
    show(
        "peak memory, CALoRTrainer / Opacus DP-SGD",
        _ratio(ours, private, "peak_bytes"),
        "<= 1",
        "training without noise",
    )


def _ratio(
    a: list[dict[str, float]], b: list[dict[str, float]], what: str = "images_per_second"
) -> tuple[float, float, float]:
    return median_interval([x[what] / y[what] for x, y in zip(a, b, strict=True)])
