"""Mirror, white-box: styles kept inside the box where most styles lie, in a space that makes them normal."""

from dataclasses import dataclass
from math import cos, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks._p_space import P_SPACES, Box, bounds, has_p_space, truncating
from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig, Projection
from calor_hf.attacks.starts import LEAST_POOL
from calor_hf.core.config import setting
from calor_hf.generators import Generator
from calor_hf.generators.stylegan2 import STYLE_DEVIATION
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class MirrorConfig(GradientAttackConfig):
    """Settings of :class:`Mirror`."""

    steps: int = 20_000
    lr: float = setting(0.25, "Highest learning rate of Adam.")
    initial_candidates: int = setting(100_000, scales_to=LEAST_POOL)
    keep: str = "best"
    identity_weight: float = 10.0
    flip_probability: float = setting(0.5, "That an image is mirrored, in each step.", ge=0, le=1)
    shared_views: bool = setting(True, "All images are mirrored together, as in the source.")
    truncation: float | None = setting(
        0.7, "Truncation of a StyleGAN's first 8 layers in every pass, of whole styles; none: of samples.", ge=0, le=1
    )
    warm_up: float = setting(0.05, "Share of the steps in which the rate rises from 0.", ge=0, le=1)
    ramp_down: float = setting(0.25, "Share of the steps in which it falls to 0.", ge=0, le=1)
    p_space: str = setting("auto", "Box in P space: on, off, or auto: with a StyleGAN alone.", choices=P_SPACES)
    bound_samples: int = setting(100_000, "Samples of the prior that the box is measured on.", ge=2)
    bound_width: float = setting(1.0, "Half the box in standard deviations; 0: no box.", ge=0)


@ATTACKS.register("mirror")
class Mirror(GradientAttack[MirrorConfig]):
    """Adam on StyleGAN styles, clipped to one standard deviation around their mean (An et al., NDSS 2022).

    The box lies in P space, LeakyReLU with slope 5 of a style, where styles are about normal; slope 0.2 leads back. It
    is measured on untruncated styles; so are the starts, and the generator truncates its first eight layers in every
    forward pass. On generators without styles the box lies in the space of the latents.

    The authors keep, for a whole batch, the step with its lowest loss; ``keep=best`` does so for each image.

    Source:
        An et al., "MIRROR: Model Inversion for Deep Learning Network with High Fidelity", NDSS 2022;
        njuaplusplus/mirror. Preset ``calor``: MIBench, far fewer and smaller steps at a constant rate. Preset ``quick``
        is ours: far fewer steps and samples, and a lower rate, for ensembles.
    """

    config_class = MirrorConfig
    latent_deviation = STYLE_DEVIATION
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
            "truncation": None,
        },
        "quick": {"steps": 100, "lr": 0.11, "initial_candidates": 1000, "bound_samples": 5000, "shared_views": False},
    }

    def view(self, generator: Generator[Any]) -> Generator[Any]:
        """A StyleGAN that truncates in every pass, unless its samples are to be truncated."""
        return truncating(generator, self.config.truncation)

    def rate(self, step: int, steps: int) -> float:
        """Up in a line, flat, and down along half a cosine, as in StyleGAN's projector."""
        # The authors count steps from 1; from 0 the first step would have rate 0.
        done, config = (step + 1) / steps, self.config
        up = min(1.0, done / config.warm_up) if config.warm_up else 1.0
        down = min(1.0, (1 - done) / config.ramp_down) if config.ramp_down else 1.0
        return up * (0.5 - 0.5 * cos(pi * down))

    def projection(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Projection | None:
        """Into the box."""
        if self.config.bound_width == 0:
            return None
        if "box" not in batch.notes:
            curved = has_p_space(generator, self.config.p_space)
            # Once for all chunks: the box depends on the prior and the seed, not on the classes.
            count, width = self.config.bound_samples, self.config.bound_width
            batch.notes["box"] = bounds(generator, count, batch.seed, batch.like, curved, width)
        box: Box = batch.notes["box"]

        def cut(moved: Tensor) -> None:
            # Both sides at once: MIBench overwrites the upper bound by the lower one, computed from the uncut styles.
            moved.copy_(box.clip(moved))

        return cut

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Loss of the image or its mirror image."""
        chance = batch.uniform("attacks/mirror/flips", 1, shared=self.config.shared_views)
        seen = torch.where(chance[:, :, None, None] < self.config.flip_probability, images.flip(3), images)
        return self.identity_loss(target(seen), batch.labels)
