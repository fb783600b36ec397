"""Image similarity: SSIM of a reconstruction and a private image, without any network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_images, private_images_of

WINDOW, SIGMA = 11, 1.5  # pixels
# (K₁ · range)² and (K₂ · range)², which keep the index finite in windows that are black, or of one color.
_C1, _C2 = 0.01**2, 0.03**2


def check_images_of(labels: Tensor, **tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all are (n, 3, height, width) in [0, 1] with one image per label."""
    check_rows(labels, **tensors)
    for name, images in tensors.items():
        if images.ndim != 4 or images.shape[1] != 3 or images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"expected {name} (n, 3, height, width) in [0, 1], got {tuple(images.shape)} in "
                f"[{float(images.min()):g}, {float(images.max()):g}]"
            )


def resized_like(images: Tensor, like: Tensor) -> Tensor:
    """``images`` resized to the height and width of ``like``, bilinear with antialiasing."""
    size = like.shape[-2:]
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of pairs of images with data range 1.

    Means, variances and covariance are taken under an 11 × 11 Gaussian window of standard deviation 1.5, at every
    position inside the image. The index with K₁ = 0.01 and K₂ = 0.03 is averaged over positions and channels.

    Args:
        images: (n, 3, height, width) in [0, 1], at least 11 × 11 pixels; a single image is compared with all
            references.
        references: (n, 3, height, width) in [0, 1].

    Returns:
        (n,) in [-1, 1], in the precision of the images; 1 for equal images.

    Raises:
        ValueError: images of different sizes, or smaller than the window.

    Source:
        Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004.
    """
    if images.shape[1:] != references.shape[1:] or min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"expected images of one size, at least {WINDOW} x {WINDOW} pixels, got {tuple(images.shape)} and "
            f"{tuple(references.shape)}"
        )
    mean_x, mean_y = _blurred(images), _blurred(references)
    variance_x, variance_y = _blurred(images * images) - mean_x**2, _blurred(references * references) - mean_y**2
    covariance = _blurred(images * references) - mean_x * mean_y
    alike = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    return (alike / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))).mean(dim=(1, 2, 3))


def _blurred(images: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).view(1, 1, WINDOW, 1)
    # A Gaussian window is a product, so two passes with 11 weights replace one with 121.
    planes = F.conv2d(F.conv2d(images.flatten(0, 1)[:, None], weights), weights.mT)
    return planes.view(*images.shape[:2], *planes.shape[-2:])


def nearest_ssim(images: Tensor, labels: Tensor, private_images: Tensor, private_labels: Tensor) -> Tensor:
    """Structural similarity of each reconstruction to the most similar private image of the same identity.

    Args:
        images: (n, 3, height, width) reconstructions in [0, 1].
        labels: (n,) int64 classes that they are meant to show.
        private_images: (m, 3, height, width) private training images in [0, 1]; resized like ``images``.
        private_labels: (m,) int64.

    Returns:
        (n,) float64 in [-1, 1].

    Raises:
        ValueError: a class without private images, or images that are too small, not finite, or not in [0, 1].
    """
    check_images_of(labels, images=images)
    check_images_of(private_labels, private_images=private_images)
    found = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique().tolist():
        mine = labels == label
        known = resized_like(private_images[private_images_of(label, private_labels)], images)
        found[mine] = torch.stack([ssim(one[None], known).max().double() for one in images[mine]])
    return found


@METRICS.register("image_similarity")
class ImageSimilarity(Metric):
    """SSIM to the nearest private training image of the identity: similarity of pixels, not of faces.

    A face in another pose scores low, and a blur scores high, so compare it with its chance level. LPIPS is missing,
    since the libraries that have it (lpips, torchmetrics, piq, torch-fidelity) need torchvision for it. Any network
    with features can be the audit's ``extractor=``; the Fréchet distance and related metrics then use it.

    Source:
        Wang et al., IEEE TIP 2004.
    """

    needs = ()

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``ssim`` in [-1, 1]."""
        values = nearest_ssim(evidence.images, evidence.labels, evidence.private_images, evidence.private_labels)
        note = "to the private image of the person that it is most like; pose and light count as much as the face"
        return [mean_over_images("ssim", "SSIM, -1 to 1", "leakage", values, evidence.labels, note)]
