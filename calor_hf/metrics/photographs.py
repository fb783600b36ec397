"""Attackers on a model with decoys who hold photographs: of its pool, or of the private people among strangers."""

from typing import Any

import torch
from torch import Tensor

from calor_hf.core.report import FULL_GALLERY, GALLERY, POOL, Measure
from calor_hf.metrics.mode_ranking import first_of_class
from calor_hf.targets.base import Target


def seen_as(features: Tensor, target: Target, labels: Tensor, k: int) -> Tensor:
    """How well each identity of each class fits the photograph that fits it best.

    Args:
        features: (photographs, d) the model's features of them.
        target: A model with a score for each identity.
        labels: (classes,) int64.
        k: Identities per class.

    Returns:
        (classes, k) log-probability of the identity.
    """
    head: Any = target.head
    with torch.no_grad():
        # Over all identities of the model: the score of a class would say nothing about which of its k it is.
        best: Tensor = head.identity_scores(features.to(target.device)).log_softmax(dim=1).amax(dim=0)
    by_class: Tensor = best.double().cpu().unflatten(0, (-1, k))
    return by_class[labels]


def pool(decoys: Tensor, target: Target, labels: Tensor, private: Tensor, k: int) -> Measure:
    """Share of classes whose private identity is named by an attacker who holds photographs of all decoys.

    The attacker shows them to the model; the identity of a class that none of them fits is the private one.

    Args:
        decoys: (photographs, d) the model's features of photographs of decoys.
        target: A model with a score for each identity.
        labels: (classes,) int64.
        private: (classes,) place of the private identity in its class, in [0, k).
        k: Identities per class.
    """
    scores = -seen_as(decoys, target, labels, k)
    note = f"the one of the {k} that no photograph of a decoy fits; by chance 1/{k}"
    return first_of_class(POOL, scores, labels, private, len(decoys), note)


def gallery(
    photographs: Tensor, target: Target, labels: Tensor, private: Tensor, k: int, with_decoys: bool = False
) -> Measure:
    """Share of classes whose private identity is named by an attacker with a gallery that it is in.

    The attacker shows the gallery to the model, and names the identity of a class that some photograph fits best.

    Args:
        photographs: (photographs, d) the model's features of one of each private identity, and of strangers.
        target: A model with a score for each identity.
        labels: (classes,) int64.
        private: (classes,) place of the private identity in its class, in [0, k).
        k: Identities per class.
        with_decoys: Whether decoys are in the gallery too, which makes it tell nothing.
    """
    scores = seen_as(photographs, target, labels, k)
    whose = "private people, decoys and strangers" if with_decoys else "private people and strangers"
    note = f"the one of the {k} that a photograph fits best, of {len(photographs)} of {whose}; by chance 1/{k}"
    name = FULL_GALLERY if with_decoys else GALLERY
    return first_of_class(name, scores, labels, private, len(photographs), note)
