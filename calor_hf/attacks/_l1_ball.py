"""The nearest point with a bounded sum of absolute values."""

import torch
from torch import Tensor


def onto_l1_ball(points: Tensor, radius: float) -> Tensor:
    """The nearest points whose absolute values sum to ``radius`` at most.

    Outside the ball every element is moved to zero by the same amount θ, as far as it goes; θ is where what is left
    sums to the radius.

    Args:
        points: (rows, n).
        radius: Radius of the ball around zero, > 0.

    Returns:
        (rows, n); points inside as they were.

    Source:
        Duchi et al., "Efficient Projections onto the l1-Ball", ICML 2008.
    """
    sizes = points.abs()
    ordered = sizes.double().sort(dim=1, descending=True).values
    counts = torch.arange(1, points.shape[1] + 1, device=points.device, dtype=ordered.dtype)
    thetas = (ordered.cumsum(dim=1) - radius) / counts
    # The elements that stay above their θ come first; the last of them says it.
    last = (ordered > thetas).sum(dim=1, keepdim=True).clamp_min(1) - 1
    theta = thetas.gather(1, last).clamp_min(0).to(points.dtype)
    return points.sign() * (sizes - theta).clamp_min(0)
