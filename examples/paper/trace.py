"""Recording of a white-box attack: sizes of gradients and the target's confidence at every step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from calor_hf.attacks import Attack
from calor_hf.attacks.gradient import GradientAttack
from calor_hf.attacks.specs import parse_attack


@dataclass
class Trace:
    """Values of every step of an attack: one list entry per step, one row per image.

    Attributes:
        variables: (rows,) L2 norm of the gradient of the optimized variables.
        images: (rows,) L2 norm of the gradient of the image.
        confidence: (rows,) probability of the attacked class for the view of the image in that step.
        steps: Number of steps of each stage.
    """

    variables: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    confidence: list[Tensor] = field(default_factory=list)
    steps: tuple[int, ...] = ()


def traced(spec: str) -> tuple[str, GradientAttack[Any], Trace]:
    """Create a white-box attack that records every step without changing the attack.

    Attack all classes in one chunk, since a trace covers one pass of the loop.

    Args:
        spec: Attack spec, see :func:`~calor_hf.attacks.specs.parse_attack`.

    Returns:
        Name of the attack, the attack, and its trace, filled while the attack runs.

    Raises:
        ValueError: the attack uses no gradient, or several copies of an image per step.
    """
    named = parse_attack(spec)
    plain = named.attack
    if not isinstance(plain, GradientAttack):
        raise ValueError(f"'{named.kind}' uses no gradient of the target; pass a white-box attack")
    if plain.config.samples > 1:
        raise ValueError(f"samples must be 1, so that a step has one gradient per image, got {spec}")
    trace = Trace()
    made = cast("type[Attack[Any]]", type(f"Traced{type(plain).__name__}", (_Traced, type(plain)), {"trace": trace}))
    return named.name, cast("GradientAttack[Any]", made(plain.config)), trace


class _Traced:
    """Mixin in front of an attack's class: each hook records its values and calls the original."""

    trace: Trace

    def stages(self, generator: Any) -> Sequence[int]:
        steps: Sequence[int] = super().stages(generator)  # type: ignore[misc]
        self.trace.steps = tuple(steps)
        return steps

    def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
        variables.register_post_accumulate_grad_hook(lambda v: self.trace.variables.append(_norms(v.grad)))
        made: torch.optim.Optimizer = super().optimizer(variables)  # type: ignore[misc]
        return made

    def synthesize(self, generator: Any, variables: Tensor, batch: Any, stage: int) -> Tensor:
        images: Tensor = super().synthesize(generator, variables, batch, stage)  # type: ignore[misc]
        if images.requires_grad:
            images.register_hook(lambda gradient: self.trace.images.append(_norms(gradient)))
        return images

    def identity(self, target: Any, images: Tensor, batch: Any) -> Tensor:
        loss: Tensor = super().identity(target, images, batch)  # type: ignore[misc]
        probabilities = target.logits.double().softmax(dim=1)
        self.trace.confidence.append(probabilities.gather(1, batch.labels[:, None]).squeeze(1).cpu())
        return loss


def _norms(gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise RuntimeError("a step has no gradient")
    norms: Tensor = gradient.detach().double().flatten(1).norm(dim=1)
    return norms.cpu()


def means(steps: Sequence[Tensor]) -> list[float]:
    """Return the mean over images of each step."""
    return [float(step.mean()) for step in steps]


def moving_average(values: Sequence[float], window: int = 20) -> list[float]:
    """Compute the moving average.

    Args:
        values: One per step, at least one.
        window: Number of averaged values, >= 1; at most all are averaged.

    Returns:
        ``len(values) − window + 1`` means, at least one.

    Raises:
        ValueError: no values, or a window below 1.
    """
    if window < 1 or not values:
        raise ValueError(f"expected a window >= 1 and at least one value, got {window} and {len(values)}")
    width = min(window, len(values))
    smooth: list[float] = np.convolve(values, np.full(width, 1 / width), "valid").tolist()
    return smooth


def relative(values: Sequence[float], window: int = 20) -> list[float]:
    """Divide :func:`moving_average` by its first value.

    Raises:
        ValueError: the first value is 0.
    """
    smooth = moving_average(values, window)
    if smooth[0] == 0:
        raise ValueError("the gradient is 0 in the first steps, so a relative size is undefined")
    return [value / smooth[0] for value in smooth]
