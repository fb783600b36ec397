"""What every defence promises: a head, stages, and a loss of named terms."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from calor_hf.core.config import MethodConfig
from calor_hf.core.outputs import Forward, Progress, Stage
from calor_hf.core.registry import Registry

C = TypeVar("C", bound=MethodConfig)


class Defense(ABC, Generic[C]):
    """A way of training a classifier so that less can be rebuilt from its weights."""

    config_class: ClassVar[type[MethodConfig]]
    stage_names: ClassVar[tuple[str, ...]] = ("fit",)

    def __init__(self, config: C) -> None:
        self.config = config

    def build_head(self, in_features: int, num_labels: int) -> nn.Module:
        """Classification head with random weights: (batch, in_features) to (batch, num_labels) logits."""
        return nn.Linear(in_features, num_labels)

    def stages(self, args: Any) -> list[Stage]:
        """Stages of training, in order.

        Args:
            args: Training arguments with ``num_train_epochs``, ``max_steps`` and those that this defence adds.
        """
        return [Stage("fit", epochs=args.num_train_epochs, steps=args.max_steps if args.max_steps > 0 else None)]

    @abstractmethod
    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """Named scalar terms; their sum is the loss, and each is logged under its name."""


DEFENSES: Registry[Defense[Any]] = Registry("defense", "calor_hf.defenses")
