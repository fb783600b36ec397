"""Adaptive attack on low-rank heads: match pre-Tanh activations of a class instead of its logits."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.attacks.base import ATTACKS
from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig
from calor_hf.attacks.smoothing import over_views
from calor_hf.attacks.starts import LEAST_POOL
from calor_hf.core.config import setting
from calor_hf.generators import Generator
from calor_hf.heads.classifier_head import MeanOfHeads, heads_of
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.targets.base import Target
from calor_hf.targets.head_modes import OwnNoise, StraightThrough

REACH = 0.9  # of the cube's side: arctanh(1) is infinite


@dataclass(frozen=True, kw_only=True)
class BypassConfig(GradientAttackConfig):
    """Settings of :class:`Bypass`."""

    steps: int = 300
    lr: float = setting(0.03, "Learning rate of Adam.")
    objective: str = "poincare"
    gradient: str = "straight_through"
    noise: str = "mean"
    score_weight: float = setting(0.1, "Weight of the identity loss, added to the distance.", ge=0)
    initial_candidates: int = setting(500, scales_to=LEAST_POOL)
    space: str = setting(
        "auto",
        "code (of a low-rank head with tanh), features, or auto: as there is.",
        choices=("auto", "code", "features"),
    )
    code: str = setting(
        "margin", "Code aimed at: margin (most probable), or mean (corner).", choices=("mean", "margin")
    )
    match: str = setting("cosine", "Distance to it before the tanh: cosine or squared.", choices=("cosine", "squared"))
    views: int = setting(1, "Random views a step, summed; 0: the image as it is.", ge=0)


@ATTACKS.register("bypass")
class Bypass(GradientAttack[BypassConfig]):
    """Adaptive attack on low-rank heads: match pre-Tanh activations instead of logits.

    ``code``: a class's scores are linear in the code, so its place in the cube [-1, 1]^r follows from the rows w of the
    last layer alone: the corner sign(w_c − mean w) (``mean``), or where its probability is highest (``margin``). The
    values in front of the Tanh are drawn in its direction (``cosine``) or to arctanh(0.9 · code) (``squared``).

    ``features``: the direction in which the class's score grows most against the mean score, with the head taken to be
    linear; it serves every head.

    Going around the Tanh is what counts: on 30 drawn faces at 16 pixels (rank 8, 50 steps, one view, 60 images, an
    error of some 6 points) an evaluation model recognized 35 to 37 % with ``code`` and ``features`` by cosine alone,
    32 % with the Poincaré loss past the Tanh and 22 % with plain PLG's loss. ``squared`` is weak (38 % when the cosine
    has 91, from chosen starts): most private images do not reach the corner. A tenth of the Poincaré loss in addition
    changes nothing there; it is for heads whose scores are not linear in code or features.
    """

    config_class = BypassConfig

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse ``space=code`` for a head without codes."""
        if self.config.space == "code" and not _has_codes(target.head):
            raise ValueError(
                "space=code needs a model with a low-rank head and tanh, such as calor's; pass space=features or auto"
            )

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Distance from the class's place, plus a little of the ordinary loss; summed over views."""

        def loss(shown: Tensor) -> Tensor:
            features = target.features(shown)
            scores = self.config.score_weight * self.identity_loss(target.head(features), batch.labels)
            return scores + self.distance(target, features, batch)

        return over_views(loss, images, batch, self.config.views)

    def distance(self, target: Target, features: Tensor, batch: Batch) -> Tensor:
        """(rows,) distance of features from the place of their class."""
        # An attacked target's head is a function; codes and weights are those of the head behind it.
        head: Any = target.own_head if isinstance(target, AttackedTarget) else target.head
        is_code = self.config.space != "features" and _has_codes(head)
        if "places" not in batch.notes:
            # Once for all steps and chunks: the places depend on the head alone.
            places = self._codes(head) if is_code else directions(head, features[:1].detach())
            batch.notes["places"] = places.to(features)
        place = batch.notes["places"][batch.labels]
        if not is_code:
            return 1 - F.cosine_similarity(features.flatten(1), place)
        parts = head.parts(features) if isinstance(head, MeanOfHeads) else [(head, features)]
        values = torch.cat([part.compress(some) for part, some in parts], dim=1).to(features.dtype)
        if self.config.match == "cosine":
            return 1 - F.cosine_similarity(values, place)
        return (values - torch.atanh(REACH * place)).square().mean(dim=1)

    def _codes(self, head: Any) -> Tensor:
        parts: list[Any] = list(heads_of(head))
        find = mean_codes if self.config.code == "mean" else margin_codes
        return torch.cat([find(part) for part in parts], dim=1)


def _has_codes(head: Any) -> bool:
    parts = heads_of(head)
    return all(isinstance(part, LowRankHead) and part.activation == "tanh" for part in parts)


def mean_codes(head: LowRankHead) -> Tensor:
    """(classes, rank) corners of the cube that set each class furthest above the mean of all scores."""
    rows = head.up.weight.detach()
    return (rows - rows.mean(dim=0)).sign()


def margin_codes(head: LowRankHead, steps: int = 500) -> Tensor:
    """(classes, rank) codes in the cube at which each class is most probable, by steps of falling size."""
    # The logarithm of the probability is concave in the code, so there is no other maximum to end on.
    weight, bias = head.up.weight.detach(), None if head.up.bias is None else head.up.bias.detach()
    codes = torch.zeros_like(weight)
    for step in range(steps):
        # Slope of log p_c: the class's row minus the mean row by probability.
        slope = weight - F.linear(codes, weight, bias).softmax(dim=1) @ weight
        codes = (codes + 0.1 * (1 - step / steps) * slope.sign()).clamp(-1, 1)
    return codes


def directions(head: Any, like: Tensor) -> Tensor:
    """(classes, features) directions in which each class's score grows most against the mean score.

    Args:
        head: Turns features into scores; what is curved or random in it is taken as linear and at its mean.
        like: (1, ...) features, for their shape.
    """
    point = torch.zeros_like(like).requires_grad_(True)
    # Past its Tanh and without noise a low-rank head is linear, so the slope at zero is its slope everywhere.
    with torch.enable_grad(), StraightThrough(), OwnNoise(lambda rows, columns: like.new_zeros(rows, columns)):
        scores = head(point)[0]
    rows = [torch.autograd.grad(score, point, retain_graph=True)[0].flatten() for score in scores]
    slopes = torch.stack(rows)
    return slopes - slopes.mean(dim=0)
