"""Training arguments: those of transformers, and the stage plan."""

from dataclasses import dataclass

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import HubStrategy

from calor_hf.core.config import setting
from calor_hf.training.fields import check_fields

_ADAPTIVE_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
_POSITIVE = ("adapt_epochs", "adapt_steps", "adapt_learning_rate", "confidence_samples", "confidence_tolerance",
             "head_learning_rate", "class_chunk")  # fmt: skip


@dataclass
class CALoRTrainingArguments(TrainingArguments):
    """``TrainingArguments`` plus the stage plan of CALoR.

    ``num_train_epochs`` (or ``max_steps``) and ``learning_rate`` belong to the first stage, ``fit``; stage ``adapt``
    follows it, or takes its tail.

    Raises:
        ValueError: a value outside its range, or an option of transformers that contradicts the stage plan.
    """

    adapt_epochs: float = setting(10.0, "Maximum epochs of the adapt stage; early stopping may end it sooner.")
    adapt_steps: int | None = setting(
        None, "Length of the adapt stage in optimizer steps, instead of epochs; needed for streamed data."
    )
    adapt_learning_rate: float | None = setting(
        None, "Constant learning rate of the adapt stage; default: a tenth of the first."
    )
    head_learning_rate: float | None = setting(
        None,
        "Learning rate of the new head in the first stage; default: learning_rate. A head from random "
        "weights often needs more than a pre-trained base: see the confidence that the first stage reaches.",
    )
    head_only: bool = setting(False, "Train the classification head alone; the rest of the model stays as it is.")
    lr_drop_epochs: list[float] = setting(
        [],
        "Epochs of the first stage after which the learning rate falls to a tenth, such as 75 90; with "
        "lr_scheduler_type constant.",
    )
    adapt_start_epoch: float | None = setting(
        None, "Adapt from this epoch on, inside num_train_epochs, instead of after them."
    )
    adapt_freeze_batch_norm: bool = setting(
        True,
        "Keep batch norm statistics fixed in the adapt stage, so that the loss sees the confidence that "
        "the model has in use. (With batch statistics it settles some hundredths off the target.)",
    )
    adapt_only_last_layer: bool = setting(
        False,
        "Train only the head's last linear layer in the adapt stage. With few images per identity, "
        "adapting the whole model costs accuracy; this hardly does, but features and code, and what they remember, "
        "then stay as after the first stage.",
    )
    max_accuracy_drop: float = setting(
        0.5, "Validation accuracy, in points, that adapting may cost (or one standard error, if more)."
    )
    confidence_tolerance: float = setting(
        0.02, "Distance from e^(-1/b) at which the mean training confidence counts as reached."
    )
    confidence_samples: int = setting(
        2048, "Training images on which confidence is measured after each adapt epoch, evenly spread."
    )
    class_chunk: int | None = setting(
        None,
        "Classes scored at a time in training and evaluation, for 10,000 classes and more: 4096 works well on "
        "a CPU. Memory then does not grow with (batch, classes); the numbers stay the same. "
        "compute_metrics then gets log_odds and best_rival of the true class, each (samples,), instead of logits. "
        "Default: all classes at once.",
    )
    accept_unadapted: bool = setting(
        False, "If no adapted checkpoint keeps the accuracy, return the first stage's, not an error."
    )
    report_to: None | str | list[str] = setting(  # noqa: RUF036  (the argument parser reads the type in this order)
        "tensorboard", "Loggers to report to: tensorboard, wandb, mlflow, ... or none."
    )
    save_total_limit: int | None = setting(2, "Checkpoints kept: the newest ones, and always the best adapted one.")

    hub_strategy: HubStrategy | str = setting(
        "end", "When to push: end. The others push unfinished models: see push_unfinished."
    )
    push_unfinished: bool = setting(
        False,
        "Let hub_strategy every_save push models before the last stage has ended: they are not defended"
        " yet, and earlier revisions stay readable.",
    )
    publish_label_names: bool = setting(False, "Push class names (they may be people's) as they are, not as numbers.")

    def __post_init__(self) -> None:
        """Check the values together."""
        scheduler = SchedulerType(self.lr_scheduler_type)
        super().__post_init__()
        check_fields(self)
        strategy = HubStrategy(self.hub_strategy)
        if self.push_to_hub and strategy != HubStrategy.END and not self.push_unfinished:
            raise ValueError(
                f"hub_strategy={strategy.value} would push models that are not defended yet; leave it out to push the "
                "finished model alone, or pass push_unfinished=True (--push-unfinished)"
            )
        if self.push_to_hub and strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy={strategy.value} would publish optimizer states, which hold traces of single images; "
                "pass every_save, which pushes models alone"
            )
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.max_accuracy_drop < 0:
            raise ValueError(f"max_accuracy_drop must be >= 0 points, got {self.max_accuracy_drop}")
        if self.lr_drop_epochs and scheduler != SchedulerType.CONSTANT:
            raise ValueError(
                f"lr_drop_epochs is a schedule of its own, got lr_scheduler_type={scheduler.value}; pass constant"
            )
        if min(self.lr_drop_epochs, default=1.0) <= 0:
            raise ValueError(f"lr_drop_epochs must be > 0, got {self.lr_drop_epochs}")
        if self.adapt_start_epoch is not None:
            if self.max_steps > 0 or self.adapt_steps is not None:
                raise ValueError(
                    "adapt_start_epoch counts epochs; leave it out if max_steps or adapt_steps count steps"
                )
            if not 0 < self.adapt_start_epoch < self.num_train_epochs:
                raise ValueError(
                    f"adapt_start_epoch must lie inside num_train_epochs={self.num_train_epochs:g} (there has to be a "
                    f"first stage: the loss cannot start from random weights), got {self.adapt_start_epoch:g}"
                )
        if self.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end would hand back a checkpoint by one metric, perhaps from before the adapt "
                "stage; leave it out: the adapted checkpoint is chosen by max_accuracy_drop"
            )
        if scheduler.value in _ADAPTIVE_SCHEDULES:
            raise ValueError(
                f"lr_scheduler_type={scheduler.value} follows metrics across the stages, "
                "whose losses cannot be compared; pass one that follows steps, such as cosine"
            )
