"""KID: kernel distance between the features of reconstructions and of private images, unbiased for few images."""

import math

import numpy as np
import torch
from torch import Tensor

from calor_hf.core.seeding import named_rng
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric
from calor_hf.metrics.fid import INCEPTION, check_clouds


def squared_mmd(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of (n, d) and (m, d), n, m >= 2, under the kernel (x·y / d + 1)³.

    It is below 0 if two sets are nearer than two samples of one distribution on average.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:
        table = kernel(x, x)
        # Without pairs of an image and itself, which would bias the estimate for few images.
        return (table.sum() - table.trace()) / (len(x) * (len(x) - 1))

    return among(first) + among(second) - 2 * kernel(first, second).mean()


def kernel_distances(
    features: Tensor, private_features: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Tensor:
    """:func:`squared_mmd` of random subsets; their mean is the kernel distance.

    Args:
        features: (n, d) of reconstructions; their order does not matter.
        private_features: (m, d) of private images.
        subsets: Number of subsets.
        subset_size: Images on each side of a subset, drawn without repetition; at most n and m are.
        seed: Seed of the subsets.

    Returns:
        (subsets,) float64; NaN with fewer than two images on a side.

    Raises:
        ValueError: features of different widths or not finite, or too few subsets or images.

    Source:
        Bińkowski et al., ICLR 2018, arXiv:1801.01401; toshas/torch-fidelity `metric_kid.py`.
    """
    check_clouds(features, private_features)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"expected one subset or more, of two images or more, got {subsets} of {subset_size}")
    size = min(subset_size, len(features), len(private_features))
    if size < 2:
        return torch.full((subsets,), math.nan, dtype=torch.float64)
    clouds = [cloud.double() for cloud in (features, private_features)]
    # Sorted by value, so that a subset does not depend on the order of the images.
    clouds = [cloud[torch.from_numpy(np.lexsort(cloud.T.numpy()))] for cloud in clouds]
    found = []
    for index in range(subsets):
        rng = named_rng(seed, "metrics/kid", index)
        first, second = (cloud[torch.from_numpy(rng.choice(len(cloud), size, replace=False))] for cloud in clouds)
        found.append(squared_mmd(first, second))
    return torch.stack(found)


@METRICS.register("kid")
class KID(Metric):
    """Kernel distance of all reconstructions to the private training images of their identities.

    It is named ``kid`` only if the extractor is pytorch-fid's Inception, which an audit loads as ``inception_fid``, and
    ``kernel_distance`` otherwise. The std is the standard deviation over subsets, the published ±; subsets overlap, so
    it is no interval.

    The settings are those of :func:`kernel_distances`.

    Source:
        Bińkowski et al., ICLR 2018, arXiv:1801.01401.
    """

    needs = ("extractor",)
    by_image = False

    def __init__(self, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> None:
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``kid`` or ``kernel_distance``; NaN with fewer than two images on a side."""
        view, labels = self.view(evidence, "extractor"), evidence.labels
        n, m = len(labels), len(view.private_features)
        values = kernel_distances(view.features, view.private_features, self.subsets, self.subset_size, self.seed)
        value = float(values.mean())
        size = min(self.subset_size, n, m)
        note = f"{self.subsets} subsets of {size} of {n} reconstructions and of {m} private images; by {view.name}"
        if not math.isfinite(value):
            value, note = math.nan, f"it takes two images on each side, and numbers that float64 can hold: {note}"
        name = "kid" if view.name == INCEPTION else "kernel_distance"
        std = float(values.std()) if self.subsets > 1 and math.isfinite(value) else math.nan
        return [Measure(name, value, "squared MMD", "privacy", n, len(labels.unique()), std=std, note=note)]
