"""Hint at the learning rate if a run has learned less than the features of its base model tell."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from calor_hf.core.report_text import percent
from calor_hf.modeling.modeling_defended import DefendedForImageClassification
from calor_hf.training.checks import looks_untrained
from calor_hf.training.metrics import some_samples
from calor_hf.training.rank import features_of

UNDERFITTED = 0.9
"""Training accuracy below which a model counts as under-fitted."""
_MARGIN = 0.05  # of accuracies on samples
_SAMPLES = 2048


def learning_rate_hint(trainer: Any, dataset: Any, accuracy: float) -> str:
    """Say whether the learning rate is the likely cause of an under-fitted run; empty if nothing suggests it.

    The base model is loaded again from where it came, without a download. If the nearest class mean of its features is
    right on more images of ``dataset`` than the trained model, there was more to learn. Whether the trained model's own
    features are as good tells a rate that is too high from one that is too low.

    Args:
        trainer: A ``DefenseTrainer`` whose model has been trained.
        dataset: Images that were not trained on.
        accuracy: Accuracy of the trained model on ``dataset``, in [0, 1].
    """
    base = None if trainer.is_sharded else _base_of(trainer.bare_model)
    if base is None:
        return ""
    frozen = _of_nearest_mean(trainer, base.to(trainer.args.device), dataset)
    if frozen <= accuracy + _MARGIN:
        return ""
    now, rate = _of_nearest_mean(trainer, trainer.bare_model, dataset), trainer.args.learning_rate
    remedy = (
        f"training has damaged the features ({percent(now)} now): lower learning_rate (now {rate:g}) to a third or less"
        if now < frozen - _MARGIN
        else f"the features still do ({percent(now)}), and the new head has not learned them: raise head_learning_rate "
        f"or learning_rate (now {rate:g}), or a low rank"
    )
    return (
        f"frozen features of {base.name_or_path} are right on {percent(frozen)} of the held-out images by the nearest "
        f"class mean, the trained model on {percent(accuracy)}, so more epochs may not be the remedy; {remedy}"
    )


def _base_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """The base model as it was before training, or None if it cannot be loaded or looks untrained."""
    config: Any = getattr(model.config, "base_config", None) or model.config
    if not config.name_or_path:
        return None
    try:
        base = AutoModelForImageClassification.from_pretrained(config.name_or_path, local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if isinstance(base, DefendedForImageClassification) or looks_untrained(base) else base


def _of_nearest_mean(trainer: Any, model: PreTrainedModel, dataset: Any) -> float:
    """Share of images whose features, of length 1, are nearest to the mean of their class's training images."""
    samples = (some_samples(data, _SAMPLES) for data in (trainer.train_dataset, dataset))
    loaders = (trainer.get_test_dataloader(some) for some in samples)
    (x, y), (held_out, labels) = (_counted(*features_of(model, loader)) for loader in loaders)
    center = x.mean(dim=0)
    x, held_out = (F.normalize(features - center) for features in (x, held_out))
    classes = y.unique()
    means = torch.stack([x[y == label].mean(dim=0) for label in classes])
    return float((classes[torch.cdist(held_out, means).argmin(dim=1)] == labels).float().mean())


def _counted(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return features[labels >= 0], labels[labels >= 0]
