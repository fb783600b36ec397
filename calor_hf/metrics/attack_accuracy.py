"""Attack accuracy: share of reconstructions that the evaluation model assigns to the class they are meant to show."""

from torch import Tensor

from calor_hf.core.report import HEADLINE, IDENTITIES
from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_identities, mean_over_images


def topk_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Whether the label is among the ``k`` highest scores.

    Args:
        logits: (n, classes), finite.
        labels: (n,) int64 in [0, classes).
        k: Number of scores that count, 1 <= k <= classes.

    Returns:
        (n,) float64, 0 or 1. A tie is wrong unless all tied classes fit among the ``k``.

    Raises:
        ValueError: wrong shapes, labels out of range, numbers that are not finite, or ``k`` out of range.
    """
    check_rows(labels, logits=logits)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"expected k between 1 and the {logits.shape[1]} classes, got {k}")
    strange = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(strange):
        raise ValueError(
            f"the evaluation model has {logits.shape[1]} classes, got label {int(strange[0])}; pass one trained on "
            "all classes"
        )
    # Ties count against the label: a network that scores all classes alike recognizes no one.
    own = logits.gather(1, labels[:, None])
    return ((logits >= own).sum(dim=1) <= k).double()


@METRICS.register("attack_accuracy")
class AttackAccuracy(Metric):
    """Top-1 and top-5 accuracy of the evaluation model on all reconstructions, failed ones included.

    Also the share of identities with at least one recognized reconstruction, the risk of a single person (the GMI paper
    calls this its top five).

    Source:
        Zhang et al., CVPR 2020, arXiv:1911.07135.
    """

    per_image = staticmethod(topk_correct)

    def measure(self, evidence: Evidence) -> list[Measure]:
        """``attack_accuracy@1``, ``attack_accuracy@5`` (five classes or more), ``identities_recognized``."""
        logits, labels = self.scores(evidence), evidence.labels
        first = topk_correct(logits, labels)
        note = "the evaluation model's first choice is the right person"
        found = [mean_over_images(HEADLINE, "share", "leakage", first, labels, note)]
        if logits.shape[1] >= 5:
            five, note = topk_correct(logits, labels, 5), "the right person is among the evaluation model's first five"
            found.append(mean_over_images("attack_accuracy@5", "share", "leakage", five, labels, note))
        identities = {int(label): float(first[labels == label].max()) for label in labels.unique()}
        tries = "at least one of all tries at a person"
        found.append(mean_over_identities(IDENTITIES, "share", "leakage", identities, len(labels), tries))
        return found
