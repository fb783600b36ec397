"""Attackers on a model with decoys: one who ranks the modes that were rebuilt, and those who hold photographs."""

import math
from typing import Any

import torch
from torch import Tensor

from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing.networks import Network
from calor_hf.auditing.private_data import Decoys, PrivateImages
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import MODE_RANKING, Measure
from calor_hf.generators import Generator
from calor_hf.metrics.base import View
from calor_hf.metrics.mode_ranking import BATCH, by_place, mode_ranking, mode_statistics
from calor_hf.metrics.photographs import gallery, pool
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen


def ranked_modes(
    attack: NamedAttack, found: Reconstruction, samples: Tensor, target: Target, network: Network,
    prior: Generator[Any], decoys: Decoys,
) -> list[Measure]:  # fmt: skip
    """Rank the modes that the attack ``mode_ranking`` rebuilt, alone or as a member; return nothing for others.

    Args:
        attack: The attack.
        found: Its reconstructions.
        samples: (n, 3, height, width) samples of the prior.
        target: The model under attack.
        network: The same, as a network that evaluates.
        prior: The prior.
        decoys: The decoys.
    """
    kinds = attack.attack.parts(target, prior) or (attack.kind,)
    block = next((place for place, kind in enumerate(kinds) if kind.partition("-")[0] == MODE_RANKING), None)
    if block is None or not target.scores_identities:
        return []
    classes = found.labels.unique()
    rows = torch.arange(len(found.labels)).view(len(classes), len(kinds), -1)[:, block].flatten()
    images, labels, each = found.images[rows].float(), found.labels[rows], len(rows) // len(classes)
    try:
        statistics = mode_statistics(target, images, labels, decoys.k)
    except ValueError as error:
        return [Measure(MODE_RANKING, math.nan, "share", "leakage", len(rows), len(classes), note=str(error))]
    if prior.has_realism:
        with torch.no_grad(), frozen(prior):
            parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
            real = [prior.realism(some.to(prior.device, prior.dtype), of.to(prior.device)) for some, of in parts]
        statistics["realism"] = by_place(torch.cat(real).double().cpu(), each, decoys.k)
    else:
        mine, others = (network.outputs(some)[0].double() for some in (images, samples))
        statistics["prior_distance"] = by_place(-torch.cdist(mine, others).amin(dim=1), each, decoys.k)
    return mode_ranking(statistics, classes, decoys.places[classes], len(rows))


def with_photographs(
    private: PrivateImages, view: View, strangers: Tensor, target: Target, network: Network
) -> list[Measure]:
    """Attackers who hold photographs, which breaks the bound: of all decoys, or of the private people.

    Nothing for data without decoys, or a model without a score for each identity.

    Args:
        private: The private images.
        view: The features that the model computes from them and from the decoys' training images.
        strangers: (n, 3, height, width) photographs of others, in [0, 1].
        target: The model under attack.
        network: The same, as a network that evaluates.
    """
    decoys, held, pooled = private.decoys, view.held_features, view.decoy_features
    if decoys is None or held is None or pooled is None or private.held_labels is None or not target.scores_identities:
        return []
    classes = private.labels.unique()
    known = target, classes, decoys.places[classes], decoys.k
    people, unseen = held[_first(private.held_labels)], decoys.held_images[_first(decoys.held_labels)]
    of_decoys, others = (network.outputs(some)[0] for some in (unseen, strangers))
    return [
        pool(pooled, *known),
        gallery(torch.cat([people, others]), *known),
        gallery(torch.cat([people, of_decoys, others]), *known, with_decoys=True),
    ]


def _first(labels: Tensor) -> Tensor:
    """The first row of each label."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])
