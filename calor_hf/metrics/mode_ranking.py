"""Mode ranking: share of classes whose private identity comes first of the k that were rebuilt."""

import math

from torch import Tensor

from calor_hf.core.exact_interval import exact_interval
from calor_hf.core.report import MODE_RANKING, Measure


def mode_ranking(scores: Tensor, labels: Tensor, private: Tensor, k: int) -> Measure:
    """Rank the identities of each class by the mean score of what was rebuilt of each, and compare with the truth.

    Args:
        scores: (n,) how sure the attacker is of each image; image j of a class shows its identity j mod k.
        labels: (n,) int64, the classes; images of a class are adjacent.
        private: (classes,) place of the private identity in its class, in [0, k).
        k: Identities per class; 1/k of the classes are right by chance.

    Returns:
        The share with its exact 95 % interval; a tie counts as the share that a draw among the tied would have.
    """
    people = {}
    for label in labels.unique().tolist():
        own = scores[labels == label].double()
        empty = Measure(MODE_RANKING, math.nan, "share", "leakage", len(labels), len(labels.unique()))
        if len(own) < k:
            return empty.failed(f"{len(own)} images of a class cannot show its {k} identities; rebuild {k} or more")
        means = [float(own[place::k].mean()) for place in range(k)]
        first = [place for place, mean in enumerate(means) if mean == max(means)]
        people[label] = float(int(private[label]) in first) / len(first)
    share = sum(people.values()) / len(people)
    low, high = exact_interval(round(sum(people.values())), len(people))
    note = f"the private identity comes first of {k}, by the mean log-odds of what was rebuilt of each; by chance 1/{k}"
    return Measure(
        MODE_RANKING, share, "share", "leakage", len(labels), len(people), low, high, by_identity=people, note=note
    )
