"""Adaptive attack on decoys: rebuild each identity of a class by its own score, to rank them afterwards."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.plg import PLG
from calor_hf.attacks.smoothing import over_views
from calor_hf.generators import Generator
from calor_hf.targets.base import Target
from calor_hf.targets.head_modes import StraightThrough


@ATTACKS.register("mode_ranking")
class ModeRanking(PLG):
    """Adaptive attack on models with decoys: PLG's descent, each image on the score of one identity.

    A head with decoys scores k identities of each class, in an order that tells nothing. Image j of a class descends on
    the score of its identity j mod k, so that all k faces are rebuilt. An audit then ranks them by one statistic,
    declared before: the mean log-odds that the model gives to what was rebuilt of each (measure ``mode_ranking``).

    ``auto`` has it as a member against models with decoys. On a model without decoys it is PLG.
    """

    def fits(self, target: Target) -> bool:
        """It expects decoys."""
        return target.scores_identities

    def adaptive_to(self, target: Target) -> bool:
        """It expects decoys."""
        return self.fits(target) or super().adaptive_to(target)

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse restarts, of which the best of a class would be kept, and not one of each identity."""
        super().check(target, generator)
        if self.config.restarts > 1 and target.scores_identities:
            raise ValueError(
                f"restarts must be 1 on a model with decoys, got {self.config.restarts}; rebuild more images per class"
            )

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Sum of the losses of the views, on the identities' scores."""
        head: Any = getattr(target, "own_head", target.head)
        if not hasattr(head, "identity_scores"):
            return super().identity(target, images, batch)
        places = torch.tensor([place % head.k for _, place in batch.row_keys], device=batch.labels.device)

        def loss(shown: Tensor) -> Tensor:
            # An attacked target goes past the Tanh in its head alone, which gives scores of classes, not of identities.
            with StraightThrough() if self.config.gradient == "straight_through" else nullcontext():
                scores = head.identity_scores(target.features(shown))
            return self.identity_loss(scores, batch.labels * head.k + places)

        return over_views(loss, images, batch, self.config.views)
