"""How the trainers treat each parameter of ``Trainer``."""

from typing import Any

from calor_hf.training.fields import check_fields

PARAMETERS = {
    "model": "Image classification models of transformers, also inside a `PeftModel`; others are refused.",
    "args": "As in Trainer. CALoRTrainer refuses arguments without stages: pass `CALoRTrainingArguments`.",
    "data_collator": "As in Trainer. Soft labels (MixUp, CutMix) are refused for validation images, and in a stage "
    "whose loss needs one class per image: a collator can read `model.stage`. Labels -100 do not count.",
    "train_dataset": "As in Trainer; streams need `max_steps` (and `adapt_steps`). Labels and a batch are checked.",
    "eval_dataset": "As in Trainer. CALoRTrainer needs one validation split, on which it chooses the result.",
    "processing_class": "As in Trainer; saved with the model. Defenses that change pixels need an image processor.",
    "model_init": "As in Trainer: each `train()` defends and trains the model that it returns.",
    "compute_loss_func": "Refused: the loss is the defense. `class_weights` weighs classes.",
    "compute_metrics": "As in Trainer, for what is logged, `metric_for_best_model` and searches; called once before "
    "training. None means `classification_metrics`, which also chooses and measures the result, always.",
    "callbacks": "As in Trainer, with these differences: `EarlyStoppingCallback` is refused if there are several "
    "stages; checkpoints that the result is chosen from are evaluated and saved anyway; stages keep their steps if "
    "epochs are ended early; a stop before a result is an error that names a checkpoint to continue from.",
    "optimizers": "An optimizer acts in every stage, at `learning_rate`; one that lacks weights that learn is refused. "
    "A scheduler is refused if there are several stages.",
    "optimizer_cls_and_kwargs": "As in Trainer, in every stage, at `learning_rate`; also for networks of the defense.",
    "preprocess_logits_for_metrics": "As in Trainer, for `compute_metrics`; results are measured without it.",
}
"""Parameter of ``Trainer.__init__``: how it acts in ``DefenseTrainer`` and ``CALoRTrainer``."""


def check_parameters(trainer: Any) -> None:
    """Refuse parameters of a ``DefenseTrainer`` that contradict its model, its stages or their losses.

    Raises:
        TypeError: several data sets as one.
        ValueError: another parameter, or what :func:`~calor_hf.training.fields.check_fields` refuses.
    """
    check_fields(trainer.args)
    classes, weights = trainer.model.config.num_labels, trainer.class_weights
    if classes < 2:
        raise ValueError(f"the model must have at least 2 classes, got {classes}; pass num_labels=")
    if weights is not None and tuple(weights.shape) != (classes,):
        raise ValueError(f"class_weights must have shape ({classes},), a weight per class, got {weights.shape}")
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "compute_loss_func would replace the loss that is the defense; leave it out (class_weights= weighs "
            "classes, and a loss of your own is a registered defense), or train an undefended model with Trainer"
        )
    if trainer.lr_scheduler is not None and len(trainer.stages()) > 1:
        raise ValueError(
            "the scheduler in optimizers= does not know the stages, which have learning rates of their own; pass "
            "optimizers=(optimizer, None), and lr_scheduler_type for the first stage"
        )
    for name in ("train_dataset", "eval_dataset", "test_dataset"):
        data = getattr(trainer, name)
        if isinstance(data, str) or (isinstance(data, dict) and name != "eval_dataset"):
            raise TypeError(f"{name} must be one data set, got {type(data).__name__}")
