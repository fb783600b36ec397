"""GMI, the first generative attack: descend identity loss plus realism from random latents."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig, Projection
from calor_hf.core.config import setting
from calor_hf.generators import Generator


@dataclass(frozen=True, kw_only=True)
class GMIConfig(GradientAttackConfig):
    """Settings of :class:`GMI`."""

    steps: int = 1500
    lr: float = setting(0.02, "Learning rate, for the mean loss of reference_batch images.")
    momentum: float = setting(0.9, "Of the descent, in [0, 1).")
    nesterov: bool = setting(True, "Nesterov's momentum; false: heavy ball.")
    clip: float | None = setting(1.0, "Latents stay within ± this; none: anywhere.")
    identity_weight: float = 100.0
    reference_batch: int = setting(60, "Images that the source takes the mean over.")


@ATTACKS.register("gmi")
class GMI(GradientAttack[GMIConfig]):
    """Momentum descent on latents: identity loss and the discriminator's realism (Zhang et al., CVPR 2020).

    The authors keep the best of five restarts by the target's logit; CALoR's protocol makes them the five images of a
    class, and so do we by default (``restarts=5`` chooses).

    Source:
        Zhang et al., "The Secret Revealer", CVPR 2020, arXiv:1911.07135; AI-secure/GMI-Attack `recovery.py`. Preset
        ``calor``: MIBench, heavy ball without bounds.
    """

    config_class = GMIConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"calor": {"nesterov": False, "clip": None}}

    def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
        """Momentum descent."""
        config = self.config
        # The authors' loss is a mean over the batch, so that the step of an image shrinks with the batch (60 or 100
        # images in their scripts). Ours is a sum with a fixed divisor: results do not depend on the batch.
        lr = config.lr / config.reference_batch
        # The authors' hand-written update, z − 0.9 v' + 1.9 v with v = 0.9 v' − lr · slope, is this class.
        return torch.optim.SGD([variables], lr=lr, momentum=config.momentum, nesterov=config.nesterov)

    def prior(self, generator: Generator[Any], images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """``prior``: minus the realism, if the generator has one."""
        return {"prior": -generator.realism(images, batch.labels, batch.group)} if generator.has_realism else {}

    def projection(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Projection | None:
        """Within the bounds."""
        clip = self.config.clip
        if clip is None:
            return None

        def within(moved: Tensor) -> None:
            moved.clamp_(-clip, clip)

        return within
