"""PLG: the max-margin loss of two random views, through a conditional generator."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig
from calor_hf.attacks.smoothing import over_views
from calor_hf.core.config import setting
from calor_hf.targets.base import Target

ADAPTIVE: dict[str, Any] = {
    "objective": "poincare",  # a loss that does not flatten out
    "gradient": "straight_through",  # around a low-rank head's Tanh
    "noise": "mean",  # as anyone with the weights can leave it out
    "initial_candidates": 500,
    "lr": 0.03,  # a rate that stays where the prior has images
}


@dataclass(frozen=True, kw_only=True)
class PLGConfig(GradientAttackConfig):
    """Settings of :class:`PLG`."""

    steps: int = 600
    lr: float = setting(0.1, "Learning rate of Adam.")
    objective: str = "max_margin"
    views: int = setting(2, "Random views a step, summed; 0: the image as it is.", ge=0)


@ATTACKS.register("plg")
class PLG(GradientAttack[PLGConfig]):
    """Adam on latents of a conditional generator, with a max-margin loss (Yuan et al., AAAI 2023).

    Runs on generators without classes too; the authors' is ``conditional``, trained with the prior ``plg`` for this
    target.

    Preset ``adaptive`` is ours, not the authors'. Preset ``smoothed`` adds AlignMI's average of the gradient over
    noisy copies of each image, for defenses such as ``at_at``: 10 of them, a fifth of AlignMI's, as a step costs as
    many passes of the target.

    Source:
        Yuan et al., AAAI 2023, arXiv:2302.09814; LetheSec/PLG-MI-Attack `reconstruct.py`.
    """

    config_class = PLGConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "adaptive": ADAPTIVE,
        "smoothed": {**ADAPTIVE, "smoothing": "noise", "samples": 10},
    }

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Sum of the losses of the views."""
        return over_views(
            lambda shown: self.identity_loss(target(shown), batch.labels), images, batch, self.config.views
        )
