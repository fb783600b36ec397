"""Base class of the attacks: reconstructions of classes, from the view of the target that ``access`` names."""

import dataclasses
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.core.config import MethodConfig
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.core.registry import Registry
from calor_hf.generators import Generator
from calor_hf.targets.base import LabelTarget, ScoreTarget, Target
from calor_hf.targets.frozen import frozen

logger = logging.getLogger(__name__)

BUDGETS = {"paper": 1.0, "demo": 0.05}
CHUNK_SIZE = 256

A = TypeVar("A", bound="AttackConfig")

AttackCallback = Callable[[Sequence[int], int, int, float], None]
"""Progress callback, called periodically with (classes, step, total_steps, success_rate by the target)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackConfig(MethodConfig):
    """Settings of an attack; the defaults are its source's."""

    def scaled(self: A, factor: float) -> A:
        """The same attack with ``factor`` times the effort.

        Settings with the rule ``scales_to`` are multiplied, or each item of a tuple, and a reduced one stays at least
        that number. The learning rate follows the steps: see ``step_share`` of white-box attacks.
        """
        scaled: dict[str, Any] = {}
        # A setting that is below its least number already is not raised by a smaller budget, hence the inner min.
        for name, rules in ((field.name, field.metadata) for field in dataclasses.fields(self)):
            value, least = getattr(self, name), rules.get("scales_to")
            if isinstance(value, tuple) and least is not None:
                scaled[name] = tuple(max(min(one, least), round(one * factor)) for one in value)
            elif isinstance(value, float) and least is not None:
                scaled[name] = max(min(value, least), value * factor)
            elif least is not None:
                scaled[name] = max(min(value, least), round(value * factor))
        return dataclasses.replace(self, **scaled)


C = TypeVar("C", bound=AttackConfig)


@dataclasses.dataclass(frozen=True)
class Task:
    """Request of one call of :meth:`Attack.run`.

    Attributes:
        images_per_class: Reconstructions of each class.
        seed: Seed of every draw.
        callback: Progress callback, or None.
        classes: All classes of the run, of which a call gets some.
        notes: Results computed once per run and reused by later calls, by name.
        like: Device and precision of the latents.
        explored: Result of :meth:`Attack.explore`.
    """

    images_per_class: int
    seed: int
    callback: AttackCallback | None = None
    classes: tuple[int, ...] = ()
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    like: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    explored: Any = None


