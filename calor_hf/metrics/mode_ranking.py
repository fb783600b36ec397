"""Mode ranking: share of classes whose private identity comes first of the k that were rebuilt, by some statistic."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.core.exact_interval import exact_interval
from calor_hf.core.report import MODE_RANKING, Measure
from calor_hf.core.seeding import named_rng
from calor_hf.metrics.identification_game import log_odds
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

logger = logging.getLogger(__name__)

DECLARED = "log_odds"
"""The statistic that was declared before; the p values of the others are corrected for their number."""
STATISTICS = {
    DECLARED: "the mean log-odds of what was rebuilt of each",
    "loss_under_noise": "the smallest loss of what was rebuilt, with noise",
    "gradient_norm": "the smallest gradient of the loss at what was rebuilt",
    "feature_norm": "the longest features of what was rebuilt",
    "weight_norm": "the longest row of weights",
    "bias": "the largest bias",
    "realism": "how real what was rebuilt is to the prior's discriminator",
    "prior_distance": "the smallest distance of what was rebuilt to a sample of the prior, in the model's features",
}
"""Statistics by which the identities of a class are ranked, the highest first."""
NOISE, DRAWS, BATCH = 0.05, 4, 128
"""Standard deviation and number of draws of the noise on images in [0, 1], and images at a time."""
SIGNIFICANT = 0.05


def mode_ranking(statistics: Mapping[str, Tensor], labels: Tensor, private: Tensor, images: int) -> list[Measure]:
    """Rank the identities of each class by each statistic, the highest first, and compare with the truth.

    Args:
        statistics: (classes, k) numbers by name; :data:`DECLARED` is the first.
        labels: (classes,) int64.
        private: (classes,) place of the private identity in its class, in [0, k).
        images: Number of images that the numbers come from.

    Returns:
        ``mode_ranking`` by the first statistic, and ``mode_ranking[…]`` by the others. The note of the latter has a
        p value: two-sided, against 1/k, and corrected for their number by Holm's method.
    """
    from scipy.stats import binomtest  # here, as scipy.stats takes a second to import

    found, raw = list[Measure](), list[float]()
    for name, scores in statistics.items():
        k = scores.shape[1]
        note = f"the private identity comes first of {k}, by {STATISTICS[name]}; by chance 1/{k}"
        shown = MODE_RANKING if name == DECLARED else f"{MODE_RANKING}[{name}]"
        found.append(first_of_class(shown, scores, labels, private, images, note))
        # Ties give shares of a class, and a binomial test takes whole numbers.
        raw.append(float(binomtest(round(sum(found[-1].by_identity.values())), len(labels), 1 / k).pvalue))
    for index, p in enumerate(holm(raw[1:]), start=1):
        note = f"{found[index].note}; p = {p:.2g} after Holm's correction for {len(raw) - 1} statistics"
        found[index] = replace(found[index], note=note)
        if p < SIGNIFICANT:
            logger.warning("%s: %s. The model tells private identities from decoys.", found[index].name, note)
    return found


def first_of_class(name: str, scores: Tensor, labels: Tensor, private: Tensor, images: int, note: str = "") -> Measure:
    """Share of classes whose private identity has the highest score, with its exact 95 % interval.

    Arguments as :func:`mode_ranking`. A tie counts as the share that a draw among the tied would have.
    """
    highest = scores == scores.amax(dim=1, keepdim=True)
    won = highest.gather(1, private[:, None].long()).squeeze(1) / highest.sum(dim=1).double()
    by_class = dict(zip(labels.tolist(), won.tolist(), strict=True))
    # Exact, as a bootstrap over few classes has no width if all of them agree.
    low, high = exact_interval(round(float(won.sum())), len(won))
    return Measure(name, float(won.mean()), "share", "leakage", images, len(won), low, high, math.nan, by_class, note)


def holm(p_values: list[float]) -> list[float]:
    """Return p values corrected for their number (Holm, Scandinavian Journal of Statistics 1979)."""
    order, corrected, least = sorted(range(len(p_values)), key=p_values.__getitem__), [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        # Only the hypotheses not yet rejected count; the maximum so far keeps the corrected values in order.
        corrected[index] = least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
    return corrected


def mode_statistics(target: Target, images: Tensor, labels: Tensor, k: int) -> dict[str, Tensor]:
    """Statistics of an attacker who has the weights, from what the attack ``mode_ranking`` rebuilt.

    Args:
        target: A model with a score for each identity.
        images: (n, 3, height, width) in [0, 1]; image j of a class shows its identity j mod k.
        labels: (n,) int64, classes; images of a class are adjacent, and as many for all.
        k: Identities per class.

    Returns:
        (classes, k) float64 by name; those of images are means over the images of an identity.

    Raises:
        ValueError: fewer than ``k`` images of a class.
    """
    head: Any = target.head
    classes = labels.unique_consecutive()
    each = len(labels) // len(classes)
    if each < k:
        raise ValueError(f"{each} images of a class cannot show its {k} identities; rebuild {k} or more")
    identities = k * labels + torch.arange(len(labels)) % each % k
    found: dict[str, list[Tensor]] = {
        name: [] for name in (DECLARED, "loss_under_noise", "gradient_norm", "feature_norm")
    }
    rng = named_rng(0, "metrics/mode-ranking")
    with frozen(target.module):
        for rows in torch.arange(len(labels)).split(BATCH):
            shown = images[rows].to(target.device, target.dtype).requires_grad_(True)
            who = identities[rows].to(target.device)
            features = target.features(shown)
            loss = F.cross_entropy(head.identity_scores(features), who, reduction="none")
            (slope,) = torch.autograd.grad(loss.sum(), shown)
            with torch.no_grad():
                noise = torch.from_numpy(NOISE * rng.standard_normal((DRAWS, *shown.shape))).to(shown)
                noisy = head.identity_scores(target.features((shown + noise).flatten(0, 1)))
                noisy_loss = F.cross_entropy(noisy, who.repeat(DRAWS), reduction="none").view(DRAWS, -1).mean(0)
                found[DECLARED].append(log_odds(target.head(features), labels[rows].to(target.device)))
                # The highest is ranked first, so what is to be small has a minus sign.
                found["loss_under_noise"].append(-noisy_loss)
                found["gradient_norm"].append(-slope.flatten(1).norm(dim=1))
                found["feature_norm"].append(features.flatten(1).norm(dim=1))
    statistics = {name: by_place(torch.cat(parts).detach().double().cpu(), each, k) for name, parts in found.items()}
    # Row c · k + j of the last layer scores identity j of class c, so these two need no images.
    layer = head.last_layer
    weights = layer.weight.detach().double().cpu().unflatten(0, (-1, k))[classes]
    statistics["weight_norm"] = weights.norm(dim=2)
    if layer.bias is not None:
        statistics["bias"] = layer.bias.detach().double().cpu().unflatten(0, (-1, k))[classes]
    return statistics


def by_place(values: Tensor, each: int, k: int) -> Tensor:
    """(classes, k) means over the images of each identity, from (classes · each,) numbers of images."""
    by_class = values.unflatten(0, (-1, each))
    return torch.stack([by_class[:, place::k].mean(dim=1) for place in range(k)], dim=1)
