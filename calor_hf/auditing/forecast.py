"""What an attack will cost, told from trials: the attack itself, on few classes, with little effort."""

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset

from calor_hf.attacks import Attack
from calor_hf.attacks._distill import Drawn
from calor_hf.attacks.auto import Auto, shared_pool
from calor_hf.attacks.base import CHUNK_SIZE
from calor_hf.core.peak_memory import PeakMemory
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

PASSES = ("generator_passes", "discriminator_passes", "target_passes", "target_gradients")
SECONDS = 15.0
MOST_STEPS, MOST_SAMPLES, IMAGES = 16, 512, 16


@dataclass(frozen=True)
class Rates:
    """What an attack costs: seconds, then the numbers of :data:`PASSES`.

    Attributes:
        per_class: For each class.
        per_run: Once in each process.
    """

    per_class: np.ndarray
    per_run: np.ndarray

    def total(self, classes: int, processes: int = 1) -> tuple[float, dict[str, int]]:
        """Wall time in seconds, and passes of all processes, when ``processes`` share ``classes``."""
        processes = min(processes, classes)
        seconds = self.per_class[0] * math.ceil(classes / processes) + self.per_run[0]
        passes = self.per_class[1:] * classes + self.per_run[1:] * processes
        return float(seconds), dict(zip(PASSES, np.rint(passes).astype(int).tolist(), strict=True))

    def __add__(self, other: "Rates") -> "Rates":
        return Rates(self.per_class + other.per_class, self.per_run + other.per_run)


@dataclass(frozen=True)
class Forecast:
    """What an attack is expected to take.

    Attributes:
        name: As the tables print it.
        seconds: Wall time; NaN: it cannot be told.
        passes: Images, by the names of :data:`PASSES`, in all processes.
        memory_bytes: Peak of a process, with what lies in memory already.
        notes: What it leaves out.
    """

    name: str
    seconds: float
    passes: dict[str, int]
    memory_bytes: int
    notes: list[str] = field(default_factory=list)


