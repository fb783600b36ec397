"""Calibration error: difference between a classifier's scores and its accuracy."""

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
