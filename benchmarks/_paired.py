"""Paired runs: A and B take turns, so that a slow minute of the machine hits both."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np


def paired_ratio(a: Callable[[], float], b: Callable[[], float], pairs: int) -> tuple[float, float, float]:
    """Median of a()/b() over interleaved pairs.

    Args:
        a: Measures the first contender once.
        b: Measures the second.
        pairs: Number of pairs; every second one runs b first.

    Returns:
        Median ratio and its 95 % bootstrap interval.
    """
    ratios = []
    for index in range(pairs):
        if index % 2:
            second = b()
            first = a()
        else:
            first = a()
            second = b()
        ratios.append(first / second)
    return median_interval(ratios)


def median_interval(values: Sequence[float], resamples: int = 10_000) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    samples = np.asarray(values)[rng.integers(0, len(values), (resamples, len(values)))]
    low, high = np.percentile(np.median(samples, axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def run_python(code: str, *args: str) -> dict[str, float]:
    """Run ``code`` in a fresh interpreter and read the JSON object on its last line."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def show(name: str, ratio: tuple[float, float, float], goal: str) -> None:
    """Print one result."""
    print(f"{name:<58} {ratio[0]:.3f}  [{ratio[1]:.3f}, {ratio[2]:.3f}]  goal {goal}", flush=True)
