"""SFMI: a flow's path from noise to image, steered by the target."""

from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks.base import ATTACKS, Task
from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.gradient import CALLBACK_EVERY, WhiteBoxAttack, WhiteBoxConfig
from calor_hf.core.config import setting
from calor_hf.generators import Generator
from calor_hf.generators.denoiser import Denoiser, as_images
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class SFMIConfig(WhiteBoxConfig):
    """Settings of :class:`SFMI`."""

    steps: int = setting(50, "Heun steps from noise to image.")
    objective: str = "max_margin"
    guidance: float = setting(0.3, "Most of the velocity's length that the target adds; above 0.35 images break.", gt=0)


@ATTACKS.register("sfmi")
class SFMI(WhiteBoxAttack[SFMIConfig]):
    """Follow a flow from noise, steered by the target's gradient at the predicted image ("Steering the Flow", 2026).

    At a point x of the path, at time t, the prior predicts the image x̂ and the velocity v = (x̂ − x) / (1 − t). The
    gradient g, by x, of the max-margin loss of x̂ goes through target and prior. Scaled to the length of v, it is
    subtracted with weight γ(t), which rises from 0 to ``guidance`` until t = 0.1, stays until 0.3, and falls along a
    cosine to 0 at 0.7. Points after that need no gradient. The last step, whose end has no velocity, is an Euler step,
    which ends at x̂.

    One prior serves every target. It runs on ``flow``, and on ``diffusers``, whose predictions are read as those of a
    flow; the source reports .109 for guided DDIM on a DDPM, so train a flow if you can.

    Published accuracy of PPA / PLG / IF-GMI / SFMI: IR-152 with 64 pixels .671 / .449 / .806 / .910, ArcFace with 112
    .419 / .236 / .754 / .925, ViT with 112 .370 / .256 / .747 / .874; BiDO .861; 8 images per class. Constant γ: .166;
    cross-entropy: .884.

    Preset ``adaptive`` is ours: past a head's Tanh, and without its noise.

    Source:
        "Steering the Flow" (SFMI), 2026; there is no code.
    """

    config_class = SFMIConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"adaptive": {"gradient": "straight_through", "noise": "mean"}}

    def runs_on(self, generator: Generator[Any]) -> bool:
        """Whether the generator predicts clean images."""
        return isinstance(generator, Denoiser)

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse generators that follow no path."""
        if not self.runs_on(generator):
            raise ValueError(
                f"sfmi steers the path of a flow, expected the generator flow or diffusers, got '{generator.name}'; "
                "train one with calor-hf prior --prior flow"
            )

    def search(
        self, seen: AttackedTarget, generator: Generator[Any], latents: Tensor, batch: Batch, task: Task
    ) -> tuple[Tensor, int]:
        """Steer noise to images, by Heun's steps."""
        steps, labels = self.config.steps, batch.labels[:: batch.group].tolist()
        points = latents.view(-1, 3, generator.image_size, generator.image_size)
        for step, (now, after) in enumerate(pairwise(place / steps for place in range(steps + 1)), start=1):
            slope = self._velocity(seen, generator, points, now, batch)
            if step < steps:
                ahead = points + (after - now) * slope
                slope = (slope + self._velocity(seen, generator, ahead, after, batch)) / 2
            points = points + (after - now) * slope
            if task.callback is not None and (step % CALLBACK_EVERY == 0 or step == steps):
                agrees = torch.nan if seen.logits is None else seen.logits.argmax(dim=1) == batch.labels
                task.callback(labels, step, steps, float(torch.as_tensor(agrees).double().mean()))
        return points, (2 * steps - 1) * len(points)

    def result(self, generator: Generator[Any], variables: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The ends of the paths, as latents, and their images."""
        return variables.flatten(1), as_images(variables)

    def _velocity(self, seen: AttackedTarget, generator: Any, points: Tensor, time: float, batch: Batch) -> Tensor:
        weight = self.config.guidance * schedule(time)
        with torch.set_grad_enabled(weight > 0):
            points = points.detach().requires_grad_(weight > 0)
            velocity: Tensor = generator.velocity(points, time)
            if weight == 0:
                return velocity
            loss = self._identity(seen, as_images(points + (1 - time) * velocity), batch)
            (gradient,) = torch.autograd.grad(loss.sum(), points)
        velocity = velocity.detach()
        return velocity - weight * gradient * (_length(velocity) / _length(gradient).clamp_min(1e-30))


def schedule(time: float) -> float:
    """γ(time) as a share of its maximum."""
    if time >= 0.7:
        return 0.0
    return min(1.0, time / 0.1) * (1.0 if time <= 0.3 else 0.5 + 0.5 * cos(pi * (time - 0.3) / 0.4))


def _length(vectors: Tensor) -> Tensor:
    """(batch, 1, 1, 1) Euclidean lengths."""
    lengths: Tensor = vectors.flatten(1).norm(dim=1)
    return lengths[:, None, None, None]
