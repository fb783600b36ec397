"""Robust accuracy: the share of images that no small change makes the target misclassify."""

import torch
from torch import Tensor

from calor_hf.core.seeding import torch_seed
from calor_hf.robustness.adversarial import BATCH_SIZE, check_images, predict
from calor_hf.robustness.gradient import gradient_images
from calor_hf.robustness.share import Share
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

RADII = (0.0025, 0.0005, 0.00001)


def robust_accuracy(
    target: Target, images: Tensor, labels: Tensor, eps: float, seed: int = 0, batch_size: int = BATCH_SIZE
) -> Share:
    """Share of images that are classified correctly as they are and after two attacks within ``eps``.

    The attacks are ``pgd`` and ``pgd_margin``, untargeted, ten steps of a quarter of ``eps``; the second one sees past
    a flat cross-entropy. It is an upper bound: stronger attacks may leave less.

    A cheap predictor of what model inversion recovers: over models without a defense and with MID, BiDO and transfer
    learning, Torp et al. found leakage linear in robust accuracy at each of :data:`RADII` (R² 0.93 to 0.95). That does
    not hold for defenses that suppress gradients, such as negative label smoothing and Trap-MID, and is no substitute
    for an audit. They run AutoAttack's APGD on cross-entropy, by default on training images.

    Args:
        target: Classifier of images in [0, 1].
        images: (n, 3, height, width) in [0, 1].
        labels: (n,) int64 in [0, num_classes).
        eps: Largest change of a value in [0, 1].
        seed: Seed of the attacks' starts.
        batch_size: Images per batch; does not change the result.

    Raises:
        ImportError: the extra ``robustness`` is not installed.
        ValueError: images, labels or ``eps`` that do not fit.
        FloatingPointError: the target's scores are not finite.

    Source:
        Torp, Smith, Breuer, ICLR 2026; BreuerLabs/Anti-Adversarial-Training, ``utils/auto_attack.py``.
    """
    check_images(target, images, labels)
    check_radius(eps)
    with frozen(target.module), torch.random.fork_rng():
        torch.manual_seed(torch_seed(seed, "robustness/robust_accuracy"))
        right = predict(target, images, batch_size) == labels
        for attack in ("pgd", "pgd_margin"):
            changed = gradient_images(attack, target, images, labels, False, seed, batch_size, eps)
            right &= predict(target, changed, batch_size) == labels
    return Share.of(right)


def check_radius(eps: float) -> None:
    """Raise ``ValueError`` unless ``eps`` is a change of a value in [0, 1]."""
    if not 0 < eps <= 1:
        raise ValueError(f"eps must be > 0 and <= 1, as a change of a value in [0, 1], got {eps:g}")
