"""Values that one part passes to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

LOSS_INPUTS = ("labels", "identities")
"""Entries of a batch that the loss reads, and the network does not."""


@dataclass(frozen=True)
class Forward:
    """One forward pass, as a defense's loss sees it.

    Attributes:
        logits: (batch, classes), float32; (batch, 0) if classes are scored in chunks.
        labels: (batch,) int64 in [0, classes), or (batch, classes) probabilities.
        features: (batch, features) entering the head.
        identities: (batch,) int64 in [0, classes · identities per class), if the data carry them.
        class_weights: (classes,) weight of each class in the loss, or None for equal weights.
        inputs: (batch, channels, height, width), or the model's other kind of input.
        hooked: Inputs of the modules that ``Defense.feature_hooks`` names, each (batch, values); in training only.
        extras: Further outputs of the defense's head, by name.
        training: Whether the model is in training mode.
        log_odds: (batch,) log-odds of all other classes against the true one, if classes are scored in chunks.
    """

    logits: Tensor
    labels: Tensor
    features: Tensor | None = None
    class_weights: Tensor | None = None
    inputs: Tensor | None = None
    hooked: tuple[Tensor, ...] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    training: bool = False
    log_odds: Tensor | None = None
    identities: Tensor | None = None


@dataclass(frozen=True)
class Progress:
    """Current stage of training, and how many of its optimizer steps and epochs (with fraction) are done."""

    stage: str
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    total_epochs: float = 0.0

    @classmethod
    def at_end(cls, stage: str) -> "Progress":
        """End of ``stage``, which a model outside training assumes."""
        return cls(stage=stage, step=1, total_steps=1, epoch=1.0, total_epochs=1.0)


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: Shown in logs, and given to the loss as ``Progress.stage``.
        epochs: Length in epochs, with fraction; used if the length of an epoch is known and ``steps`` is None.
        steps: Length in optimizer steps, or None to follow ``epochs``.
        learning_rate: Constant learning rate of the stage, or None for the trainer's own schedule.
        only_last_layer: Only the last linear layer learns; needs ``learning_rate``.
        fixed_batch_norm: Batch norm uses its running statistics and leaves them as they are.
        rescale_to: Once the stage has ended, the scores are divided by the temperature at which correctly classified
            training images have this mean confidence; None leaves them.
    """

    name: str
    epochs: float
    steps: int | None = None
    learning_rate: float | None = None
    only_last_layer: bool = False
    fixed_batch_norm: bool = False
    rescale_to: float | None = None
