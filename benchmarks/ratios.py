"""Stored ratios of all benchmarks: kept, compared with a new run, and printed as a table."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from calor_hf._version import __version__
from calor_hf.recipes.runs import markdown

FILE = Path(__file__).with_name("ratios.json")
MARGIN = 0.1  # of a ratio: what another hour of the same machine may change
Stored = dict[str, dict[str, Any]]


def load() -> Stored:
    """The last kept run of each benchmark, by its name."""
    stored: Stored = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    return stored


def save(benchmark: str, found: list[dict[str, Any]]) -> None:
    """Keep a run instead of the last one."""
    run = {"version": __version__, "torch": torch.__version__, "machine": machine(), "ratios": found}
    FILE.write_text(json.dumps({**load(), benchmark: run}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def machine() -> str:
    """Facts about this machine that may matter, and nothing that names it."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}{gpu}"


def worse(found: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[str]:
    """A line for each ratio whose whole interval is worse than the kept one's, by more than :data:`MARGIN`.

    A goal that is a range says itself what is worse: to be out of it. Otherwise only a ratio whose goal says which way
    is better can become worse; a new one has nothing to be compared with.
    """
    kept = {ratio["name"]: ratio for ratio in before}
    lines = []
    for new in found:
        old = kept.get(new["name"])
        if old is None:
            continue
        fell = new["goal"].startswith(">") and new["high"] < (1 - MARGIN) * old["low"]
        rose = new["goal"].startswith("<") and new["low"] > (1 + MARGIN) * old["high"]
        least, is_range, most = new["goal"].partition(" to ")
        left = bool(is_range) and (new["high"] < float(least) or new["low"] > float(most))
        if fell or rose or left:
            lines.append(f"{new['name']}: {_interval(new)}, was {_interval(old)}")
    return lines


def table(stored: Stored) -> str:
    """All kept ratios as Markdown, each next to its goal, the physical limit, and the machine that gave it."""
    rows = [
        [ratio["name"], _interval(ratio), ratio["goal"], ratio["limit"], run["machine"], f"`{name}`"]
        for name, run in sorted(stored.items())
        for ratio in run["ratios"]
    ]
    return markdown(["ratio", "median [95 % interval]", "goal", "limit", "machine", "benchmark"], rows)


def _interval(ratio: dict[str, Any]) -> str:
    return f"{ratio['value']:.3g} [{ratio['low']:.3g}, {ratio['high']:.3g}]"
