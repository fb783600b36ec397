"""LOMMA: the logit itself as loss, held by a feature regularizer, on the target and students distilled from it."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from calor_hf.attacks._distill import Drawn, StudentPlan, students_of
from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gmi import GMI, GMIConfig
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig, Projection
from calor_hf.attacks.ked import KED, KEDConfig
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

FEATURE_IMAGES = 5000


@dataclass(frozen=True, kw_only=True)
class LOMMAConfig(GradientAttackConfig):
    """Settings of :class:`LOMMA`."""

    base: str = field(default="ked", metadata={"help": "Attack that it plugs into: gmi or ked."})
    steps: int = field(default=0, metadata={"help": "Optimization steps; 0: the base's."})
    lr: float = field(default=0.02, metadata={"help": "Learning rate of the base."})
    objective: str = field(default="logit", metadata={"help": "Identity loss: ce, poincare, max_margin or logit."})
    identity_weight: float = field(default=100.0, metadata={"help": "Weight of identity loss and regularizer."})
    feature_weight: float = field(default=1.0, metadata={"help": "Weight of the regularizer inside the former."})
    feature_noise: bool = field(
        default=False, metadata={"help": "The features aimed at are a draw around the public mean, not the mean."}
    )
    students: tuple[str, ...] = field(
        default=("efficientnet_b0", "efficientnet_b1", "efficientnet_b2"),
        metadata={"help": "Networks that imitate the target: these names (random weights), Hub ids or folders; none."},
    )
    student_epochs: int = field(default=20, metadata={"help": "Epochs of their distillation on public images."})
    student_lr: float = field(default=0.01, metadata={"help": "Learning rate of their SGD."})
    student_batch: int = field(default=64, metadata={"help": "Batch of their training."})

    def validate(self) -> None:
        """Refuse other bases."""
        if self.base not in ("gmi", "ked"):
            raise ValueError(f"base must be gmi or ked, got {self.base!r}")
        replace_steps = self.steps if self.steps > 0 else 1
        checked = {f.name: getattr(self, f.name) for f in fields(GradientAttackConfig)} | {"steps": replace_steps}
        GradientAttackConfig(**checked)
        if self.steps < 0:
            raise ValueError(f"steps must be >= 0, got {self.steps}")
        if self.students and (self.student_epochs < 1 or self.student_lr <= 0 or self.student_batch < 1):
            raise ValueError("student_epochs and student_batch must be >= 1 and student_lr > 0")

    def base_config(self) -> Any:
        """Settings of the base attack."""
        kind: Any = GMIConfig if self.base == "gmi" else KEDConfig
        common = {f.name: getattr(self, f.name) for f in fields(GradientAttackConfig)}
        if self.steps == 0:
            common["steps"] = kind().steps
        # The authors clip what KED draws, in optimization and afterwards; their GMI is bounded as the original.
        return kind(**common, clip=1.0)

    def scaled(self, factor: float) -> "LOMMAConfig":
        """``factor`` times the steps and the students' epochs, at least one of each."""
        steps = max(1, round(self.base_config().steps * factor))
        return replace(self, steps=steps, student_epochs=max(1, round(self.student_epochs * factor)))


@ATTACKS.register("lomma")
class LOMMA(GradientAttack[LOMMAConfig]):
    """GMI or KED with a logit loss, averaged over the target and students of it (Nguyen et al., CVPR 2023).

    The regularizer pulls the target's features to their mean over public images; without it the logit has no bottom.
    The authors draw the features aimed at around that mean and then overwrite the draw with the mean; so do we.
    ``students=none`` is their variant without model augmentation. Call :meth:`prepare` first.

    Source:
        Nguyen et al., CVPR 2023, arXiv:2304.01669; sutd-visual-computing-group/Re-thinking_MI. Preset ``calor``:
        MIBench, whose regularizer weighs a tenth and whose students train five times as long, at ten times the rate.
    """

    config_class = LOMMAConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "calor": {
            "feature_weight": 0.1,
            "feature_noise": True,
            "student_epochs": 100,
            "student_lr": 0.1,
            "student_batch": 128,
        }
    }

    def __init__(self, config: LOMMAConfig) -> None:
        super().__init__(replace(config, steps=config.base_config().steps))
        self.base: Any = (GMI if config.base == "gmi" else KED)(config.base_config())
        self._students: list[Target] | None = None
        self._mean: Tensor | None = None
        self._std: Tensor | None = None

    def prepare(
        self, target: Target, generator: Generator[Any], public_images: Dataset[Tensor] | None, folder: Path, seed: int
    ) -> None:
        """Distil the students, and measure the target's features on public images."""
        images = public_images if public_images is not None else Drawn(target, generator, FEATURE_IMAGES, seed)
        config = self.config
        plan = StudentPlan(config.student_epochs, config.student_lr, config.student_batch, seed)
        self._students = students_of(target, config.students, images, plan, folder / "students")
        count = len(images)  # type: ignore[arg-type]
        chosen = named_rng(seed, "attacks/lomma/feature-images").permutation(count)[:FEATURE_IMAGES]
        batches = DataLoader(Subset(images, chosen.tolist()), batch_size=256)
        with torch.no_grad():
            features = torch.cat([target.features(x.to(target.device, target.dtype)).float().cpu() for x in batches])
        self._mean = features.mean(dim=0).to(target.device)
        self._std = features.std(dim=0).to(target.device)

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse an attack that was not prepared for this target."""
        if self._students is None or self._mean is None:
            raise ValueError("LOMMA needs students and public features: call prepare(...) first")

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Mean loss over target and students, plus the weighted distance of the target's features."""
        if self._students is None or self._mean is None or self._std is None:
            raise ValueError("LOMMA needs students and public features: call prepare(...) first")
        features = target.features(images)
        losses = [self.identity_loss(target.head(features), batch.labels)]
        losses += [self.identity_loss(student(images), batch.labels) for student in self._students]
        aim = self._mean
        if self.config.feature_noise:
            # One draw for all, as in the source; by the seed, so that it is the same in every chunk and process.
            noise = named_rng(batch.seed, "attacks/lomma/feature-noise").standard_normal(len(aim))
            aim = aim + self._std * torch.from_numpy(noise).to(aim)
        distance = (features - aim.to(features)).square().mean(dim=1)
        return torch.stack(losses).mean(dim=0) + self.config.feature_weight * distance

    # Everything else is the base's

    def group(self, images_per_class: int) -> int:
        """Rows of a class in the base attack."""
        rows: int = self.base.group(images_per_class)
        return rows

    def start(self, generator: Generator[Any], latents: Tensor, batch: Batch) -> Tensor:
        """The base's variables."""
        variables: Tensor = self.base.start(generator, latents, batch)
        return variables

    def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
        """The base's optimizer."""
        optimizer: torch.optim.Optimizer = self.base.optimizer(variables)
        return optimizer

    def latents(self, variables: Tensor, batch: Batch) -> Tensor:
        """The base's latents."""
        latents: Tensor = self.base.latents(variables, batch)
        return latents

    def prior(self, generator: Generator[Any], images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The base's terms."""
        terms: dict[str, Tensor] = self.base.prior(generator, images, batch)
        return terms

    def projection(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Projection | None:
        """The base's search space."""
        projection: Projection | None = self.base.projection(generator, variables, batch, stage)
        return projection
