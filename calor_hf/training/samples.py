"""A part of the data, evenly spread."""

import itertools
from typing import Any

import numpy as np
from torch.utils.data import Subset


def some_samples(dataset: Any, count: int) -> Any:
    """At most ``count`` samples of ``dataset``, evenly spread and without augmentation where the data can do without.

    Args:
        dataset: Map-style data; one with ``without_augmentation()`` is asked for plain images. Of a stream, the
            first samples.
        count: Number of samples, > 0.
    """
    if hasattr(dataset, "without_augmentation"):
        dataset = dataset.without_augmentation()
    if not hasattr(dataset, "__len__"):
        return list(itertools.islice(iter(dataset), count))
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    return dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices)
