"""Mirror, white-box: styles kept inside the box where most styles lie, in a space that makes them normal."""

from dataclasses import dataclass, field, replace
from math import cos, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks._p_space import P_SPACES, Box, bounds, has_p_space
from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig, Projection
from calor_hf.attacks.starts import scaled_pool
from calor_hf.generators import Generator
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class MirrorConfig(GradientAttackConfig):
    """Settings of :class:`Mirror`."""

    steps: int = field(default=20_000, metadata={"help": "Optimization steps."})
    lr: float = field(default=0.25, metadata={"help": "Highest learning rate of Adam."})
    initial_candidates: int = field(
        default=100_000, metadata={"help": "Samples of the prior that each class takes its starts from; 0: random."}
    )
    keep: str = field(default="best", metadata={"help": "last, or best: each image's lowest identity loss on the way."})
    identity_weight: float = field(default=10.0, metadata={"help": "Weight of the identity loss."})
    flip_probability: float = field(default=0.5, metadata={"help": "That an image is mirrored, in each step."})
    shared_views: bool = field(default=True, metadata={"help": "All images are mirrored together, as in the source."})
    warm_up: float = field(default=0.05, metadata={"help": "Share of the steps in which the rate rises from 0."})
    ramp_down: float = field(default=0.25, metadata={"help": "Share of the steps in which it falls to 0."})
    p_space: str = field(default="auto", metadata={"help": "Box in P space: on, off, or auto: with a StyleGAN alone."})
    bound_samples: int = field(default=100_000, metadata={"help": "Samples of the prior that the box is measured on."})
    bound_width: float = field(default=1.0, metadata={"help": "Half the box in standard deviations; 0: no box."})

    def validate(self) -> None:
        """Refuse unknown spaces and shares out of range."""
        super().validate()
        if self.p_space not in P_SPACES:
            raise ValueError(f"unknown p_space {self.p_space!r}; pass one of {', '.join(P_SPACES)}")
        if self.bound_samples < 2 or self.bound_width < 0:
            raise ValueError(
                f"expected bound_samples >= 2 and bound_width >= 0, got {self.bound_samples} and {self.bound_width}"
            )
        for name in ("flip_probability", "warm_up", "ramp_down"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    def scaled(self, factor: float) -> "MirrorConfig":
        """``factor`` times the steps and the samples to start from."""
        return replace(
            self,
            steps=max(1, round(self.steps * factor)),
            initial_candidates=scaled_pool(self.initial_candidates, factor),
        )


@ATTACKS.register("mirror")
class Mirror(GradientAttack[MirrorConfig]):
    """Adam on StyleGAN styles, clipped to one standard deviation around their mean (An et al., NDSS 2022).

    The box lies in P space, LeakyReLU with slope 5 of a style, where styles are about normal; slope 0.2 leads back. It
    is measured on untruncated styles, while the starts are samples of the generator as it truncates them. On
    generators without styles the box lies in the space of the latents.

    The authors keep, for a whole batch, the step with its lowest loss; ``keep=best`` does so for each image.

    Source:
        An et al., "MIRROR: Model Inversion for Deep Learning Network with High Fidelity", NDSS 2022;
        njuaplusplus/mirror. Preset ``calor``: MIBench, far fewer and smaller steps at a constant rate. Its box has no
        upper side, as that is overwritten by the lower one computed from the uncut styles; this mistake is not repeated
        here. Preset ``quick`` is ours: the authors' rates with far fewer steps and samples, for ensembles.
    """

    config_class = MirrorConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "calor": {
            "steps": 70,
            "lr": 0.005,
            "initial_candidates": 5000,
            "bound_samples": 5000,
            "keep": "last",
            "identity_weight": 1.0,
            "warm_up": 0.0,
            "ramp_down": 0.0,
            "shared_views": False,
        },
        "quick": {"steps": 100, "initial_candidates": 1000, "bound_samples": 5000, "shared_views": False},
    }

    def rate(self, step: int, steps: int) -> float:
        """Up in a line, flat, and down along half a cosine: StyleGAN's projector."""
        done, config = step / steps, self.config
        up = min(1.0, done / config.warm_up) if config.warm_up else 1.0
        down = min(1.0, (1 - done) / config.ramp_down) if config.ramp_down else 1.0
        return up * (0.5 - 0.5 * cos(pi * down))

    def projection(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Projection | None:
        """Into the box."""
        if self.config.bound_width == 0:
            return None
        if "box" not in batch.notes:
            curved = has_p_space(generator, self.config.p_space)
            count, width = self.config.bound_samples, self.config.bound_width
            batch.notes["box"] = bounds(generator, count, batch.seed, batch.like, curved, width)
        box: Box = batch.notes["box"]

        def cut(moved: Tensor) -> None:
            moved.copy_(box.clip(moved))

        return cut

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Loss of the image or its mirror image."""
        chance = batch.uniform("attacks/mirror/flips", 1, shared=self.config.shared_views)
        seen = torch.where(chance[:, :, None, None] < self.config.flip_probability, images.flip(3), images)
        return self.identity_loss(target(seen), batch.labels)
