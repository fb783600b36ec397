"""What a white-box attack sees on its way: sizes of gradients, and the target's confidence, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from calor_hf.attacks import Attack
from calor_hf.attacks.gradient import GradientAttack
from calor_hf.attacks.specs import attack_of


@dataclass
class Trace:
    """Numbers of every step of an attack, a list entry a step and a row an image.

    Attributes:
        variables: (rows,) L2 norm of the gradient of what is optimized.
        images: (rows,) L2 norm of the gradient of the image.
        confidence: (rows,) the target's probability of the class, of the view that the step showed it.
        steps: Of each stage.
    """

    variables: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    confidence: list[Tensor] = field(default_factory=list)
    steps: tuple[int, ...] = ()


def traced(word: str) -> tuple[str, GradientAttack[Any], Trace]:
    """A white-box attack that notes every step, which changes nothing about it.

    Attack all classes in one chunk: a trace is of one pass of the loop.

    Args:
        word: As :func:`~calor_hf.attacks.specs.attack_of`.

    Returns:
        Name of the attack, the attack, and its trace, which is filled while it runs.

    Raises:
        ValueError: an attack without gradients, or one that shows the target several copies of an image a step.
    """
    name, kind, plain = attack_of(word)
    if not isinstance(plain, GradientAttack):
        raise ValueError(f"'{kind}' follows no gradient of the target, so there is none to look at; pass another")
    if plain.config.samples > 1:
        raise ValueError(f"samples must be 1, as a step has one gradient an image to look at, got {word}")
    trace = Trace()
    made = cast("type[Attack[Any]]", type(f"Traced{type(plain).__name__}", (_Traced, type(plain)), {"trace": trace}))
    return name, cast("GradientAttack[Any]", made(plain.config)), trace


class _Traced:
    """Goes in front of an attack's class; each hook notes something and does what it did before."""

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
        raise RuntimeError("a step without a gradient")
    norms: Tensor = gradient.detach().double().flatten(1).norm(dim=1)
    return norms.cpu()


def means(steps: Sequence[Tensor]) -> list[float]:
    """Mean over images of each step."""
    return [float(step.mean()) for step in steps]


def moving_average(values: Sequence[float], window: int = 20) -> list[float]:
    """Means of ``window`` neighbors; the first is of the first ``window`` values (of all, where there are fewer).

    Args:
        values: One a step, at least one.
        window: >= 1.

    Returns:
        ``len(values) − window + 1`` means, at least one.

    Raises:
        ValueError: nothing to average, or a window below 1.
    """
    if window < 1 or not values:
        raise ValueError(f"expected a window >= 1 and at least one value, got {window} and {len(values)}")
    width = min(window, len(values))
    return [sum(values[start : start + width]) / width for start in range(len(values) - width + 1)]


def relative(values: Sequence[float], window: int = 20) -> list[float]:
    """:func:`moving_average` divided by its first value.

    Raises:
        ValueError: the first value is 0: there is no gradient to begin with.
    """
    smooth = moving_average(values, window)
    if smooth[0] == 0:
        raise ValueError("the gradient is 0 from the first step on, so that nothing can be put in relation to it")
    return [value / smooth[0] for value in smooth]
