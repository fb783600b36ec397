"""Alternative head evaluation: with the gradient of Tanh at zero, or with given noise."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _PastSaturation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, squash: Callable[[Tensor], Tensor], slope: float) -> Tensor:
        ctx.slope = slope
        return squash(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.slope, None, None


_past_saturation: Any = _PastSaturation.apply


class StraightThrough(TorchFunctionMode):
    """Mode under which tanh and sigmoid keep their values, but have their slope at zero everywhere.

    A saturated head then hides no gradient.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tanh, Tensor.tanh, F.tanh):
            return _past_saturation(args[0], torch.tanh, 1.0)
        if func in (torch.sigmoid, Tensor.sigmoid, F.sigmoid):
            return _past_saturation(args[0], torch.sigmoid, 0.25)
        return func(*args, **kwargs)


class OwnNoise(TorchFunctionMode):
    """Mode under which ``torch.randn_like``, the noise of a stochastic head, returns numbers from ``draw``.

    Args:
        draw: Returns (rows, columns) standard normal numbers.
    """

    def __init__(self, draw: Callable[[int, int], Tensor]) -> None:
        super().__init__()
        self._draw = draw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.randn_like:
            like: Tensor = args[0]
            return self._draw(len(like), like[0].numel()).reshape(like.shape).to(like)
        return func(*args, **(kwargs or {}))