class Attack(ABC, Generic[C]):
    """Rebuild training images; never sees an evaluation model, private data, or more of the target than ``access``.

    Attributes:
        config: The settings, frozen.
        access: View of the target that it is given: ``white_box``, ``scores`` or ``labels``.
        presets: Settings by name, in addition to ``original`` (the defaults): ``calor`` holds those that the paper's
            tables were most likely made with, if they differ.
    """

    config_class: ClassVar[type[AttackConfig]]
    access: ClassVar[str] = "white_box"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, config: C) -> None:
        self.config = config

    @classmethod
    def configure(cls, preset: str = "original", budget: str | float = "paper", **settings: Any) -> Any:
        """Settings by preset and budget; ``settings`` overrule both.

        Args:
            preset: ``original``, ``calor``, or one of the attack's own.
            budget: ``paper``, ``demo`` (a twentieth), or a factor > 0.
            settings: By name.

        Raises:
            ValueError: unknown preset, budget or setting.
        """
        if preset != "original" and preset not in ("calor", *cls.presets):
            known = ", ".join(dict.fromkeys(["original", "calor", *cls.presets]))
            raise ValueError(f"unknown preset {preset!r}; pass one of {known}")
        factor = budget_factor(budget)
        config = cls.config_class.from_dict(cls.presets.get(preset, {}) | settings)
        config = config.scaled(factor)
        # The user's own settings are not scaled.
        return dataclasses.replace(config, **settings)

    def parts(self, target: Target, generator: Generator[Any]) -> tuple[str, ...]:
        """Names of the member attacks of an ensemble; the images of a class are then in as many equal blocks."""
        return ()

    def fits(self, target: Target) -> bool:
        """Whether an ensemble runs it on the target."""
        return True

    def runs_on(self, generator: Generator[Any]) -> bool:
        """Whether it can use the generator at all, so that an ensemble runs it."""
        return True

    def adaptive_to(self, target: Target) -> bool:
        """Whether it uses knowledge of a defense that the target has."""
        return False

    def effort(self, source: "Attack[C]", scaled: "Attack[C]") -> tuple[float, tuple[str, ...]]:
        """Compare the settings with those of the same attack as published.

        Args:
            source: The attack with the full published effort.
            scaled: The attack with the budget of this one.

        Returns:
            Least ratio of a setting that sets the effort, and the names of other settings that differ.
        """
        ratio, changed = 1.0, []
        for field in dataclasses.fields(self.config):
            mine, full, same = (getattr(one.config, field.name) for one in (self, source, scaled))
            if "scales_to" in field.metadata and full and not isinstance(full, tuple):
                ratio = min(ratio, mine / full)
            elif mine != same:
                changed.append(field.name)
        return ratio, tuple(changed)

    def check(self, target: Any, generator: Generator[Any]) -> None:
        """Raise ``ValueError`` if this attack cannot be run on this target with this generator."""

    def prepare(
        self, target: Any, generator: Generator[Any], public_images: Dataset[Tensor] | None, folder: Path, seed: int
    ) -> Cost | None:
        """Learn about the target once, before any class is attacked, and keep the result in ``folder``.

        Call :meth:`prepare_for` instead: it makes the view.

        Args:
            target: The view of the target that :attr:`access` names.
            generator: The prior.
            public_images: (3, height, width) each in [0, 1]; None means samples of the generator.
            folder: Folder of the result, which is reused if it is there.
            seed: Seed of every draw.

        Returns:
            The cost, besides queries of this view; None for nothing.
        """
        return None

    def explore(self, target: Any, generator: Generator[Any], labels: Sequence[int], task: Task) -> tuple[Any, Cost]:
        """Compute what all classes of a run share, before the first; :meth:`attack` gets it in the task.

        The result for a class must not depend on the others. Arguments as :meth:`attack`; returns result and cost.
        """
        return None, Cost()

    @abstractmethod
    def attack(self, target: Any, generator: Generator[Any], labels: Sequence[int], task: Task) -> Reconstruction:
        """Reconstruct some classes at once; the result of a class must not depend on the others.

        Args:
            target: The view of the target that :attr:`access` names.
            generator: The prior, frozen.
            labels: Classes.
            task: The request.
        """

    def rows(self, images_per_class: int) -> int:
        """Number of images per class that are in memory at once."""
        return images_per_class

    @final
    def prepare_for(
        self, target: Target, generator: Generator[Any], public_images: Dataset[Tensor] | None, folder: Path, seed: int
    ) -> Cost:
        """Run :meth:`prepare` with the view of the target that :attr:`access` names.

        Arguments as :meth:`prepare`, with the target itself. Returns the cost, which no :meth:`run` counts.
        """
        begin = time.perf_counter()
        with self._frozen_view(target, generator) as view:
            spent = self.prepare(view, generator, public_images, folder, seed) or Cost()
        # A black-box view counts its queries; a white-box attack returns the cost of its own passes.
        queries = 0 if self.access == "white_box" else view.queries
        return spent + Cost(target_passes=queries, seconds=time.perf_counter() - begin) if queries else spent

    @final
    def run(
        self,
        target: Target,
        generator: Generator[Any],
        labels: Sequence[int],
        *,
        images_per_class: int = 5,
        seed: int = 0,
        chunk_size: int = CHUNK_SIZE,
        on_chunk: Callable[[Reconstruction], None] | None = None,
        callback: AttackCallback | None = None,
    ) -> Reconstruction:
        """Attack classes, as many at a time as fit; the result depends on the seed, not on how they are grouped.

        If memory runs out, it continues with half as many classes at a time.

        Args:
            target: The model under attack; left as it was.
            generator: The prior, on the same device; left as it was.
            labels: Classes to attack, each once.
            images_per_class: Reconstructions of each.
            seed: Seed of every draw.
            chunk_size: Images at a time, in whole classes; at least one class.
            on_chunk: Called with the reconstructions of each finished chunk.
            callback: Progress callback.

        Raises:
            ValueError: classes that the target does not have, or a generator that does not fit it.
            FloatingPointError: the target returns numbers that are not finite.
            MemoryError: not even one class fits.
        """
        labels = attacked_classes(labels, target.num_classes)
        if images_per_class < 1 or chunk_size < 1:
            raise ValueError(f"images_per_class and chunk_size must be >= 1, got {images_per_class} and {chunk_size}")
        generator = generator.for_classes(target.class_names)
        like = torch.empty(0, device=target.device, dtype=working_dtype(target, generator))
        task = Task(images_per_class, seed, callback, tuple(labels), like=like)
        parts: list[Reconstruction] = []
        with self._frozen_view(target, generator) as view:
            check_fit(target, generator)
            self.check(view, generator)
            explored, spent = self.explore(view, generator, labels, task)
            task = dataclasses.replace(task, explored=explored)
            per_chunk = max(1, chunk_size // self.rows(images_per_class))
            rest = list(labels)
            while rest:
                now = rest[:per_chunk]
                notes = dict(task.notes)
                try:
                    # A view for each chunk, so that its count of queries is the cost of this chunk.
                    part = self.attack(self.view_of(target), generator, now, task)
                except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                    if not out_of_memory(error):
                        raise
                    if len(now) == 1:
                        raise MemoryError(
                            f"out of memory even with one class at a time ({self.rows(images_per_class)} images); ask "
                            f"for fewer images per class, or use a smaller generator ({error})"
                        ) from error
                    per_chunk = len(now) // 2
                else:
                    rest = rest[per_chunk:]
                    # The cost of what all classes share is counted once, in the first chunk.
                    part, spent = dataclasses.replace(part, cost=part.cost + spent), Cost()
                    parts.append(part)
                    if on_chunk is not None:
                        on_chunk(part)
                    continue
                # Out of the except block, so that the failed chunk's tensors are let go of.
                # Its notes are computed again, and counted, by the next chunk.
                task.notes.clear()
                task.notes.update(notes)
                logger.warning("out of memory with %d classes at a time; going on with %d", len(now), per_chunk)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return Reconstruction.join(parts)

    @contextmanager
    def _frozen_view(self, target: Target, generator: Generator[Any]) -> Iterator[Any]:
        view = self.view_of(target)
        with frozen(target.module, generator):
            yield view

    @final
    def view_of(self, target: Target) -> Any:
        """Return the view of the target that :attr:`access` names."""
        if self.access == "white_box":
            return target
        return ScoreTarget(target) if self.access == "scores" else LabelTarget(target)


def budget_factor(budget: str | float) -> float:
    """Return a budget (``paper``, ``demo`` or a number) as a factor of the published effort.

    Raises:
        ValueError: the budget is unknown, or not positive and finite.
    """
    try:
        factor = BUDGETS[budget] if isinstance(budget, str) and budget in BUDGETS else float(budget)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ValueError(f"budget must be paper, demo or a factor > 0, got {budget!r}")
    return factor


def attacked_classes(labels: Sequence[int], num_classes: int) -> list[int]:
    """``labels`` as a list.

    Raises:
        ValueError: there are no labels, one is out of range, or one is given twice.
    """
    found = [int(label) for label in labels]
    if not found:
        raise ValueError("no classes to attack")
    wrong = [label for label in found if not 0 <= label < num_classes]
    if wrong:
        raise ValueError(f"the target has the classes 0 to {num_classes - 1}, got {wrong[:5]}")
    if len(set(found)) < len(found):
        raise ValueError(f"expected every class once, got {found[:20]}; ask for more images_per_class instead")
    return found


@torch.no_grad()
def check_fit(target: Target, generator: Generator[Any]) -> None:
    """Try two images, before any long work.

    Raises:
        ValueError: the generator's images do not fit the target, in size, class count or device.
        FloatingPointError: the target returns numbers that are not finite.
    """
    side = generator.image_size
    if (side, side) != target.image_size and not target.resizes:
        raise ValueError(
            f"the generator makes images of {side} x {side} pixels, the target reads {target.image_size[0]} x "
            f"{target.image_size[1]} and does not resize; pass a generator of that size"
        )
    if target.image_size[0] != target.image_size[1]:
        raise ValueError(f"generators make square images, the target reads {target.image_size}")
    if generator.num_classes not in (None, target.num_classes):
        raise ValueError(
            f"the generator was trained for {generator.num_classes} classes, the target has {target.num_classes}; "
            "train one for this target"
        )
    if any(True for _ in generator.parameters()) and generator.device != target.device:
        raise ValueError(f"the generator is on {generator.device}, the target on {target.device}; move one of them")
    latents = torch.zeros(2, generator.latent_dim, device=target.device, dtype=working_dtype(target, generator))
    images = generator(latents, torch.zeros(2, dtype=torch.int64, device=target.device))
    logits = target(images)
    if tuple(logits.shape) != (2, target.num_classes):
        raise ValueError(
            f"expected logits of shape (2, {target.num_classes}) from the target, got {tuple(logits.shape)}"
        )
    if not logits.isfinite().all():
        raise FloatingPointError("the target returns NaN or infinite scores for an ordinary image; check its weights")


def working_dtype(target: Target, generator: Generator[Any]) -> torch.dtype:
    """Precision of the latents: the generator's; without weights, float32, or float64 for a float64 target."""
    if any(True for _ in generator.parameters()):
        return generator.dtype
    return torch.float64 if target.dtype == torch.float64 else torch.float32


def out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, on any device."""
    # torch's allocator for the CPU raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


ATTACKS: Registry[Attack[Any]] = Registry("attack", "calor_hf.attacks")