def forecast(
    attack: Attack[Any],
    target: Target,
    generator: Generator[Any],
    labels: Sequence[int],
    *,
    name: str,
    images_per_class: int = 5,
    seed: int = 0,
    chunk_size: int = CHUNK_SIZE,
    processes: int = 1,
    public_images: Dataset[Tensor] | None = None,
    trial_seconds: float = SECONDS,
) -> Forecast:
    """What :func:`~calor_hf.auditing.run_attack` would take.

    The attack is run on a part of the classes with each setting that its cost grows with
    (:meth:`~calor_hf.attacks.Attack.effort`) once small and once larger; cost is linear in them.

    Args:
        attack: As it would be run.
        target: The model under attack, on the device of the run.
        generator: The prior, there too.
        labels: Classes that would be attacked.
        name: As the tables print it.
        images_per_class: Of the run.
        seed: Of the run.
        chunk_size: Of the run.
        processes: That would share the classes.
        public_images: Of the run.
        trial_seconds: About how long the trials may take.
    """
    notes = []
    if attack.learning or (isinstance(attack, Auto) and any(member.learning for member in attack.members.values())):
        notes.append(f"{name}: what it learns before the first class is not counted")
    per_chunk = max(1, chunk_size // attack.rows(images_per_class))
    members = attack.members if isinstance(attack, Auto) else {name: attack}
    untold = [member for member, one in members.items() if not one.effort()]
    with PeakMemory(target.device) as memory, tempfile.TemporaryDirectory() as folder:
        rates, pools = Rates(np.zeros(5), np.zeros(5)), set()
        at_once = per_chunk
        for place, (member, one) in enumerate(members.items()):
            if member in untold:
                continue
            ready = prepared(one, target, generator, public_images, Path(folder) / str(place), seed)
            trials = Trials(ready, target, generator, labels[:per_chunk], images_per_class, seed)
            trials.fit(trial_seconds / len(members))
            at_once = min(at_once, len(trials.labels))
            pool = shared_pool(one) if isinstance(attack, Auto) else ""
            rates = rates + trials.rates(with_pool=not pool or pool not in pools)
            pools.add(pool)
    if untold:
        notes.append(f"{', '.join(untold)}: when it ends depends on the target's answers; not told")
    if isinstance(attack, Auto) and attack.config.fast:
        notes.append(f"{name}: fast=true ends earlier where the target agrees")
    seconds, passes = rates.total(len(labels), processes)
    grown = memory.grown * min(per_chunk, math.ceil(len(labels) / min(processes, len(labels)))) / at_once
    told = len(untold) < len(members)
    return Forecast(name, seconds if told else math.nan, passes, int(memory.before + grown), notes)


def prepared(
    attack: Attack[Any], target: Target, generator: Generator[Any], public: Dataset[Tensor] | None, folder: Path,
    seed: int,
) -> Attack[Any]:  # fmt: skip
    """The attack after a short lesson, on a few images: it runs as fast as after a long one."""
    if not attack.learning:
        return attack
    few: Any = Drawn(target, generator, IMAGES, seed)
    if public is not None:
        few = Subset(public, range(min(IMAGES, len(public))))  # type: ignore[arg-type]
    brief = attack.with_settings(**attack.learning)
    brief.prepare_for(target, generator, few, folder, seed)
    return brief.with_settings(**{name: getattr(attack.config, name) for name in attack.learning})


class Trials:
    """Short runs of an attack, and what they say of long ones."""

    def __init__(
        self, attack: Attack[Any], target: Target, generator: Generator[Any], labels: Sequence[int],
        images_per_class: int, seed: int = 0,
    ) -> None:  # fmt: skip
        self.attack, self.target, self.generator = attack, target, generator
        self.labels, self.images_per_class, self.seed = list(labels), images_per_class, seed
        self.wanted = {name: int(getattr(attack.config, name)) for name in attack.effort()}
        self.small = {name: min(self.wanted[name], effort.least) for name, effort in attack.effort().items()}
        self.steps, self.samples = 2, MOST_SAMPLES

    def fit(self, seconds: float) -> None:
        """As many classes, steps and samples as ``seconds`` allow, after a run that warms up."""
        everyone = self.labels
        self.labels = everyone[:1]
        self.run({})
        once = self.run({})[0]
        if self.target.device.type == "cpu":  # an accelerator is asked for a whole chunk, or it would idle
            self.labels = everyone[: max(1, int(seconds / 12 / once))]
        else:
            self.labels = everyone
            self.run({})
        loops = [name for name, effort in self.attack.effort().items() if effort.per == "class"]
        step = max(self.run({name: min(self.small[name] + 1, self.wanted[name]) for name in loops})[0], 1e-4)
        self.steps = int(min(MOST_STEPS, max(2, seconds / 3 / step)))
        self.samples = int(min(MOST_SAMPLES, max(64, self.steps * len(self.labels) * self.images_per_class)))

    def run(self, changes: dict[str, int]) -> np.ndarray:
        """Cost of a run with everything small but ``changes``."""
        shortened = self.attack.with_settings(**{**self.small, **changes})
        with counted_realism(self.generator) as discriminator:
            begin = time.perf_counter()
            cost = shortened.run(
                self.target, self.generator, self.labels, images_per_class=self.images_per_class, seed=self.seed,
                chunk_size=len(self.labels) * self.attack.rows(self.images_per_class),
            ).cost  # fmt: skip
            seconds = time.perf_counter() - begin
        return np.array([seconds, cost.generator_passes, discriminator[0], cost.target_passes, cost.target_gradients])

    def larger(self, name: str, per: str) -> int:
        """Value of a setting in the trial that shows what it costs."""
        more = {"class": self.steps, "pool": self.samples, "run": 20 * MOST_SAMPLES}[per]
        if per == "pool":
            more = max(more, self.attack.rows(self.images_per_class))  # a class chooses from no fewer than its rows
        return min(self.wanted[name], self.small[name] + more)

    def rates(self, with_pool: bool = True) -> Rates:
        """What a class and a run cost at the settings that are wanted."""
        count, first = len(self.labels), self.run({})
        rates = Rates(first / count, np.zeros(5))
        for name, effort in self.attack.effort().items():
            value = self.larger(name, effort.per)
            if value == self.small[name] or (effort.per == "pool" and not with_pool):
                continue
            spent = self.run({name: value}) - first
            spent[0] = max(spent[0], 0.0)
            unit = spent / (value - self.small[name])
            more = unit * (self.wanted[name] - self.small[name])
            by_class = effort.per == "class" or (effort.per == "pool" and self.generator.num_classes is not None)
            # At its smallest the setting costs something too, which is in the first run: of what a run pays once, not
            # of each of its classes.
            often = Rates(more / count, np.zeros(5))
            rates = rates + (often if by_class else once(more, unit * self.small[name], count))
        return rates


def once(more: np.ndarray, least: np.ndarray, count: int) -> Rates:
    """What a run pays once: taken out of the classes' share of the first trial, where it was ``least``."""
    return Rates(-least / count, more + least)


@contextmanager
def counted_realism(generator: Generator[Any]) -> Iterator[list[int]]:
    """Count the images that the generator's discriminator judges."""
    original, count = generator.realism, [0]

    def realism(images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count[0] += len(images)
        return original(images, *args, **kwargs)

    generator.realism = realism  # type: ignore[method-assign]
    try:
        yield count
    finally:
        del generator.realism
