"""PPA, plug and play: chosen starts, a hyperbolic loss through random crops, and a vote of views at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig
from calor_hf.attacks.starts import LEAST_POOL
from calor_hf.core.config import setting
from calor_hf.data.random_views import RandomView
from calor_hf.generators.stylegan2 import STYLE_DEVIATION
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class CropAttackConfig(GradientAttackConfig):
    """Settings that PPA and IF-GMI share."""

    lr: float = setting(0.005, "Learning rate of Adam.")
    beta1: float = setting(0.1, "Adam's memory of gradients, in [0, 1).", ge=0, lt=1)
    beta2: float = setting(0.1, "Adam's memory of their squares, in [0, 1).", ge=0, lt=1)
    objective: str = "poincare"
    initial_candidates: int = setting(2000, scales_to=LEAST_POOL)
    crop: float = setting(0.9, "Smallest share of the area that a crop in a step keeps.", gt=0, le=1)
    shared_views: bool = setting(True, "One crop a step for all images, as in the source.")


C = TypeVar("C", bound=CropAttackConfig)


class CropAttack(GradientAttack[C]):
    """Adam with very low momentum, from starts chosen with their mirror images; each step sees a random crop."""

    views_stream: ClassVar[str]
    latent_deviation = 0.5 * STYLE_DEVIATION  # styles of truncation 0.5

    def start_views(self, images: Tensor) -> Sequence[Tensor]:
        """Images, and their mirror images."""
        return [images, images.flip(3)]

    def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
        """Adam with very low momentum."""
        return torch.optim.Adam([variables], lr=self.config.lr, betas=(self.config.beta1, self.config.beta2))

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Loss of a random crop."""
        view = RandomView.crop((self.config.crop, 1.0))
        # A crop of the sources serves a whole batch of theirs; with shared_views one serves all images.
        numbers = batch.uniform(self.views_stream, view.numbers, shared=self.config.shared_views)
        return self.identity_loss(target(view(images, numbers)), batch.labels)


@dataclass(frozen=True, kw_only=True)
class PPAConfig(CropAttackConfig):
    """Settings of :class:`PPA`."""

    steps: int = setting(50, "Optimization steps; 70 for CelebA, 100 for dogs in the source.")
    milestones: tuple[int, ...] = setting(
        (), "Steps at which the learning rate falls to a tenth, such as 30,40.", ge=1, scales_to=1
    )
    restarts: int = setting(4, "Candidates optimized for each image kept.")
    final_views: int = setting(
        100, "Random views whose mean score chooses among the candidates; 0: the image's.", ge=0, scales_to=5
    )


@ATTACKS.register("ppa")
class PPA(CropAttack[PPAConfig]):
    """Adam from selected starts, Poincaré loss, selection by random views (Struppek et al., ICML 2022).

    Made for StyleGAN's styles; runs on every generator. The authors keep 50 of 200 candidates per class; CALoR keeps 5,
    and does not say out of how many: here the share is the same.

    Source:
        Struppek et al., "Plug & Play Attacks", ICML 2022, arXiv:2201.12179; LukasStruppek/Plug-and-Play-Attacks
        `attack.py`, configuration of FaceScrub with FFHQ. Preset ``calor``: MIBench, with more samples and steps.
    """

    config_class = PPAConfig
    views_stream = "attacks/ppa/views"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "calor": {"initial_candidates": 5000, "steps": 100, "shared_views": False}
    }
    # The sources crop to whole pixels, resize with antialiasing, and draw again if a crop would leave the image; here a
    # crop is one bilinear resampling, and ends at the edge.
    final_view = RandomView.crop((0.5, 0.9), (0.8, 1.2), flip_probability=0.5)

    def rate(self, step: int, steps: int) -> float:
        """A tenth of what it was from each milestone on."""
        return float(0.1 ** sum(step >= milestone for milestone in self.config.milestones))

    def final_scores(self, seen: AttackedTarget, images: Tensor, batch: Batch, scores: Tensor) -> Tensor:
        """Mean probability of the label over random views."""
        if self.config.final_views == 0:
            return scores
        total = torch.zeros_like(scores)
        for _ in range(self.config.final_views):
            numbers = batch.uniform("attacks/ppa/final-views", self.final_view.numbers, self.config.shared_views)
            shown = seen(self.final_view(images, numbers)).softmax(dim=1)
            total += shown.gather(1, batch.labels[:, None]).squeeze(1)
        return total / self.config.final_views
