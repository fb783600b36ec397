"""False accepts: share of other people's images that a class accepts as its private identity.

Not a registered metric, since it needs real images instead of reconstructions.
"""

import math

import torch
from torch import Tensor

from calor_hf.core.report_text import percent
from calor_hf.metrics.base import Measure, check_rows, mean_over_images

ACCEPTED = 0.95
"""Share of the private people's own test images that the threshold accepts."""


def threshold(private: Tensor) -> float:
    """Highest threshold that at least :data:`ACCEPTED` of (n,) scores of private people's own images reach."""
    # Rounded up, so that at least this share is accepted.
    return float(private.sort(descending=True).values[math.ceil(ACCEPTED * len(private)) - 1])


def false_accepts(private: Tensor, others: Tensor, people: Tensor, name: str, note: str) -> Measure:
    """Share of images of other people that reach the threshold of private images.

    Args:
        private: (m,) scores of test images of private people for their own class.
        others: (n,) scores of images of other people for the class that they claim.
        people: (n,) int64, the other people.
        name: Name of the other people, such as ``decoys``.
        note: Remark for the reader, such as which class they claim.

    Returns:
        ``false_accepts/NAME``, with its interval over the other people; the threshold is treated as known.
    """
    check_rows(people, others=others)
    check_rows(torch.arange(len(private)), private=private)
    accepted = (others >= threshold(private)).double()
    note = f"{note}; the threshold accepts {percent(ACCEPTED, 0)} of {len(private)} test images of private people"
    return mean_over_images(f"false_accepts/{name}", "share", "neither", accepted, people, note, slots=False)
