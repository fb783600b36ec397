"""FID: Fréchet distance between Gaussian fits to the features of reconstructions and of private images."""

import math

import torch
from torch import Tensor

from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric

INCEPTION = "inception_fid"
"""Name of the extractor whose distances are called FID and KID: the 2048 pooled features of pytorch-fid's Inception."""


def check_clouds(features: Tensor, private_features: Tensor) -> None:
    """Raise ``ValueError`` unless both are finite rows of one width, (n, d) and (m, d)."""
    if features.ndim != 2 or features.shape[1:] != private_features.shape[1:]:
        raise ValueError(
            f"expected features (n, d) and private_features (m, d) of one network, got {tuple(features.shape)} and "
            f"{tuple(private_features.shape)}"
        )
    for name, rows in (("features", features), ("private_features", private_features)):
        if not rows.isfinite().all():
            raise ValueError(f"some rows of {name} are not finite; look at the network and its input")


def frechet_distance(features: Tensor, private_features: Tensor) -> float:
    """Squared Fréchet distance ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of two Gaussian fits.

    Args:
        features: (n, d) of reconstructions.
        private_features: (m, d) of private images.

    Returns:
        Distance >= 0 in squared units of the features, computed in float64 from unbiased covariances; NaN with fewer
        than two images on a side, or if the numbers are too large for float64.

    Raises:
        ValueError: features of different widths, or not finite.

    Source:
        Heusel et al., NeurIPS 2017, arXiv:1706.08500; mseitzer/pytorch-fid `fid_score.py`.
    """
    check_clouds(features, private_features)
    if min(len(features), len(private_features)) < 2:
        return math.nan
    # With Σᵢ = RᵢᵀRᵢ from a QR decomposition of the centered features, tr (Σ₁Σ₂)^½ is the sum of the singular values
    # of R₁R₂ᵀ. No matrix root is taken, so a singular Σ (fewer images than features) does no harm.
    means, roots = [], []
    for cloud in (features.double(), private_features.double()):
        means.append(cloud.mean(dim=0))
        centered = (cloud - means[-1]) / math.sqrt(len(cloud) - 1)
        roots.append(torch.linalg.qr(centered, mode="r").R)
    product = roots[0] @ roots[1].T
    if not product.isfinite().all():
        return math.nan
    apart = (means[0] - means[1]).square().sum() + roots[0].square().sum() + roots[1].square().sum()
    distance = float(apart - 2 * torch.linalg.svdvals(product).sum())
    return max(0.0, distance) if math.isfinite(distance) else math.nan  # rounding leaves −1e-13 of equal clouds


@METRICS.register("fid")
class FID(Metric):
    """Fréchet distance of all reconstructions, failed ones included, to the private images of their identities.

    It is named ``fid`` only if the extractor is pytorch-fid's Inception, which an audit loads as ``inception_fid``, and
    ``frechet_distance`` otherwise, since every network has its own scale. Some papers count recognized images only, and
    PPA's code feeds images in another range; neither is comparable.

    Source:
        Heusel et al., NeurIPS 2017, arXiv:1706.08500.
    """

    needs = ("extractor",)
    by_image = False

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``fid`` or ``frechet_distance``; NaN with fewer than two images on a side."""
        view, labels = self.view(evidence, "extractor"), evidence.labels
        value = frechet_distance(view.features, view.private_features)
        n, (m, width) = len(labels), view.private_features.shape
        name = "fid" if view.name == INCEPTION else "frechet_distance"
        note, caveat = f"{n} reconstructions and {m} private images in {width} features of {view.name}", ""
        if min(n, m) < width:
            caveat = (
                f"{name} comes from {min(n, m)} images in {width} features; fewer images than features bias it "
                "strongly upward, so it looks more private than it is."
            )
        if math.isnan(value):
            note = f"it takes two images on each side, and numbers that float64 can hold: {note}"
        people = len(labels.unique())
        # No interval: the repeated images of a resample would change a Gaussian fit by themselves.
        return [Measure(name, value, "squared distance", "privacy", n, people, note=note, caveat=caveat)]
