"""Identification game: the attacker submits images of a person in its own order and is right with the first, or not."""

import torch
from torch import Tensor

from calor_hf.core.report import EMBEDDING, HEADLINE, MATCH, guesses
from calor_hf.heads.chunked_scores import margins
from calor_hf.metrics.agreement import mean_cosines
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_identities
from calor_hf.metrics.identity_match import distances

GUESSES = (1, 2, 4, 8)
ALIKE = 0.02
"""Root mean square difference of pixels in [0, 1] below which two images are one guess: five of 255 levels."""


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the (n,) log-odds of the label from (n, classes) logits: ordered as the probability, which saturates."""
    return -margins(logits.double(), labels)["log_odds"]


def submitted(images: Tensor, order: Tensor, most: int = GUESSES[-1]) -> list[int]:
    """Return the images of one person that the attacker submits, in its order, without repetitions.

    Args:
        images: (n, 3, height, width) in [0, 1].
        order: (n,) the attacker's own scores, the best guess highest; of equal ones the first comes first.
        most: Number of images that are submitted, at most.

    Returns:
        Indices of images that differ from each one before by :data:`ALIKE` or more.
    """
    kept: list[int] = []
    # Stable, so that equal scores keep the order of the images on every device.
    for index in order.argsort(descending=True, stable=True).tolist():
        if all(float((images[index] - images[other]).square().mean().sqrt()) >= ALIKE for other in kept):
            kept.append(index)
        if len(kept) == most:
            break
    return kept


@METRICS.register("identification_game")
class IdentificationGame(Metric):
    """Share of people who are recognized in the images that an attacker would submit.

    A person recognized in any of many images is an upper bound: the evaluation model chooses for the attacker. Here the
    attacker commits itself, by the only criterion that it has: how sure the attacked model is. An ensemble chooses
    among the images of all its parts.
    """

    needs = ("evaluation_model", "attacker_scores")
    by_image = False

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``best_guess`` and ``guesses@2``, ``@4``, ``@8`` for every network that recognizes people.

        For data with k identities per class, also ``guesses@k``.
        """
        _, scores = self.require(evidence)
        labels = evidence.labels
        check_rows(labels, attacker_scores=scores)
        # All classes have as many identities as class 0.
        k = 1 if evidence.identity_labels is None else int((evidence.identity_labels == 0).sum())
        counts, order = sorted({*GUESSES, k}), dict[int, list[int]]()
        for label in labels.unique().tolist():
            rows = (labels == label).nonzero().flatten()
            order[label] = rows[submitted(evidence.images[rows], scores[rows], counts[-1])].tolist()
        # If no one has as many distinct images, a higher count would repeat the number before.
        most, found = max(map(len, order.values())), []
        for name, right in recognized(evidence).items():
            for count in counts:
                if count > most:
                    break
                people = {label: float(right[rows[:count]].max()) for label, rows in order.items()}
                note = "the one image that an attacker would submit" if count == 1 else f"one of the first {count}"
                found.append(mean_over_identities(guesses(name, count), "share", "leakage", people, len(labels), note))
        return found


def recognized(evidence: Evidence) -> dict[str, Tensor]:
    """(n,) whether each image is recognized, 0 or 1, by the measure of single images that says so."""
    return {
        name: topk_correct(scores, torch.searchsorted(identities, evidence.labels))
        for name, (scores, identities) in person_scores(evidence).items()
    }


def person_scores(evidence: Evidence) -> dict[str, tuple[Tensor, Tensor]]:
    """(n, identities) scores, and the identities in ascending order, by the measure of single images that reads them.

    Raises:
        ValueError: no network recognizes people.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    embedding, model, enrolled = evidence.embedding, evidence.evaluation_model, evidence.enrolled_identities
    if evidence.identity is not None and enrolled is not None:
        # Negative, as the highest score wins.
        found[MATCH] = -distances(evidence.identity, enrolled), torch.arange(len(enrolled))
    if embedding is not None and len(evidence.private_labels.unique()) > 1:
        found[EMBEDDING] = mean_cosines(embedding.features, *evidence.enrolled(embedding))
    if model is not None and model.logits is not None:
        found[HEADLINE] = model.logits, torch.arange(model.logits.shape[1])
    if not found:
        raise ValueError("no network recognizes people; pass a classifier trained on the private images")
    return found
