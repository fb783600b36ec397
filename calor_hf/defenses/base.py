"""Contract of the defenses: a loss of named terms, and optionally a head, stages, hooks and changed batches."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig
from calor_hf.core.outputs import Forward, Progress, Stage
from calor_hf.core.registry import Registry
from calor_hf.core.seeding import StepDraws
from calor_hf.defenses.training_run import TrainingRun

C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class Strength:
    """The setting that makes a defense stronger or weaker, by which defenses are matched in a comparison.

    Attributes:
        setting: Its name in the defense's config.
        weakest: Weakest value that a comparison tries.
        strongest: Strongest one.
        log: Whether values between the ends are spaced by their logarithm; both ends then have the same sign.
        whole: Whether it is a whole number.
    """

    setting: str
    weakest: float
    strongest: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float:
        """Value ``share`` (0 to 1) of the way from weakest to strongest, rounded to 4 digits or a whole number."""
        weak, strong = self.weakest, self.strongest
        if self.log:
            # By the logarithm of the size: both ends may be negative, as for label smoothing.
            value = math.copysign(math.exp((1 - share) * math.log(abs(weak)) + share * math.log(abs(strong))), weak)
        else:
            value = (1 - share) * weak + share * strong
        return round(value) if self.whole else float(f"{value:.4g}")

    def share_of(self, value: float) -> float:
        """Inverse of :meth:`at`, not rounded."""
        if self.log:
            low, high = math.log(abs(self.weakest)), math.log(abs(self.strongest))
            return (math.log(abs(value)) - low) / (high - low) if high != low else 0.0
        return (value - self.weakest) / (self.strongest - self.weakest) if self.strongest != self.weakest else 0.0


class Defense(Generic[C]):
    """A way of training a classifier so that less can be rebuilt from its weights.

    The defaults of all methods are ordinary training.

    Attributes:
        config: The settings, frozen.
        stage_names: Names of the training stages, in order.
        needs_trainer: Whether it works only under ``DefenseTrainer``, because it changes batches or freezes weights.
        extra: Extra of this package that training needs; comparisons leave such a defense out unless it is named.
        log_odds_suffice: Whether the loss reads the scores only through the true class's log-odds
            (``Forward.log_odds``), so that very many classes can be scored in chunks.
        release_warning: Shown after training if its files must not all be published.
    """

    config_class: ClassVar[type[MethodConfig]]
    stage_names: ClassVar[tuple[str, ...]] = ("fit",)
    needs_trainer: ClassVar[bool] = False
    extra: ClassVar[str] = ""
    log_odds_suffice: ClassVar[bool] = False
    release_warning: ClassVar[str] = ""

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def own_head(self) -> bool:
        """Whether the model's classifier is replaced; if not, ``to_base()`` gives the stock model."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether two forward passes in evaluation mode give different scores."""
        return False

    @property
    def step_cost(self) -> float:
        """Approximate time of a training step, in steps without a defense, for the estimate before training."""
        return 1.0

    @property
    def identities_per_class(self) -> int:
        """Identities per class that training data carry in ``identities``; 0 if the loss does not read any."""
        return 0

    @property
    def target_confidence(self) -> float | None:
        """True-class confidence that training leads to, in (0, 1), or None."""
        return None

    @classmethod
    def complete(cls, config: C, in_features: int, num_labels: int) -> C:
        """``config`` with settings filled in that depend on the model.

        Raises:
            ValueError: a setting that does not fit ``in_features`` or ``num_labels``.
        """
        return config

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength | None:
        """Strength setting of this defense for a model of that size, or None."""
        return None

    # The model

    def build_head(self, in_features: int, num_labels: int) -> nn.Module:
        """Build a head with random weights, from (batch, in_features) to (batch, num_labels) logits, if ``own_head``.

        It needs a property ``last_layer``, the linear layer that gives the scores.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps the model's classifier")

    def run_head(self, head: nn.Module, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(batch, num_labels) logits of ``head``, and further outputs that the loss needs (``Forward.extras``)."""
        return head(features), {}

    def feature_hooks(self, backbone: nn.Module) -> Sequence[str]:
        """Paths of the backbone's modules whose inputs the loss reads in training (``Forward.hooked``).

        Raises:
            ValueError: ``backbone`` has no such modules.
        """
        return ()

    # Training

    def stages(self, args: Any) -> list[Stage]:
        """Stages of training, in order.

        Args:
            args: Training arguments with ``num_train_epochs``, ``max_steps`` and those that this defense adds.
        """
        return [Stage("fit", epochs=args.num_train_epochs, steps=args.max_steps if args.max_steps > 0 else None)]

    def begin(self, run: TrainingRun) -> None:
        """Begin training; ``run`` stays the same until it ends.

        Weights of ``run.model`` that are frozen here (``requires_grad_(False)``) are freed when training ends.
        """
        self.run = run

    def batches(self, samples: int, batch_size: int, parts: int) -> Iterable[list[int]] | None:
        """Training batches of an epoch, each a list of numbers of samples; None means batches of the trainer.

        Args:
            samples: Number of training images.
            batch_size: Images of a batch, or the expected number.
            parts: Batches of an optimizer step.
        """
        return None

    def on_batch(self, inputs: dict[str, Any], draws: StepDraws, progress: Progress) -> dict[str, Any]:
        """Change a training batch before the model reads it.

        Args:
            inputs: Inputs of the model with ``labels`` (batch,), on the model's device.
            draws: Random numbers of the batch's samples.
            progress: Current stage and step.

        Returns:
            Inputs with ``labels``: the samples of ``inputs``, then any others.
        """
        return inputs

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """Named scalar terms; their sum is the loss, and each is logged under its name.

        By default ``cross_entropy`` in nats, the mean over the batch.
        """
        return {"cross_entropy": cross_entropy(out)}

    def on_gradients(self, parts: int, last: bool) -> None:
        """Change the gradients of the weights after a backward pass.

        Args:
            parts: Batches of an optimizer step, by whose number the loss was divided.
            last: Whether the optimizer steps next; else gradients of more batches will be added.
        """

    def state_dict(self) -> dict[str, Any]:
        """State of training besides the model: saved with checkpoints and resumed, never published."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`; called after :meth:`begin`."""


def cross_entropy(out: Forward) -> Tensor:
    """Cross-entropy in nats, the mean over the batch, weighted by class if weights are given."""
    if out.log_odds is not None:
        # −log sigmoid(−d) = softplus(d): with very many classes the log-odds d are all that was computed.
        return mean_over_counted(F.softplus(out.log_odds), out.labels, out.class_weights)
    return F.cross_entropy(out.logits, out.labels, weight=out.class_weights)


def mean_over_counted(loss: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of (batch,) losses over the labels that are not negative, weighted by class; 0 if all are negative."""
    counted = labels >= 0
    share = counted.to(loss.dtype) if weight is None else weight.to(loss)[labels.clamp_min(0)] * counted
    # torch.where, as the loss of an ignored label may be infinite, and 0 · ∞ is NaN.
    # The smallest divisor is not 0, so that a batch of ignored labels has loss 0.
    return torch.where(counted, loss * share, 0.0).sum() / share.sum().clamp_min(torch.finfo(loss.dtype).tiny)


DEFENSES: Registry[Defense[Any]] = Registry("defense", "calor_hf.defenses")
