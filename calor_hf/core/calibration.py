"""Calibration of a classifier: the error of its scores, and the temperature that gives them a mean confidence."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15


def calibration_error(
    top_scores: NDArray[np.float64], correct: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error: |accuracy − mean score| per bin of scores, weighted by its samples.

    Args:
        top_scores: (samples,) probability of the predicted class.
        correct: (samples,) whether the prediction is right.
        bins: Number of equal bins, (0, 1/bins], …

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    index = np.clip(np.ceil(top_scores * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct.astype(np.float64) - top_scores, minlength=bins)
    return float(np.abs(gaps).sum() / len(top_scores))


def temperature_for(logits: NDArray[Any], labels: NDArray[np.int64], confidence: float) -> float:
    """Temperature T at which softmax(logits / T) gives the correctly classified samples a mean confidence.

    Their mean confidence falls from 1 to 1 / classes as T grows, so T is unique.

    Args:
        logits: (samples, classes).
        labels: (samples,) in [0, classes).
        confidence: Mean true-class probability of the correctly classified samples, in (1 / classes, 1).

    Returns:
        T > 0.

    Raises:
        ValueError: no sample is classified correctly, or no temperature gives that confidence.
    """
    from scipy.optimize import brentq  # here, as it takes a while to import

    correct = logits.argmax(axis=1) == labels
    if not correct.any():
        raise ValueError("no training image is classified correctly, so no temperature can be fitted; train longer")
    gaps = logits[correct] - logits[correct, labels[correct]][:, None]  # at most 0

    def reached(log_temperature: float) -> float:
        return float((1 / np.exp(gaps / math.exp(log_temperature)).sum(axis=1)).mean())

    low, high = -30.0, 30.0
    if not reached(low) > confidence > reached(high):
        raise ValueError(
            f"no temperature gives the correctly classified training images a mean confidence of {confidence:.4g}: "
            f"with {logits.shape[1]} classes it lies between {reached(high):.4g} and {reached(low):.4g}; choose "
            "another ca_b"
        )
    return math.exp(brentq(lambda log_temperature: reached(log_temperature) - confidence, low, high))
