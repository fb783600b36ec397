"""Our metrics as those of Hugging Face ``evaluate``: the same functions, no script, no network.

A metric is offered by one line in its class: ``per_image = staticmethod(function)``, where the function takes
predictions (n, …) and references (n,) first, then whatever ``compute`` is to pass on, and gives a number an image.
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
    """A registered metric as an ``evaluate.Metric``, with ``compute(predictions=…, references=…)`` and ``add_batch``.

    Args:
        name: In ``METRICS``.
        options: Of ``evaluate.Metric``, such as ``num_process`` and ``process_id``.

    Raises:
        KeyError: no such metric.
        ValueError: it is not a mean of one function over images.
    """
    return ImageWise(name, **options)


class ImageWise(evaluate.Metric):
    """Mean of a metric's ``per_image`` function, and its 95 % interval over people.

    ``compute`` takes ``predictions`` (n, d) logits or features, ``references`` (n,) labels, and the function's other
    arguments by name, as lists, arrays or tensors: ``k=5``, or ``private_features=…, private_labels=…``.
    It gives ``name``, ``name_low`` and ``name_high``.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.kind, self._name = METRICS.get(name), name
        if self.kind.per_image is None:
            known = ", ".join(each for each in METRICS.names() if METRICS.get(each).per_image is not None)
            raise ValueError(f"'{name}' is not one number an image, so evaluate cannot have it; it can have {known}")
        options.setdefault("keep_in_memory", options.get("num_process", 1) == 1)
        super().__init__(**options)

    @property
    def name(self) -> str:
        """As registered."""
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
        assert self.kind.per_image is not None  # as checked when it was made
        values = self.kind.per_image(_tensor(predictions), labels, **others)
        mean = mean_over_images(self._name, "", "neither", values, labels)
        return {self._name: mean.value, f"{self._name}_low": mean.low, f"{self._name}_high": mean.high}


def _tensor(values: Any) -> Tensor:
    tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return tensor if tensor.is_floating_point() else tensor.long()
