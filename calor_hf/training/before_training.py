"""Checks before the first step: what would stop a run later."""

import json
import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import EarlyStoppingCallback, Trainer

from calor_hf.core.files import check_writable
from calor_hf.core.label_names import telling_names
from calor_hf.core.outputs import Progress
from calor_hf.core.seeding import unchanged_randomness
from calor_hf.training.callbacks import StageCallback
from calor_hf.training.checks import check_batch, check_identities, check_labels, first_batches
from calor_hf.training.fields import check_fields
from calor_hf.training.metrics import classification_metrics
from calor_hf.training.stages import PlannedStage, StagePlan

logger = logging.getLogger(__name__)

LOCAL_TRACKERS = {"tensorboard", "codecarbon"}
"""Values of ``report_to`` that send nothing, or no configuration."""


def check_run(trainer: Any) -> None:
    """Look for what would stop the run of a ``DefenseTrainer`` after its first step.

    Raises:
        ValueError: labels, batches, callbacks or metrics that cannot be trained with.
        OSError: the output folder is a file, or not writable.
    """
    if trainer.args.should_save:
        check_writable(trainer.run_folder)
    data, evaluated = trainer.train_dataset, trainer.eval_dataset
    if data is None or (hasattr(data, "__len__") and not len(data)):
        raise ValueError("train_dataset must hold images: confidence is measured on them, too; pass some")
    check_fields(trainer.args)  # a trial has others
    _warn_of_names(trainer)
    if getattr(trainer.args, "head_only", False) and getattr(trainer.bare_model, "_hooked_paths", ()):
        raise ValueError(
            f"head_only has no effect on the hidden layers that '{trainer.model.config.defense}' is about; choose "
            "another defense, or leave head_only out"
        )
    trainer.planned_values()
    stages, classes = cast(StagePlan, trainer.plan).stages, trainer.model.config.num_labels
    _check_callbacks(trainer.callback_handler.callbacks, stages)
    if trainer.is_sharded and any(stage.rescale_to is not None for stage in stages):
        raise ValueError(
            f"'{trainer.model.config.defense}' divides the last layer by a temperature, of which no process holds all "
            "with FSDP or DeepSpeed; train on one device or with DistributedDataParallel"
        )
    for dataset in (data, trainer.test_dataset, *(evaluated.values() if isinstance(evaluated, dict) else [evaluated])):
        check_labels(dataset, classes)
        check_identities(dataset, trainer.defense.identities_per_class)
    with unchanged_randomness():
        for stage in stages:
            _check_batches(trainer, stage)
        trainer.model.eval()  # a collator may ask
        for name in trainer.eval_names():
            split = name or "validation"
            batch = first_batches(trainer.get_eval_dataloader(name), split)[0]
            check_batch(batch, classes, split, k=trainer.defense.identities_per_class)
        _check_metrics(trainer)


def _warn_of_names(trainer: Any) -> None:
    """Warn that trackers get the configuration of the model, with class names that may be people's."""
    names = telling_names(trainer.bare_model.config.id2label.values())
    remote = sorted(set(trainer.args.report_to) - LOCAL_TRACKERS)
    if names and remote and trainer.args.should_log:
        logger.warning(
            "%s get the names of the classes with the model's configuration, as %s; if they are people's, name the "
            "classes 0, 1, … or report to tensorboard alone", ", ".join(remote), ", ".join(names[:3]),
        )  # fmt: skip


def _check_callbacks(callbacks: Sequence[Any], stages: Sequence[PlannedStage]) -> None:
    if not any(isinstance(callback, StageCallback) for callback in callbacks):
        raise ValueError("StageCallback was removed, and without it there are no stages; leave it in")
    if len(stages) > 1 and any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
        raise ValueError(
            f"EarlyStoppingCallback compares metrics across the stages {', '.join(stage.name for stage in stages)},"
            " and would end training before the last one; leave it out, and give the first stage its length "
            "(num_train_epochs): the last one ends by rule"
        )


def _check_batches(trainer: Any, stage: PlannedStage) -> None:
    """Compute the loss of a later stage for soft labels, which not every loss knows."""
    later = stage.learning_rate is not None
    trainer.model.train()
    if trainer.own_loss:
        trainer.bare_model.progress = Progress.at_end(stage.name)  # a collator may ask
    # Whether images are mixed is often drawn per batch.
    for batch in first_batches(trainer.get_train_dataloader(), "training", 4 if later else 1):
        k = trainer.defense.identities_per_class
        check_batch(batch, trainer.model.config.num_labels, "training", soft=True, k=k)
        if later and batch["labels"].is_floating_point():
            with torch.no_grad(), trainer.compute_loss_context_manager():
                Trainer.compute_loss(trainer, trainer.model.eval(), trainer._prepare_inputs(batch))


def _check_metrics(trainer: Any) -> None:
    """Evaluate once, if what is evaluated is not known."""
    own = trainer.compute_metrics is classification_metrics and trainer.preprocess_logits_for_metrics is None
    best = trainer.args.metric_for_best_model
    if (own and best is None) or trainer.eval_dataset is None or trainer.is_sharded:
        return
    found: dict[str, Any] = {}
    for name in trainer.eval_names():
        loader, prefix = trainer.get_eval_dataloader(name), "eval" if name is None else f"eval_{name}"
        try:
            found |= trainer.evaluation_loop(loader, "Evaluation", metric_key_prefix=prefix).metrics
            json.dumps(found, sort_keys=True)
        except Exception as error:
            raise ValueError(
                f"compute_metrics fails on the validation split: {type(error).__name__}: {error}; it must return a "
                "dictionary of names and numbers"
            ) from error
    if best is not None and f"eval_{best.removeprefix('eval_')}" not in found:
        raise ValueError(
            f"metric_for_best_model={best} is not measured; pass one of "
            f"{', '.join(sorted(name.removeprefix('eval_') for name in found))}"
        )
