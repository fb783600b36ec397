"""AT-AT: training on features that a tiny change of the image turns into those of another class."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Forward, Progress, Stage
from calor_hf.core.seeding import StepDraws
from calor_hf.defenses.base import DEFENSES, Defense, Strength, mean_over_counted
from calor_hf.defenses.training_run import TrainingRun, check_images


@dataclass(frozen=True, kw_only=True)
class ATATConfig(MethodConfig):
    """Settings of :class:`ATAT`; the defaults are the authors'.

    Lengths are in units of images scaled to [-1, 1], as the authors' are; half of that is the change in [0, 1].
    """

    weight: float = setting(0.08, "Weight of the loss of adversarial images, > 0.", gt=0)
    eps: float = setting(0.0005, "Largest change of a value of an image scaled to [-1, 1], 0 to 2.", gt=0, le=2)
    step: float = setting(0.0001, "Change of a value in a step, in the same unit.", gt=0, le=2)
    steps: int = setting(5, "Steps of the adversarial example, >= 1.", ge=1)


@DEFENSES.register("at_at")
class ATAT(Defense[ATATConfig]):
    """Anti-adversarial training on images changed invisibly toward another class (Torp, Smith and Breuer, ICLR 2026).

    The loss is CE(f(x), y) + ``weight`` · CE(f(x'), y'): y' is drawn uniformly from the other classes, and x' is found
    by projected gradient descent from x toward y', with a random start, within ``eps`` of x and inside the range of
    images. The network is in training mode throughout, also while x' is looked for. So it learns to rely on features
    that are not robust, which attacks through a prior of natural images do not find.

    ``eps`` and ``step`` are in units of images scaled to [-1, 1], whatever the image processor's mean and deviation
    are: the default 0.0005 is a sixteenth of a level of an 8-bit image. Numbers of bfloat16 are 0.004 apart there, so
    training in bf16 is refused.

    A step costs about six of ordinary training: a pass forward and back to the image for each of the ``steps``, and
    twice the images. Clean and adversarial images go through one pass, so that batch norm sees both; the authors take
    two. With their code, the class after y is drawn twice as often as others.

    The authors report for ResNet-152 on FaceScrub that the accuracy of PPA's attack falls from 84 to 6.5 % (19 % with
    transfer learning as the defense), with a higher test accuracy than of seven other defenses. CALoR, LoFt and random
    erasing are not in their comparison.

    Do not expect that of a small network, which has few features that so small a change destroys. On 20 drawn faces
    at 32 pixels, a ResNet of 0.3 million parameters kept a robust accuracy of 97 % at 0.0025 (98 % without a defense),
    and through a DCGAN an evaluation model recognized 79 % of the images of ``plg@adaptive`` (88 %; one training each,
    80 images, an error of 9 points). Measure robust accuracy (``calor-hf robustness``) before relying on it.

    Source:
        Torp, Smith, Breuer, "Reducing information dependency does not cause training data privacy. Adversarially
        non-robust features do.", ICLR 2026, and the released code, BreuerLabs/Anti-Adversarial-Training.
    """

    config_class = ATATConfig
    needs_trainer = True

    @property
    def step_cost(self) -> float:
        """Two batches, and for each step of the example a pass without gradients of weights."""
        return 2 + 0.8 * self.config.steps

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """The weight of the adversarial images."""
        return Strength("weight", 0.01, 1.0, log=True)

    def stages(self, args: Any) -> list[Stage]:
        """Refuse bf16 early if the training arguments ask for it."""
        if getattr(args, "bf16", False):
            self._check_precision(torch.bfloat16)
        return super().stages(args)

    def begin(self, run: TrainingRun) -> None:
        """Check early that the range of images is known.

        Raises:
            ValueError: the trainer has no image processor.
        """
        super().begin(run)
        run.pixel_scale("at_at")

    def on_batch(self, inputs: dict[str, Any], draws: StepDraws, progress: Progress) -> dict[str, Any]:
        """Return the images, then an adversarial example of each, whose label is another class.

        Raises:
            ValueError: soft labels, or a precision that cannot hold a change of ``eps``.
        """
        images, labels = check_images(inputs, "at_at"), inputs["labels"]
        if labels.ndim != 1:
            raise ValueError("at_at needs one whole-number label per image; switch mixup and cutmix off")
        kind = images.device.type
        autocast = torch.is_autocast_enabled(kind)
        self._check_precision(torch.get_autocast_dtype(kind) if autocast else self.run.model.dtype)
        wanted = other_classes(labels, draws.uniform("defenses/at_at/classes", 1), self.run.model.config.num_labels)
        start = torch.from_numpy(draws.uniform("defenses/at_at/start", images[0].numel())).to(images).view_as(images)
        with torch.autocast(kind, enabled=False):  # the sign of a gradient that underflowed is lost
            adversarial = self._toward(images.float(), wanted, 2 * start - 1)
        both = torch.cat([images, adversarial.to(images.dtype)])
        return {**inputs, "pixel_values": both, "labels": torch.cat([labels, wanted])}

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``clean`` and ``adversarial``, cross-entropies in nats, the second weighted; outside training the first."""
        half = len(out.labels) // 2 if out.training else len(out.labels)
        losses = F.cross_entropy(out.logits, out.labels, reduction="none")
        terms = {"clean": mean_over_counted(losses[:half], out.labels[:half], out.class_weights)}
        if out.training:
            terms["adversarial"] = self.config.weight * mean_over_counted(losses[half:], out.labels[half:])
        return terms

    def _toward(self, images: Tensor, wanted: Tensor, start: Tensor) -> Tensor:
        """Adversarial examples as model inputs; ``start`` is in [-1, 1], in units of ``eps``."""
        scale, gray = self.run.pixel_scale("at_at"), images.new_zeros(1, images.shape[1], 1, 1)
        black, white = scale.normalize(gray), scale.normalize(gray + 1)
        unit = (white - black) / 2  # of images in [-1, 1], as model inputs, by channel
        radius, step = self.config.eps * unit, self.config.step * unit
        found = (images + radius * start).clamp(black, white)
        for _ in range(self.config.steps):
            found.requires_grad_(True)
            loss = F.cross_entropy(self.run.model(pixel_values=found).logits, wanted, reduction="sum")
            (slope,) = torch.autograd.grad(loss, found)
            found = found.detach() - step * slope.sign()
            found = found.clamp(images - radius, images + radius).clamp(black, white)
        return found

    def _check_precision(self, dtype: torch.dtype) -> None:
        spacing = torch.finfo(dtype).eps / 2  # of numbers from 1/2 to 1
        if self.config.eps < spacing:
            raise ValueError(
                f"at_at changes images by eps={self.config.eps:g}, which {dtype} rounds away (its numbers are "
                f"{spacing:.2g} apart); train in float32 or fp16, or set eps to {spacing:.2g} or more"
            )


def other_classes(labels: Tensor, numbers: Any, classes: int) -> Tensor:
    """Return a class other than the label for each image; a label that does not count (negative) stays.

    Args:
        labels: (batch,) int64.
        numbers: (batch, 1) NumPy array in [0, 1), uniform.
        classes: Number of classes.
    """
    shift = 1 + (torch.from_numpy(numbers[:, 0]) * (classes - 1)).long().to(labels.device)
    return torch.where(labels < 0, labels, (labels + shift) % classes)
