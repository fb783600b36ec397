"""Precision, recall, density and coverage of an identity's reconstructions among its private images."""

import math

import torch
from torch import Tensor

from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, mean_over_identities
from calor_hf.metrics.fid import check_clouds

VARIANTS = ("ppa", "standard")
UNITS = {"precision": "share", "recall": "share", "density": "real balls an image lies in, over k", "coverage": "share"}


def prdc(features: Tensor, private_features: Tensor, k: int = 3, variant: str = "ppa") -> dict[str, float]:
    """Overlap of the reconstructions (fakes) and private images (reals) of one identity, in four numbers.

    An image's ball reaches to its k-th neighbor in its own set. On the rim counts as inside.

    - ``precision``: share of fakes in the ball of any real (``standard``), or in that of the nearest (``ppa``).
    - ``recall``: share of reals in the ball of any fake, or in that of the nearest.
    - ``density``: number of pairs of a fake in a real's ball, over k · fakes (``standard``) or over k · reals.
    - ``coverage``: share of reals whose ball holds a fake.

    Args:
        features: (n, d) of reconstructions, n >= 1.
        private_features: (m, d) of private images.
        k: Neighbors that make a ball, >= 1.
        variant: ``ppa``, as in the code of PPA and MIBench, or ``standard``, as defined by Naeem et al.

    Returns:
        Each number by name, all >= 0. A number is NaN if the set whose balls it needs has k images or fewer:
        recall for few fakes, the others for few reals.

    Raises:
        ValueError: unknown variant, ``k`` < 1, or features of different widths or not finite.

    Source:
        Naeem et al., ICML 2020, arXiv:2002.09797; LukasStruppek/Plug-and-Play-Attacks `metrics/prcd.py`.
    """
    if variant not in VARIANTS or k < 1:
        raise ValueError(f"expected variant {' or '.join(VARIANTS)} and k >= 1, got {variant!r} and {k}")
    check_clouds(features, private_features)
    fakes, reals = features.double(), private_features.double()
    found = dict.fromkeys(UNITS, math.nan)
    if min(len(fakes), len(reals)) == 0:
        return found
    between = _distances(fakes, reals)
    if len(reals) > k:
        inside = between <= _radii(reals, k)
        taken = inside.gather(1, between.argmin(dim=1, keepdim=True)) if variant == "ppa" else inside.any(dim=1)
        found["precision"] = float(taken.double().mean())
        found["density"] = float(inside.sum()) / (k * (len(reals) if variant == "ppa" else len(fakes)))
        found["coverage"] = float(inside.any(dim=0).double().mean())
    if len(fakes) > k:
        inside = between <= _radii(fakes, k)[:, None]
        taken = inside.gather(0, between.argmin(dim=0, keepdim=True)) if variant == "ppa" else inside.any(dim=0)
        found["recall"] = float(taken.double().mean())
    return found


def _distances(first: Tensor, second: Tensor) -> Tensor:
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")  # the other one loses small ones


def _radii(points: Tensor, k: int) -> Tensor:
    return _distances(points, points).kthvalue(k + 1, dim=1).values  # the first is the point itself


@METRICS.register("prdc")
class PRDC(Metric):
    """Precision, recall, density and coverage per identity, averaged over those with enough images.

    The settings are those of :func:`prdc`; names of the variant ``standard`` end in ``_standard``.

    Source:
        Naeem et al., ICML 2020, arXiv:2002.09797; Struppek et al., ICML 2022, arXiv:2201.12179, for the use by class.
    """

    needs = ("extractor",)

    def __init__(self, k: int = 3, variant: str = "ppa") -> None:
        self.k, self.variant = k, variant

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``precision``, ``recall``, ``density`` and ``coverage``; NaN if no identity has more than k images."""
        view, labels, known = self.view(evidence, "extractor"), evidence.labels, evidence.private_labels
        # PPA's code takes class 0 for "no class", and compares it with the images of all; here it is like the others.
        identities = {
            label: prdc(view.features[labels == label], view.private_features[known == label], self.k, self.variant)
            for label in labels.unique().tolist()
        }
        found = []
        for name, unit in UNITS.items():
            values = {label: numbers[name] for label, numbers in identities.items()}
            of = "reconstructions" if name == "recall" else "private images"
            note = f"balls to the {self.k} nearest, of people with more than {self.k} {of}; by {view.name}"
            title = name if self.variant == "ppa" else f"{name}_{self.variant}"
            found.append(mean_over_identities(title, unit, "leakage", values, len(labels), note))
        return found
