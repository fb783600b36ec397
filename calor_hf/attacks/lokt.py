"""LOKT: students trained on labels alone, and then a white-box attack on the students."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.attacks._distill import StudentPlan, Students, students_of
from calor_hf.attacks.base import ATTACKS, Attack, Task
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.plg import PLG, PLGConfig
from calor_hf.attacks.prior_samples import PriorSamples
from calor_hf.attacks.queries import Queries, rows_of
from calor_hf.attacks.smoothing import over_views
from calor_hf.core.config import setting
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.generators import Generator
from calor_hf.targets.base import LabelTarget

UNPREPARED = "LOKT needs students: call prepare_for(...) first"


@dataclass(frozen=True, kw_only=True)
class LOKTConfig(PLGConfig):
    """Settings of :class:`LOKT`; those of its white-box attack are PLG's."""

    students: tuple[str, ...] = setting(
        ("resnet_18", "resnet_34", "resnet_50"),
        "Networks that learn the labels: these names (random weights), Hub ids or folders.",
    )
    student_images: int = setting(500, "Generated images of each class that they learn from.", ge=1)
    student_epochs: int = setting(10, "Epochs of their training.", ge=1, scales_to=1)
    student_lr: float = setting(0.01, "Learning rate of their SGD, falling as a cosine.", gt=0)
    student_batch: int = setting(128, "Batch of their training.", ge=1)

    def validate(self) -> None:
        """Refuse no students."""
        super().validate()
        if not self.students:
            raise ValueError("LOKT looks through its students alone; pass at least one")


class _OnStudents(PLG):
    """PLG whose objective is the sum of its loss over students, instead of the loss of their mean."""

    def identity(self, target: Any, images: Tensor, batch: Batch) -> Tensor:
        def loss(shown: Tensor) -> Tensor:
            features = target.features(shown)
            target.head(features)  # keeps the answers, for the progress that is told
            each = features.view(len(shown), -1, target.num_classes).unbind(dim=1)
            return torch.stack([self.identity_loss(logits, batch.labels) for logits in each]).sum(dim=0)

        return over_views(loss, images, batch, self.config.views)


@ATTACKS.register("lokt")
class LOKT(Attack[LOKTConfig]):
    """Train students on the target's labels, then run PLG's attack on them (Nguyen et al., NeurIPS 2023).

    The generator is meant to be ``conditional``, trained with the prior ``lokt`` for this target; others work, but show
    the students less of the classes. The authors' students are DenseNets of 121, 161 and 169 layers, which transformers
    does not have; ours are ResNets. Call :meth:`prepare_for` first.

    The target is asked for labels alone: of ``student_images`` per class while preparing, and of each finished image,
    whose score is 1 or 0. The progress callback gets the students' view.

    Source:
        Nguyen et al., "Label-Only Model Inversion Attacks via Knowledge Transfer", NeurIPS 2023, arXiv:2310.19342, with
        the numbers of MIBench.
    """

    config_class = LOKTConfig
    access = "labels"

    def __init__(self, config: LOKTConfig) -> None:
        super().__init__(config)
        self.inner = _OnStudents(PLGConfig(**{f.name: getattr(config, f.name) for f in fields(PLGConfig)}))
        self.students: Students | None = None

    def prepare(
        self,
        target: LabelTarget,
        generator: Generator[Any],
        public_images: Dataset[Tensor] | None,
        folder: Path,
        seed: int,
    ) -> None:
        """Train the students on samples of the generator."""
        config = self.config
        # In turn, so that each class has as many images as the source generates for it.
        images = PriorSamples(target, generator, config.student_images * target.num_classes, seed, in_turn=True)
        plan = StudentPlan(config.student_epochs, config.student_lr, config.student_batch, seed, hard=True)
        self.students = Students(students_of(target, config.students, images, plan, folder / "students"))

    def check(self, target: LabelTarget, generator: Generator[Any]) -> None:
        """Refuse an attack that was not prepared, or for another target."""
        if self.students is None:
            raise ValueError(UNPREPARED)
        if self.students.num_classes != target.num_classes:
            raise ValueError(
                f"the students know {self.students.num_classes} classes, the target has {target.num_classes}; prepare "
                "the attack for this target"
            )

    def rows(self, images_per_class: int) -> int:
        """Number of images per class that are in memory at once."""
        return self.inner.rows(images_per_class)

    def attack(
        self, target: LabelTarget, generator: Generator[Any], labels: Sequence[int], task: Task
    ) -> Reconstruction:
        """Reconstruct some classes at once."""
        if self.students is None:
            raise ValueError(UNPREPARED)
        begin, queries = time.perf_counter(), Queries(target, generator, task.seed)
        self.students.module.to(task.like.device, task.like.dtype)
        found = self.inner.attack(self.students, generator, labels, task)
        answers = queries.ask(found.images, rows_of(labels, task.images_per_class), self.config.steps)
        # Passes of the students cost no query: the target is asked for labels alone.
        cost = Cost(found.cost.generator_passes, target.queries, 0, time.perf_counter() - begin)
        return replace(found, scores=(answers == found.labels).to(found.scores), cost=cost)
