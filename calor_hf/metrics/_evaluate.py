"""The metrics and a comparison as modules of Hugging Face ``evaluate``, without its download of scripts.

They behave like modules from ``evaluate.load``: ``compute``, ``add_batch`` and ``evaluate.combine`` work on them.
:func:`load_metric` offers every registered metric with a ``per_image`` function; ``calor-hf compare`` uses
:class:`AccuracyDifference`.
"""

import inspect
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from calor_hf.metrics.base import METRICS, mean_over_images


def load_metric(name: str, **options: Any) -> "ImageWise":
    """Return a metric in ``METRICS`` as an ``evaluate.Metric``, whose options are ``num_process``, ``process_id``, ….

    Raises:
        KeyError: no such metric.
        ValueError: the metric is not the mean of one function over images.
    """
    return ImageWise(name, **options)


class _InMemory:
    """Keeps the inputs of a module in memory, unless several processes share them through files."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
        super().__init__(**options)


class ImageWise(_InMemory, evaluate.Metric):
    """Mean of a metric's ``per_image`` function, and its 95 % interval over identities.

    ``compute`` takes ``predictions`` (n, d) logits or features, ``references`` (n,) labels, and the function's other
    arguments by name, as lists, arrays or tensors: ``k=5``, or ``private_features=…, private_labels=…``.
    It returns ``name``, ``name_low`` and ``name_high``.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.kind, self._name = METRICS.get(name), name
        if self.kind.per_image is None:
            known = ", ".join(each for each in METRICS.names() if METRICS.get(each).per_image is not None)
            raise ValueError(
                f"'{name}' is not a mean over images, so evaluate cannot compute it; it can compute {known}"
            )
        super().__init__(**options)

    @property
    def name(self) -> str:
        """Registered name."""
        return self._name

    def _info(self) -> evaluate.MetricInfo:
        description, _, source = inspect.cleandoc(self.kind.__doc__ or "").partition("Source:")
        return evaluate.MetricInfo(
            description=description.strip(),
            citation=inspect.cleandoc(source),
            inputs_description=inspect.getdoc(self.kind.per_image) or "",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, float]:
        labels = _tensor(references)
        others = {key: value if np.isscalar(value) else _tensor(value) for key, value in options.items()}
        assert self.kind.per_image is not None  # checked by __init__
        return _with_interval(self._name, self.kind.per_image(_tensor(predictions), labels, **others), labels)


class AccuracyDifference(_InMemory, evaluate.Comparison):
    """Accuracy of a second classifier minus that of a first one on the same images, with its interval.

    ``compute`` takes ``predictions1``, ``predictions2`` and ``references``, each (n,) class numbers, and returns
    ``accuracy_difference``, ``accuracy_difference_low`` and ``accuracy_difference_high`` in [-1, 1]; the interval is
    NaN for a single class.
    """

    def _info(self) -> evaluate.ComparisonInfo:
        columns = ("predictions1", "predictions2", "references")
        return evaluate.ComparisonInfo(
            description=inspect.getdoc(type(self)) or "",
            citation="",
            inputs_description="(n,) class numbers each",
            features=datasets.Features({name: datasets.Value("int64") for name in columns}),
        )

    def _compute(self, predictions1: Any, predictions2: Any, references: Any) -> dict[str, float]:
        # Paired by image and resampled by class, so that the difficulty of an image and of a class cancels.
        labels = _tensor(references)
        first, second = ((_tensor(values) == labels).double() for values in (predictions1, predictions2))
        return _with_interval("accuracy_difference", second - first, labels)


def _with_interval(name: str, values: Tensor, labels: Tensor) -> dict[str, float]:
    mean = mean_over_images(name, "", "neither", values, labels, slots=False)
    return {name: mean.value, f"{name}_low": mean.low, f"{name}_high": mean.high}


def _tensor(values: Any) -> Tensor:
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return tensor if tensor.is_floating_point() else tensor.long()
