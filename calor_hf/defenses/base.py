"""What every defense promises: a head, stages, a loss of named terms; and what it may do besides."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """The one setting by which a defense is made stronger or weaker, so that defenses can be compared fairly.

    Attributes:
        setting: Its name in the defense's config.
        weakest: Value at the weak end of what is tried.
        strongest: Value at the strong end.
        log: Whether values between the ends are spaced by their logarithm; both ends then have the same sign.
        whole: Whether it is a whole number.
    """

    setting: str
    weakest: float
    strongest: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float:
        """Value ``share`` (0 to 1) of the way from the weakest to the strongest; a whole number where it must be."""
        weak, strong = self.weakest, self.strongest
        if self.log:
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


class Defense(ABC, Generic[C]):
    """A way of training a classifier so that less can be rebuilt from its weights.

    Only :meth:`loss` has to be written; every other method has a default that changes nothing.

    Attributes:
        config: The settings, frozen.
        stage_names: Names of the training stages, in order.
        needs_trainer: Whether it works only under ``DefenseTrainer``: it changes batches or freezes weights.
        log_odds_suffice: Whether the loss reads nothing of the scores but the true class's log-odds
            (``Forward.log_odds``), so that very many classes can be scored in chunks.
        step_cost: Time of a training step in ordinary ones, roughly; for the estimate before training.
    """

    config_class: ClassVar[type[MethodConfig]]
    stage_names: ClassVar[tuple[str, ...]] = ("fit",)
    needs_trainer: ClassVar[bool] = False
    log_odds_suffice: ClassVar[bool] = False
    step_cost: ClassVar[float] = 1.0

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def own_head(self) -> bool:
        """Whether the model's classifier is replaced; if not, the stock model can be had back."""
        return False

    @property
    def stochastic(self) -> bool:
        """Whether two forward passes in evaluation mode give different scores."""
        return False

    @classmethod
    def complete(cls, config: C, in_features: int, num_labels: int) -> C:
        """``config`` with settings filled in that depend on the model.

        Raises:
            ValueError: a setting that does not fit ``in_features`` or ``num_labels``.
        """
        return config

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength | None:
        """The knob of this defense for a model of that size, or None if it has none."""
        return None

    # The model

    def build_head(self, in_features: int, num_labels: int) -> nn.Module:
        """Head with random weights: (batch, in_features) to (batch, num_labels) logits; only where ``own_head``.

        It needs a property ``last_layer``, the linear layer that gives the scores.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps the model's classifier")

    def run_head(self, head: nn.Module, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(batch, num_labels) logits of ``head``, and what else the loss needs to know (``Forward.extras``)."""
        return head(features), {}

    def feature_hooks(self, backbone: nn.Module) -> Sequence[str]:
        """Paths of the modules whose inputs the loss wants to see (``Forward.taps``) in training.

        Raises:
            ValueError: ``backbone`` has no such layers.
        """
        return ()

    # Training

    def stages(self, args: Any) -> list[Stage]:
        """Stages of training, in order.

        Args:
            args: Training arguments with ``num_train_epochs``, ``max_steps`` and those that this defense adds.
        """
        return [Stage("fit", epochs=args.num_train_epochs, steps=args.max_steps if args.max_steps > 0 else None)]

    def frozen(self, backbone: nn.Module) -> list[str]:
        """Names of the backbone's parameters that do not learn."""
        return []

    def still(self, backbone: nn.Module) -> list[nn.Module]:
        """Modules of the backbone that stay in evaluation mode while training."""
        return []

    def begin(self, run: TrainingRun) -> None:
        """Training begins; ``run`` stays the same until it ends."""
        self.run = run

    def on_batch(self, inputs: dict[str, Any], draws: StepDraws, progress: Progress) -> dict[str, Any]:
        """The batch that the model is trained on, from the one that the data gave.

        Args:
            inputs: Inputs of the model with ``labels`` (batch,), on the model's device.
            draws: Random numbers of the batch's samples.
            progress: Where training stands.

        Returns:
            Inputs with ``labels``; the samples of ``inputs`` first, others after them.
        """
        return inputs

    @abstractmethod
    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """Named scalar terms; their sum is the loss, and each is logged under its name."""

    def observe(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Scalars of a training batch (as :meth:`on_batch` made it) to be logged, beside the loss terms."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of training besides the model: saved with checkpoints and resumed, never published."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; called after :meth:`begin`."""


def cross_entropy(out: Forward) -> Tensor:
    """Cross-entropy in nats, the mean over the batch, weighted by class where weights are given."""
    if out.log_odds is not None:
        return mean_over_counted(F.softplus(out.log_odds), out.labels, out.class_weights)
    return F.cross_entropy(out.logits, out.labels, weight=out.class_weights)


def mean_over_counted(loss: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of (batch,) losses over the labels that are not negative, weighted by class; 0 where there are none."""
    counted = labels >= 0
    share = counted.to(loss.dtype) if weight is None else weight.to(loss)[labels.clamp_min(0)] * counted
    return torch.where(counted, loss * share, 0.0).sum() / share.sum().clamp_min(torch.finfo(loss.dtype).tiny)


DEFENSES: Registry[Defense[Any]] = Registry("defense", "calor_hf.defenses")
