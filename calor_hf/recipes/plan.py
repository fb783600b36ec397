"""Plans: the expected time, passes, memory and disk of a run, extrapolated from short trials of its parts."""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf._version import __version__
from calor_hf.attacks import Attack
from calor_hf.attacks.base import AttackConfig
from calor_hf.core.peak_memory import PeakMemory
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

PASSES = ("generator_passes", "target_passes", "target_gradients")
LESSONS = 16  # public images that an attack learns from in a trial


@dataclass(frozen=True)
class Part:
    """Part of a run.

    Attributes:
        name: Stage, attack, or other work.
        seconds: Wall time.
        at_least: Wall time if the part ends as early as it may; None means that it does not end early.
        passes: Images by network and direction, over all processes.
        note: What the numbers leave out.
    """

    name: str
    seconds: float
    at_least: float | None = None
    passes: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """Expected cost of a run.

    Attributes:
        command: ``train``, ``audit`` or ``prior``.
        parts: In order.
        memory_bytes: Peak of one process, on its device.
        disk_bytes: Size of the files left behind.
        device: Device of the trials.
        processes: Processes that share the work.
        assumptions: What the extrapolation assumes.
    """

    command: str
    parts: Sequence[Part]
    memory_bytes: int
    disk_bytes: int
    device: str
    processes: int
    assumptions: Sequence[str]

    @property
    def seconds(self) -> float:
        """Wall time of all parts."""
        return sum(part.seconds for part in self.parts)

    @property
    def at_least(self) -> float:
        """Wall time if every part ends as early as it may."""
        return sum(part.seconds if part.at_least is None else part.at_least for part in self.parts)

    @property
    def passes(self) -> dict[str, int]:
        """Images of all parts, by network and direction."""
        names = dict.fromkeys(name for part in self.parts for name in part.passes)
        return {name: sum(part.passes.get(name, 0) for part in self.parts) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Content of the JSON file."""
        return {
            "version": __version__,
            **asdict(self),
            "seconds": self.seconds,
            "at_least_seconds": self.at_least,
            "passes": self.passes,
        }

    def table(self) -> str:
        """Table for the terminal, with the assumptions below it."""
        total = Part("in all", self.seconds, self.at_least if self.at_least < self.seconds else None, self.passes)
        rows = [["", "time", *(name.replace("_", " ") for name in self.passes)]]
        for part in [*self.parts, total]:
            passes = (f"{part.passes.get(name, 0):,}" for name in self.passes)
            rows.append([part.name, duration(part.seconds, part.at_least), *passes])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        hours = self.seconds / 3600
        notes = [f"{part.name}: {part.note}" for part in self.parts if part.note]
        return "\n".join([
            *lines,
            "",
            f"hours: {hours:.3g} of wall time, {hours * self.processes:.3g} of devices ({self.device})",
            f"memory: {self.memory_bytes / 2**20:,.0f} MiB a process at its peak",
            f"disk: {self.disk_bytes / 2**20:,.0f} MiB left behind",
            "",
            "assumed:",
            *(f"- {line}" for line in [*self.assumptions, *notes]),
        ])  # fmt: skip


def duration(seconds: float, at_least: float | None = None) -> str:
    """Seconds in a readable unit, or a range."""
    if at_least is not None:
        return f"{duration(at_least)} to {duration(seconds)}"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_attack(
    attack: Attack[Any],
    target: Target,
    generator: Generator[Any],
    labels: Sequence[int],
    *,
    name: str,
    images_per_class: int,
    seed: int,
    chunk_size: int,
    processes: int = 1,
    public_images: Dataset[Tensor] | None = None,
    seconds: float = 15.0,
) -> tuple[Part, int]:
    """Expected cost of an attack, from short runs with two small budgets on few classes and on twice as many.

    Cost is taken to be linear in the budget (:meth:`~calor_hf.attacks.base.AttackConfig.scaled`) and in the classes.

    Args:
        attack: The attack to plan, with its full budget.
        target: The model under attack, on the device of the run.
        generator: The prior, on the same device.
        labels: Classes of the run.
        name: Name of the part.
        images_per_class: Reconstructions of each class.
        seed: Seed of the run.
        chunk_size: Images at a time.
        processes: Processes that share the classes.
        public_images: Public images of the run.
        seconds: Approximate length of the trials.

    Returns:
        The part, and the peak memory of a process in bytes.
    """
    mine = math.ceil(len(labels) / processes)
    per_chunk = max(1, chunk_size // attack.rows(images_per_class))
    few = min(mine, 1 if target.device.type == "cpu" else per_chunk)  # an accelerator needs a whole chunk to be busy
    more = min(mine, 2 * few)
    # From the smallest budget to the whole one; rounding makes some of them equal.
    scaled = [attack.config.scaled(2.0**power) for power in range(-6, 1)]
    budgets = list({_share(attack.config, config): config for config in scaled}.items())
    lessons = _few_images(public_images, generator, target, seed)
    with PeakMemory(target.device) as memory, tempfile.TemporaryDirectory() as folder:

        def trial(config: AttackConfig, classes: int) -> np.ndarray:
            short = type(attack)(config)
            short.prepare_for(target, generator, lessons, Path(folder), seed)
            begin = time.perf_counter()
            cost = short.run(
                target, generator, labels[:classes], images_per_class=images_per_class, seed=seed, chunk_size=chunk_size
            ).cost
            return np.array([time.perf_counter() - begin, *(getattr(cost, kind) for kind in PASSES)])

        trial(budgets[0][1], few)  # warms up, and keeps in the folder what the attack learns about the target
        tried, costs = [], []
        for budget in budgets:
            tried.append(budget)
            costs.append(trial(budget[1], few))
            if len(costs) > 1 and costs[-1][0] > seconds / 8:
                break
        at_few = _extrapolated([share for share, _ in tried], costs)
        per_class = at_few / few
        if more > few:
            at_more = _extrapolated([s for s, _ in tried[-2:]], [trial(config, more) for _, config in tried[-2:]])
            per_class = np.maximum(at_more - at_few, 0) / (more - few)
        learns = any(Path(folder).iterdir())
    total = per_class * len(labels) + np.maximum(at_few - few * per_class, 0) * min(processes, len(labels))
    part = Part(
        name,
        float(at_few[0] + per_class[0] * (mine - few)),
        passes=dict(zip(PASSES, np.rint(total[1:]).astype(int).tolist(), strict=True)),
        note="what it learns before the first class is not counted" if learns else "",
    )
    return part, int(memory.before + memory.grown * min(per_chunk, mine) / min(per_chunk, more))


def _share(whole: AttackConfig, part: AttackConfig) -> float:
    """Share of the budget that is left in ``part``: of the setting that shrinks most; 1 if none shrinks."""
    pairs = [(getattr(whole, f.name), getattr(part, f.name)) for f in fields(whole)]
    return min([small / large for large, small in pairs if isinstance(large, int) and small < large], default=1.0)


def _extrapolated(shares: Sequence[float], costs: Sequence[np.ndarray]) -> np.ndarray:
    """Cost of the whole budget on the line through the last two trials."""
    if len(costs) == 1 or shares[-1] == 1:
        return costs[-1]
    slope = (costs[-1] - costs[-2]) / (shares[-1] - shares[-2])
    found: np.ndarray = costs[-1] + (1 - shares[-1]) * np.maximum(slope, 0)
    return found


@torch.no_grad()
def _few_images(public_images: Any, generator: Generator[Any], target: Target, seed: int) -> Any:
    """Public images that an attack learns from in a trial."""
    if public_images is not None:
        return [public_images[index] for index in range(min(len(public_images), LESSONS))]
    latents = generator.sample_latents(LESSONS, np.random.default_rng(seed)).to(target.device, generator.dtype)
    labels = torch.arange(LESSONS, device=target.device) % target.num_classes
    return list(generator(latents, labels).clamp(0, 1).float().cpu())
