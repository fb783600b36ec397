"""Surrogate: a white-box attack on a network made from the target on public images, instead of on the target."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import Dataset

from calor_hf.attacks._distill import EFFICIENTNETS, RESNETS, TARGET, StudentPlan, Students, students_of
from calor_hf.attacks.base import ATTACKS, Attack, AttackConfig, Task
from calor_hf.attacks.prior_samples import PriorSamples
from calor_hf.attacks.queries import Queries, rows_of
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.config import setting
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.generators import Generator
from calor_hf.targets.base import ScoreTarget, Target

DRAWN_IMAGES = 5000  # without public images
UNPREPARED = "surrogate needs its students: call prepare_for(...) first"


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig(AttackConfig):
    """Settings of :class:`Surrogate`."""

    attack: str = setting("plg@adaptive", "White-box attack on the surrogate, as --attacks takes it.")
    effort: int = setting(100, "Per cent of that attack's published effort.", ge=1, scales_to=1)
    students: tuple[str, ...] = setting(
        ("resnet_18",),
        "Networks that imitate the target: names as of lomma (random weights), Hub ids or folders; target: a copy of "
        "it, which only student_eps changes.",
    )
    student_eps: float = setting(
        0.0,
        "Students imitate it on adversarial examples within this change of a value in [0, 1]; 0: on plain images.",
        ge=0,
        le=1,
    )
    student_epochs: int = setting(20, "Epochs of their training on public images.", ge=1, scales_to=1)
    student_halving: int = setting(20, "Epochs after which their learning rate halves.", ge=1, scales_to=1)
    student_lr: float = setting(0.01, "Learning rate of their SGD.", gt=0)
    student_batch: int = setting(64, "Batch of their training.", ge=1)

    def validate(self) -> None:
        """Refuse no students, and an attack that does not look through one network."""
        kind = parse_attack(self.attack).attack
        if kind.access != "white_box" or isinstance(kind, Surrogate) or hasattr(kind, "members"):
            raise ValueError(f"attack must be one white-box attack, such as plg@adaptive or ppa, got {self.attack}")
        if not self.students:
            raise ValueError("the attack looks through its students alone; pass at least one")


@ATTACKS.register("surrogate")
class Surrogate(Attack[SurrogateConfig]):
    """White-box attack on a student of the target, against defenses that make gradients useless (this library, 2026).

    Knowledge of the target passes through its scores on public images, and its gradients do not, so neither masked
    gradients nor features that are not robust come along. Without public images, samples of the prior serve. The
    images are scored by the target.

    Preset ``robust`` is for defenses such as ``at_at``, whose networks rely on features that are not robust: the
    surrogate is a copy of the target that learns to give the target's scores on adversarial examples of public images,
    too. The default is a smooth student with random weights, as LOMMA's without the target.

    Source:
        Ours. Students as in Nguyen et al., CVPR 2023, arXiv:2304.01669; adversarial examples of the divergence as in
        Goldblum et al., "Adversarially Robust Distillation", AAAI 2020, arXiv:1905.09747.
    """

    config_class = SurrogateConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"robust": {"students": (TARGET,), "student_eps": 4 / 255}}

    def __init__(self, config: SurrogateConfig) -> None:
        super().__init__(config)
        self._made = parse_attack(config.attack, budget=config.effort / 100)
        self.inner: Attack[Any] = self._made.attack
        self.surrogate: Target | None = None

    def adaptive_to(self, target: Target) -> bool:
        """It expects AT-AT."""
        return target.describe("").defense == "at_at"

    def effort(self, source: Attack[SurrogateConfig], scaled: Attack[SurrogateConfig]) -> tuple[float, tuple[str, ...]]:
        """Compare also the settings of the attack on the surrogate, and name random weights of students."""
        ratio, changed = super().effort(source, scaled)
        random = any(name in EFFICIENTNETS or name in RESNETS for name in self.config.students)
        own = [f"{self._made.name}.{name}" for name in self._made.changed]
        return ratio, (*changed, *own, *["students (random weights)"] * random)

    def rows(self, images_per_class: int) -> int:
        """Number of images per class that are in memory at once."""
        return self.inner.rows(images_per_class)

    def prepare(
        self, target: Target, generator: Generator[Any], public_images: Dataset[Any] | None, folder: Path, seed: int
    ) -> Cost:
        """Train the surrogate on public images, and prepare the attack on it."""
        config = self.config
        images = public_images if public_images is not None else PriorSamples(target, generator, DRAWN_IMAGES, seed)
        plan = StudentPlan(
            config.student_epochs, config.student_lr, config.student_batch, seed, halving=config.student_halving,
            eps=config.student_eps,
        )  # fmt: skip
        students = students_of(target, config.students, images, plan, folder / "students")
        self.surrogate = students[0] if len(students) == 1 else Students(students)
        own = (
            self.inner.prepare(self.surrogate, generator, public_images, folder / "students" / "attack", seed) or Cost()
        )
        asked = len(students) * config.student_epochs * len(images)  # type: ignore[arg-type]
        return own + Cost(target_passes=asked)

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse an attack that was not prepared, or for another target."""
        surrogate = self._prepared()
        if surrogate.num_classes != target.num_classes:
            raise ValueError(
                f"the surrogate knows {surrogate.num_classes} classes, the target has {target.num_classes}; prepare "
                "the attack for this target"
            )
        self.inner.check(surrogate, generator)

    def explore(self, target: Target, generator: Generator[Any], labels: Sequence[int], task: Task) -> tuple[Any, Cost]:
        """As the attack on the surrogate."""
        return self.inner.explore(self._prepared(), generator, labels, task)

    def attack(self, target: Target, generator: Generator[Any], labels: Sequence[int], task: Task) -> Reconstruction:
        """Reconstruct some classes at once; ``target_passes`` are those of the target alone."""
        begin, surrogate = time.perf_counter(), self._prepared()
        surrogate.module.to(task.like.device, task.like.dtype)
        found = self.inner.attack(surrogate, generator, labels, task)
        queries = Queries(ScoreTarget(target), None, task.seed)
        scores = queries.ask(found.images, rows_of(labels, task.images_per_class), 0)
        own = scores.gather(1, found.labels[:, None]).squeeze(1).to(found.scores)
        cost = Cost(found.cost.generator_passes, queries.view.queries, 0, time.perf_counter() - begin)
        return replace(found, scores=own, cost=cost)

    def _prepared(self) -> Target:
        if self.surrogate is None:
            raise ValueError(UNPREPARED)
        return self.surrogate
