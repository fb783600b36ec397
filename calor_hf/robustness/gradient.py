"""FGSM, PGD and BIM through the adversarial-robustness-toolbox."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.seeding import named_rng
from calor_hf.targets.base import Target

EPS, STEPS = 8 / 255, 10


def library() -> Any:
    """The module ``art.attacks.evasion``.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import art.attacks.evasion
        import art.estimators.classification
    except ImportError as error:
        raise ImportError(
            f"adversarial examples need the adversarial-robustness-toolbox ({error}); "
            'pip install "calor-hf[robustness]"'
        ) from error
    return art.attacks.evasion


def gradient_images(
    attack: str, target: Target, images: Tensor, labels: Tensor, targeted: bool, seed: int, batch_size: int,
    eps: float = EPS,
) -> Tensor:  # fmt: skip
    """Gradient-based adversarial examples.

    Args:
        attack: ``fgsm`` one step; ``bim`` ten steps of ``eps`` / 4; ``pgd`` the same from a random point in the ball;
            ``pgd_margin`` as pgd, on :func:`margin_loss` instead of cross-entropy.
        target: Network whose gradient is used.
        images: (n, 3, height, width) in [0, 1].
        labels: (n,) int64 wanted classes, or, untargeted, the images' own classes.
        targeted: Whether to descend the loss of ``labels``, or else to ascend it.
        seed: Seed of PGD's start, which depends on it and the image's index only, not on ``batch_size``.
        batch_size: Images per batch.
        eps: Largest change of a value.

    Returns:
        Images as ``images``.

    Raises:
        ImportError: the library is not installed.
    """
    evasion = library()
    from art.estimators.classification import PyTorchClassifier

    # Sums, not means: an image's gradient is then its own, as large in a full batch as alone.
    loss = margin_loss if attack == "pgd_margin" else nn.CrossEntropyLoss(reduction="sum")
    classifier = PyTorchClassifier(
        model=_Scores(target),
        loss=loss,
        input_shape=tuple(images.shape[1:]),
        nb_classes=target.num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if target.device.type == "cpu" else "gpu",
    )
    common = {"eps": eps, "targeted": targeted, "batch_size": batch_size}
    iterated = {"eps_step": eps / 4, "max_iter": STEPS, "verbose": False, **common}
    if attack == "fgsm":
        method = evasion.FastGradientMethod(classifier, **common)
    elif attack == "bim":
        method = evasion.BasicIterativeMethod(classifier, **iterated)
    else:
        method = evasion.ProjectedGradientDescent(classifier, num_random_init=1, **iterated)
    wanted = F.one_hot(labels, target.num_classes).float().cpu().numpy()
    with _numpy_stream(seed):
        changed = method.generate(images.float().cpu().numpy(), wanted)
    return torch.from_numpy(np.asarray(changed, dtype=np.float32)).to(images)


def margin_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Margin of the best other class over the wanted one, summed over the images.

    Unlike that of cross-entropy, its gradient does not vanish for confident scores. ``wanted`` is (batch, classes)
    one-hot, like the logits; the result is a scalar in units of the logits.

    Source:
        Carlini and Wagner, IEEE S&P 2017, arXiv:1608.04644, f6 without its lower bound.
    """
    is_wanted = wanted > 0.5
    others = logits.masked_fill(is_wanted, -torch.inf).amax(dim=1)
    return (others - logits[is_wanted]).sum()


class _Scores(nn.Module):
    """Logits of a target, whose network is hidden from the library so that it neither moves nor trains it."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = [target]

    def forward(self, images: Tensor) -> Tensor:
        return self._target[0](images).float()


@contextmanager
def _numpy_stream(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which the library uses, and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(named_rng(seed, "robustness/pgd").integers(2**32, size=8))
    try:
        yield
    finally:
        np.random.set_state(before)
