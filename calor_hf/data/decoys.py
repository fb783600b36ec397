"""Data of decoy identities: k per class, of which the data do not tell the private one."""

import numpy as np
from numpy.typing import ArrayLike

IDENTITIES = "identities"
"""Column with the number of the identity that an image shows; identity i belongs to class i // k."""


def identities_per_class(labels: ArrayLike, identities: ArrayLike) -> int:
    """Return k of merged training data, checked.

    Args:
        labels: (images,) classes.
        identities: (images,) identities, each of the image's class.

    Raises:
        ValueError: identities that are not k per class, numbered by class, or unequal numbers of images within a class.
    """
    found, members = np.asarray(labels), np.asarray(identities)
    remedy = "make the data with calor-hf decoys deal"
    if members.dtype.kind not in "iu":
        raise ValueError(f"the column {IDENTITIES} must hold whole numbers, got {members.dtype}; {remedy}")
    classes, people = np.unique(found), np.unique(members)
    k = len(people) // max(1, len(classes))
    if not np.array_equal(people, np.arange(k * len(classes))) or not np.array_equal(members // max(1, k), found):
        raise ValueError(
            f"the {len(people)} identities of {len(classes)} classes are not k per class, numbered class by class from "
            f"0; {remedy}"
        )
    counts = np.bincount(members).reshape(len(classes), k)
    if (unequal := np.flatnonzero(counts.min(axis=1) < counts.max(axis=1))).size:
        label = unequal[0]
        raise ValueError(
            f"the identities of class {label} have {', '.join(map(str, counts[label]))} training images; they must "
            f"have equally many, or the model tells them apart: {remedy}"
        )
    return k
