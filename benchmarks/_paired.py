"""Paired runs: A and B take turns, so that a slow minute of the machine hits both."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


ONE = (sys.executable, "-m")
TWO = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m")  # processes


def in_turns(a: Callable[[], T], b: Callable[[], T], pairs: int) -> tuple[list[T], list[T]]:
    """Results of both, ``pairs`` times each; every second pair runs b first."""
    first, second = [], []
    for index in range(pairs):
        if index % 2:
            second.append(b())
            first.append(a())
        else:
            first.append(a())
            second.append(b())
    return first, second


def paired_ratio(a: Callable[[], float], b: Callable[[], float], pairs: int) -> tuple[float, float, float]:
    """Median of a()/b() over interleaved pairs.

    Args:
        a: Measures the first contender once.
        b: Measures the second.
        pairs: Number of pairs; every second one runs b first.

    Returns:
        Median ratio and its 95 % bootstrap interval.
    """
    first, second = in_turns(a, b, pairs)
    return median_interval([one / other for one, other in zip(first, second, strict=True)])


def median_interval(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    samples = np.asarray(values)[rng.integers(0, len(values), (resamples, len(values)))]
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def run_module(module: str, *args: str, launcher: Sequence[str] = ONE) -> dict[str, float]:
    """Run a module in processes of its own and read the JSON object on its last line."""
    done = subprocess.run([*launcher, module, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(args)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def run_python(code: str, *args: str) -> dict[str, float]:
    """As :func:`run_module`, of ``code``."""
    return run_module(code, *args, launcher=(sys.executable, "-c"))


SHOWN: list[dict[str, Any]] = []


def show(name: str, ratio: tuple[float, float, float], goal: str, limit: str = "") -> None:
    """Print one result, and keep it in :data:`SHOWN`.

    Args:
        name: Numerator and denominator.
        ratio: Median and its interval.
        goal: ``>= x`` where more is better, ``<= x`` or ``< x`` where less is, ``x to y`` where it should lie
            between; other words if it has no goal.
        limit: Bound that no code could beat, and why.
    """
    value, low, high = ratio
    print(f"{name:<58} {value:.3f}  [{low:.3f}, {high:.3f}]  goal {goal}", flush=True)
    SHOWN.append({"name": name, "value": value, "low": low, "high": high, "goal": goal, "limit": limit})
