"""Membership inference by the loss, another privacy threat, for comparison.

Not a registered metric, since it needs private images instead of reconstructions.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.metrics.area import area_under_curve
from calor_hf.metrics.base import Measure, check_rows, mean_over_images
from calor_hf.metrics.verification import threshold_at

ONE_IN = 100  # one false positive in so many images that were not trained on


def membership(logits: Tensor, labels: Tensor, held_logits: Tensor, held_labels: Tensor) -> list[Measure]:
    """How well the loss separates training images from other images of the same identities.

    Args:
        logits: (m, classes) of training images.
        labels: (m,) int64.
        held_logits: (h, classes) of images that were not trained on; identities in only one of the sets are left out.
        held_labels: (h,) int64.

    Returns:
        ``membership_auc``, the chance that a training image has the smaller loss (0.5: no leak), and
        ``membership_tpr@FPR=1e-2``, the share of training images found at one false positive in a hundred; NaN with too
        few images. The interval of the second treats the threshold as known.

    Raises:
        ValueError: wrong shapes, or numbers that are not finite.

    Source:
        Yeom et al., "Privacy Risk in Machine Learning", CSF 2018; the rate as in Carlini et al., "Membership Inference
        Attacks From First Principles", S&P 2022, arXiv:2112.03570.
    """
    check_rows(labels, logits=logits)
    check_rows(held_labels, held_logits=held_logits)
    # Of the same people, or the area would tell people apart instead of training images.
    identities = sorted(set(labels.tolist()) & set(held_labels.tolist()))
    scores, others = _likelihoods(logits, labels), _likelihoods(held_logits, held_labels)
    mine = {label: scores[labels == label] for label in identities}
    theirs = {label: others[held_labels == label] for label in identities}
    count = sum(map(len, mine.values()))
    note = f"{count} training images and {sum(map(len, theirs.values()))} others of the same people; the loss decides"
    auc = Measure("membership_auc", math.nan, "share", "leakage", count, len(identities), note=note)
    tpr = dataclasses.replace(auc, name="membership_tpr@FPR=1e-2")
    if not identities:
        reason = "no person has both training and held-out images"
        return [auc.failed(reason), tpr.failed(reason)]
    return [_with_auc(auc, mine, theirs), _with_rate(tpr, mine, theirs)]


def _likelihoods(logits: Tensor, labels: Tensor) -> Tensor:
    # In float64: on training images the loss is nearly 0, and float32 would make many of them equal.
    return F.log_softmax(logits.double(), dim=1).gather(1, labels[:, None]).squeeze(1)


def _with_auc(empty: Measure, mine: dict[int, Tensor], theirs: dict[int, Tensor]) -> Measure:
    value, low, high, identities = area_under_curve(mine, theirs, "metrics/membership", same_people=True)
    return dataclasses.replace(empty, value=value, low=low, high=high, by_identity=identities)


def _with_rate(empty: Measure, mine: dict[int, Tensor], theirs: dict[int, Tensor]) -> Measure:
    threshold = threshold_at(torch.cat(list(theirs.values())), ONE_IN)
    if math.isnan(threshold):
        return empty.failed(f"it takes {ONE_IN} images that were not trained on: {empty.note}")
    labels = torch.cat([torch.full((len(rows),), label) for label, rows in mine.items()])
    found = (torch.cat(list(mine.values())) > threshold).double()
    return mean_over_images(empty.name, empty.unit, empty.direction, found, labels, empty.note, slots=False)
