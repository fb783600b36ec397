"""Success rates of adversarial examples."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from calor_hf.core.report_text import percent
from calor_hf.core.seeding import torch_seed
from calor_hf.robustness._one_pixel import GENERATIONS, POPULATION, one_pixel_images
from calor_hf.robustness.gradient import EPS, STEPS, gradient_images, library
from calor_hf.robustness.share import Share
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

logger = logging.getLogger(__name__)

_BALL = {"eps": EPS}
_STEPS = {**_BALL, "step": EPS / 4, "steps": STEPS}
ADVERSARIAL: dict[str, dict[str, float]] = {
    "fgsm": _BALL,
    "pgd": _STEPS,
    "pgd_margin": _STEPS,
    "bim": _STEPS,
    "one_pixel": {"pixels": 1, "population": POPULATION, "generations": GENERATIONS},
}
"""Attacks and their settings; ``eps`` and ``step`` are changes of a value in [0, 1]."""
BATCH_SIZE = 64


@dataclass(frozen=True)
class AdversarialResult:
    """Result of one attack.

    Attributes:
        attack: Name in :data:`ADVERSARIAL`.
        targeted: Whether success means the class after the image's own, or else any other class.
        transferred: Whether the images were made against another network.
        changed: Successes among the images that were none before the attack: if untargeted those classified correctly,
            if targeted those not assigned to the wanted class.
        all: Successes among all images; natural errors count.
        seed: Seed of the random numbers.
        seconds: Wall time.
    """

    attack: str
    targeted: bool
    transferred: bool
    changed: Share
    all: Share
    seed: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shares = {"changed": self.changed.to_dict(), "all": self.all.to_dict()}
        return {**vars(self), "settings": ADVERSARIAL[self.attack], **shares}


def adversarial(
    target: Target, images: Tensor, labels: Tensor, attacks: Sequence[str] = tuple(ADVERSARIAL), targeted: bool = False,
    seed: int = 0, made_on: Target | None = None, batch_size: int = BATCH_SIZE,
) -> list[AdversarialResult]:  # fmt: skip
    """Attack images, and count how often the target misclassifies them.

    The paper does not state over which images its rates are taken (its one-pixel rate is below its clean error, so
    hardly over all); both are given. Its numbers agree with about 410 images.

    Args:
        target: Classifier of images in [0, 1].
        images: (n, 3, height, width) in [0, 1], untouched test images.
        labels: (n,) int64 in [0, num_classes).
        attacks: Names in :data:`ADVERSARIAL`.
        targeted: The wanted class is (label + 1) mod ``num_classes``; else any but the label.
        seed: Seed of PGD's start and of one_pixel. Results depend neither on ``batch_size`` nor on the other attacks.
        made_on: Network whose gradients make the images, which ``target`` then classifies. Defaults to ``target``.
        batch_size: Images per batch.

    Returns:
        One result per attack, in their order.

    Raises:
        ImportError: the extra ``robustness`` is not installed.
        ValueError: an unknown attack, images or labels that do not fit, or networks with different classes.
        FloatingPointError: the target's scores are not finite.

    Source:
        Goodfellow et al., ICLR 2015, arXiv:1412.6572 (FGSM); Kurakin et al., 2017, arXiv:1607.02533 (BIM); Madry et
        al., ICLR 2018, arXiv:1706.06083 (PGD); settings of the paper's table 16.
    """
    check_attacks(attacks)
    check_images(target, images, labels)
    source = target if made_on is None else made_on
    if source.num_classes != target.num_classes:
        raise ValueError(
            f"the images' maker has {source.num_classes} classes, the target {target.num_classes}; pass one trained on "
            "the same data"
        )
    library()
    wanted = (labels + 1) % target.num_classes if targeted else labels
    results = []
    with frozen(target.module, source.module), torch.random.fork_rng():
        # For stochastic targets, and for the attacks' data loaders, which use the global generator.
        torch.manual_seed(torch_seed(seed, "robustness/adversarial"))
        open_to_change = (predict(target, images, batch_size) == wanted) != targeted
        for attack in attacks:
            begin = time.perf_counter()
            if attack == "one_pixel":
                changed = one_pixel_images(source, images, wanted, targeted, seed)
            else:
                changed = gradient_images(attack, source, images, wanted, targeted, seed, batch_size)
            success = (predict(target, changed, batch_size) == wanted) == targeted
            result = AdversarialResult(
                attack, targeted, made_on is not None, Share.of(success, open_to_change), Share.of(success), seed,
                time.perf_counter() - begin,
            )  # fmt: skip
            logger.info("%s%s: %.0f s", attack, " (targeted)" if targeted else "", result.seconds)
            results.append(result)
    return results


def caveats(results: Sequence[AdversarialResult]) -> list[str]:
    """Caveats to print with the numbers, among them the check for masked gradients."""
    lines = [
        "A low rate is no proof of robustness. A head that bounds or flattens scores (tanh, low rank) hides gradients: "
        "fgsm, pgd and bim then fail for want of a direction, and one_pixel makes 120 queries. The highest rate counts."
    ]
    own = {(result.attack, result.targeted): result.changed for result in results if not result.transferred}
    for (attack, targeted), share in own.items():
        margin = own.get(("pgd_margin", targeted))
        if attack != "pgd" or margin is None or not share.count:
            continue
        kind = "targeted" if targeted else "untargeted"
        numbers = f"{kind}: {percent(margin.value)} on the logit margin, {percent(share.value)} on cross-entropy"
        masked = margin.interval[0] > share.interval[1]
        meaning = "the gradient of cross-entropy is masked" if masked else "no masking that this check can see"
        lines.append(f"PGD {numbers}: {meaning}.")
    if not any(attack == "pgd_margin" for attack, _ in own):
        lines.append("Gradient masking was not looked for: add pgd_margin to the attacks.")
    for result in results:
        direct = own.get((result.attack, result.targeted))
        if result.transferred and direct is not None and result.changed.interval[0] > direct.interval[1]:
            kind = "targeted" if result.targeted else "untargeted"
            lines.append(
                f"{result.attack} {kind}: images made on the other network do better than the target's own, whose "
                "gradient is masked."
            )
    if not any(result.transferred for result in results):
        lines.append("No image was made on another network: --transfer-from an undefended model is the stronger check.")
    return lines


def check_attacks(attacks: Sequence[str]) -> None:
    """Raise ``ValueError`` unless all names are in :data:`ADVERSARIAL`."""
    if unknown := [name for name in attacks if name not in ADVERSARIAL]:
        raise ValueError(f"unknown attack {unknown[0]!r}; pass {', '.join(ADVERSARIAL)}")


def check_images(target: Target, images: Tensor, labels: Tensor) -> None:
    """Raise ``ValueError`` unless images are in [0, 1] and the target has a class for every label."""
    if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"expected (n, 3, height, width) images and n labels, n > 0, got {tuple(images.shape)} and {len(labels)}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected images in [0, 1], got values from {low:g} to {high:g}; normalize in the target")
    if int(labels.min()) < 0 or int(labels.max()) >= target.num_classes:
        raise ValueError(
            f"expected labels from 0 to {target.num_classes - 1}, got {int(labels.min())} to {int(labels.max())}"
        )


def predict(target: Target, images: Tensor, batch_size: int = BATCH_SIZE) -> Tensor:
    """(n,) int64 most likely classes, on the images' device.

    Raises:
        FloatingPointError: the target's scores are not finite.
    """
    found = []
    with torch.no_grad():
        for part in images.split(batch_size):
            logits = target(part.to(target.device))
            if not logits.isfinite().all():
                raise FloatingPointError("the target's scores became NaN or infinite; check its weights")
            found.append(logits.argmax(dim=-1))
    return torch.cat(found).to(images.device)
