"""How the trainers treat each parameter of ``Trainer``."""

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
