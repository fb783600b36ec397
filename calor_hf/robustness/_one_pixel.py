"""The one-pixel attack through SciPy's differential evolution."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calor_hf.core.seeding import named_rng
from calor_hf.targets.base import ScoreTarget, Target

POPULATION, GENERATIONS = 10, 10
_VALUES = 5  # of a candidate: row, column, red, green, blue


def one_pixel_images(target: Target, images: Tensor, labels: Tensor, targeted: bool, seed: int) -> Tensor:
    """Images with one pixel changed to any color, found from scores only.

    The published attack has a population of 400 and 100 generations; the paper's table has 10 and 10: at most 110
    queries per image, and 10 for the stopping rule. The toolbox's version fixes the population at 400 and draws from a
    global generator, so SciPy's is called directly.

    Args:
        target: Classifier; only its probabilities are used.
        images: (n, 3, height, width) in [0, 1].
        labels: (n,) int64 wanted classes, or, untargeted, the images' own classes.
        targeted: Whether to raise the probability of ``labels``, or else to lower it.
        seed: The draws of an image depend on it and the image's index only.

    Returns:
        Images as ``images``, the best candidate of each.

    Source:
        Su, Vargas and Sakurai, IEEE Transactions on Evolutionary Computation 2019, arXiv:1710.08864.
    """
    from scipy.optimize import differential_evolution  # here, as scipy.optimize takes a second to import

    scores = ScoreTarget(target)
    height, width = images.shape[-2:]
    changed = []
    for index, (image, label) in enumerate(zip(images.to(target.device), labels.tolist(), strict=True)):
        search = _Search(scores, image, label, targeted)
        found = differential_evolution(
            search.cost,
            [(0, height), (0, width), (0, 1), (0, 1), (0, 1)],
            maxiter=GENERATIONS,
            popsize=POPULATION // _VALUES,  # SciPy multiplies it by the number of values
            recombination=1,
            init="random",
            tol=0,
            atol=-1,  # a population that agrees goes on
            polish=False,
            updating="deferred",
            vectorized=True,
            callback=search.done,
            rng=named_rng(seed, "robustness/one-pixel", index),
        )
        changed.append(with_pixel(image, found.x[None])[0])
    return torch.stack(changed).to(images)


@dataclass(frozen=True)
class _Search:
    scores: ScoreTarget
    image: Tensor
    label: int
    targeted: bool

    def cost(self, candidates: NDArray[np.float64]) -> NDArray[np.float64]:
        """(m,) values to minimize of (5, m) candidates."""
        probability: NDArray[np.float64] = self._ask(candidates.T)[:, self.label].double().cpu().numpy()
        return 1 - probability if self.targeted else probability

    def done(self, intermediate_result: Any) -> bool:
        """Whether the best candidate is a success. SciPy passes the argument by its name."""
        return (int(self._ask(intermediate_result.x[None]).argmax()) == self.label) == self.targeted

    def _ask(self, candidates: NDArray[np.float64]) -> Tensor:
        return self.scores(with_pixel(self.image, candidates))


def with_pixel(image: Tensor, candidates: NDArray[np.float64]) -> Tensor:
    """(m, 3, height, width) copies of a (3, height, width) image, each with one pixel of another color.

    ``candidates`` are (m, 5): row in [0, height], column in [0, width], and three colors in [0, 1].
    """
    values = torch.from_numpy(np.ascontiguousarray(candidates))
    rows = values[:, 0].long().clamp(0, image.shape[-2] - 1)
    columns = values[:, 1].long().clamp(0, image.shape[-1] - 1)
    copies = image.expand(len(values), *image.shape).clone()
    copies[torch.arange(len(values)), :, rows, columns] = values[:, 2:].to(image)
    return copies
