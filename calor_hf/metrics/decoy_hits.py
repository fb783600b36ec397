"""Decoy hits: share of reconstructions that show any identity of the class, private or decoy."""

import torch
from torch import Tensor

from calor_hf.core.report import decoy_hits
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_images
from calor_hf.metrics.identification_game import person_scores


def hits(scores: Tensor, own: Tensor) -> Tensor:
    """Return whether the best score is one of the image's own.

    Args:
        scores: (n, identities), finite.
        own: (n, identities) bool, the identities of the image's class.

    Returns:
        (n,) float64, 0 or 1; a tie with another class is wrong.
    """
    best, other = (scores.masked_fill(mask, -torch.inf).amax(dim=1) for mask in (~own, own))
    return (best > other).double()


@METRICS.register("decoy_hits")
class DecoyHits(Metric):
    """Share of reconstructions that show any of the k identities of a class of data with decoys.

    Decoys hide no face; they bound which of the k an attacker names. This number does not depend on which is private.
    """

    needs = ("evaluation_model", "identity_labels")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``decoy_hits/…`` for every network that recognizes people, and ``private_alone@1``.

        The latter is the accuracy of an evaluation model that has to choose a private identity, as an attacker would
        who knows all of them and no decoy: it gives the face of a decoy to some of them.
        """
        _, of_identity = self.require(evidence)
        labels, found = evidence.labels, []
        for name, (scores, identities) in person_scores(evidence).items():
            check_rows(labels, scores=scores)
            right = hits(scores, of_identity[identities][None] == labels[:, None])
            note = "any of the class's identities, private or decoy, is recognized"
            found.append(mean_over_images(decoy_hits(name), "share", "leakage", right, labels, note))
        if evidence.evaluation_model is not None and evidence.evaluation_model.logits is not None:
            # The private identity of class c is identity c, so the first columns are those of the private people.
            alone = topk_correct(evidence.evaluation_model.logits[:, : int(of_identity.max()) + 1], labels)
            note = "the evaluation model's first choice among private people alone"
            found.append(mean_over_images("private_alone@1", "share", "leakage", alone, labels, note))
        return found
