"""LOMMA: the logit itself as loss, held by a feature regularizer, on the target and students distilled from it."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from calor_hf.attacks._distill import EFFICIENTNETS, RESNETS, StudentPlan, students_of
from calor_hf.attacks.base import ATTACKS, Attack
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gmi import GMI, GMIConfig
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig, Projection
from calor_hf.attacks.ked import KED, KEDConfig
from calor_hf.attacks.prior_samples import PriorSamples
from calor_hf.core.config import setting
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

FEATURE_IMAGES = 5000
UNPREPARED = "LOMMA needs students and public features: call prepare(...) first"


@dataclass(frozen=True, kw_only=True)
class LOMMAConfig(GradientAttackConfig):
    """Settings of :class:`LOMMA`."""

    base: str = setting("ked", "Attack that it plugs into: gmi or ked.", choices=("gmi", "ked"))
    steps: int = setting(0, "Optimization steps; 0: the base's.", ge=0)
    lr: float = setting(0.02, "Learning rate of the base.")
    objective: str = "logit"
    identity_weight: float = setting(100.0, "Weight of identity loss and regularizer.")
    feature_weight: float = setting(1.0, "Weight of the regularizer inside the former.")
    feature_noise: bool = setting(False, "The features aimed at are a draw around the public mean, not the mean.")
    students: tuple[str, ...] = setting(
        ("efficientnet_b0", "efficientnet_b1", "efficientnet_b2"),
        "Networks that imitate the target: these names (random weights; @imagenet starts from the source's), Hub ids or"
        " folders; none.",
    )
    student_epochs: int = setting(20, "Epochs of their distillation on public images.", ge=1, scales_to=1)
    student_halving: int = setting(20, "Epochs after which their learning rate halves.", ge=1, scales_to=1)
    student_lr: float = setting(0.01, "Learning rate of their SGD.", gt=0)
    student_batch: int = setting(64, "Batch of their training.", ge=1)

    def base_config(self) -> Any:
        """Settings of the base attack."""
        kind: Any = GMIConfig if self.base == "gmi" else KEDConfig
        common = {f.name: getattr(self, f.name) for f in fields(GradientAttackConfig)}
        if self.steps == 0:
            common["steps"] = kind().steps
        # The authors clip what KED draws, in optimization and afterwards; their GMI is bounded as the original.
        return kind(**common, clip=1.0)

    def scaled(self, factor: float) -> "LOMMAConfig":
        """Scale the base's steps if none are given."""
        return super(LOMMAConfig, replace(self, steps=self.base_config().steps)).scaled(factor)


@ATTACKS.register("lomma")
class LOMMA(GradientAttack[LOMMAConfig]):
    """GMI or KED with a logit loss, averaged over the target and students of it (Nguyen et al., CVPR 2023).

    The regularizer pulls the target's features to their mean over public images; without it the loss has no lower
    bound. ``students=none`` is the authors' variant without model augmentation. Call :meth:`prepare` first.

    The authors' students start from ImageNet weights. Students given by name start from random weights, which makes the
    attack weaker, and the report says so; preset ``imagenet`` takes the weights from the Hub.

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
        },
        "imagenet": {"students": tuple(f"google/{name.replace('_', '-')}" for name in EFFICIENTNETS)},
    }

    def __init__(self, config: LOMMAConfig) -> None:
        super().__init__(replace(config, steps=config.base_config().steps))
        kind: Any = GMI if config.base == "gmi" else KED
        self.base: GradientAttack[Any] = kind(config.base_config())
        self._prepared: tuple[list[Target], Tensor, Tensor] | None = None  # students, mean and deviation of features

    def effort(self, source: Attack[LOMMAConfig], scaled: Attack[LOMMAConfig]) -> tuple[float, tuple[str, ...]]:
        """Random weights of students differ from the source, whatever the preset."""
        ratio, changed = super().effort(source, scaled)
        random = any(name in EFFICIENTNETS or name in RESNETS for name in self.config.students)
        return ratio, (*changed, "students (random weights)") if random else changed

    def prepare(
        self, target: Target, generator: Generator[Any], public_images: Dataset[Tensor] | None, folder: Path, seed: int
    ) -> None:
        """Distil the students, and measure the target's features on public images."""
        images = public_images if public_images is not None else PriorSamples(target, generator, FEATURE_IMAGES, seed)
        config = self.config
        plan = StudentPlan(
            config.student_epochs, config.student_lr, config.student_batch, seed, halving=config.student_halving
        )
        students = students_of(target, config.students, images, plan, folder / "students")
        count = len(images)  # type: ignore[arg-type]
        chosen = named_rng(seed, "attacks/lomma/feature-images").permutation(count)[:FEATURE_IMAGES]
        batches = DataLoader(Subset(images, chosen.tolist()), batch_size=256)
        with torch.no_grad():
            features = torch.cat([target.features(x.to(target.device, target.dtype)).float().cpu() for x in batches])
        self._prepared = students, features.mean(dim=0).to(target.device), features.std(dim=0).to(target.device)

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse an attack that was not prepared for this target."""
        if self._prepared is None:
            raise ValueError(UNPREPARED)

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Mean loss over target and students, plus the weighted distance of the target's features."""
        if self._prepared is None:
            raise ValueError(UNPREPARED)
        students, aim, std = self._prepared
        features = target.features(images)
        losses = [self.identity_loss(target.head(features), batch.labels)]
        losses += [self.identity_loss(student(images), batch.labels) for student in students]
        # The authors draw the features aimed at, but then overwrite the draw with the mean; MIBench keeps it.
        if self.config.feature_noise:
            # One draw for all, as in the source; by the seed, so that it is the same in every chunk and process.
            noise = named_rng(batch.seed, "attacks/lomma/feature-noise").standard_normal(len(aim))
            aim = aim + std * torch.from_numpy(noise).to(aim)
        # Of the target alone, as in the source: students have features of other widths.
        distance = (features - aim.to(features)).square().mean(dim=1)
        return torch.stack(losses).mean(dim=0) + self.config.feature_weight * distance

    # Everything else is the base's

    def group(self, images_per_class: int) -> int:
        """Rows per class in the base attack."""
        return self.base.group(images_per_class)

    def start(self, generator: Generator[Any], latents: Tensor, batch: Batch) -> Tensor:
        """The base's variables."""
        return self.base.start(generator, latents, batch)

    def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
        """The base's optimizer."""
        return self.base.optimizer(variables)

    def latents(self, variables: Tensor, batch: Batch) -> Tensor:
        """The base's latents."""
        return self.base.latents(variables, batch)

    def prior(self, generator: Generator[Any], images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The base's terms."""
        return self.base.prior(generator, images, batch)

    def projection(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Projection | None:
        """The base's search space."""
        return self.base.projection(generator, variables, batch, stage)
