"""Contribution of each attack of an ensemble."""

from collections.abc import Sequence

import torch

from calor_hf.core.report import HEADLINE, IDENTITIES
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import Evidence, Measure, mean_over_identities, mean_over_images


def of_parts(evidence: Evidence, parts: Sequence[str]) -> list[Measure]:
    """Return, for each part of an ensemble, the identities it recovers and those that no other part recovers.

    Args:
        evidence: All images; those of one identity form one block per part, in the order of the parts.
        parts: Names of the parts.
    """
    model, labels = evidence.evaluation_model, evidence.labels
    if not parts or model is None or model.logits is None:
        return []
    correct = topk_correct(model.logits, labels)
    blocks = {int(label): correct[labels == label].view(len(parts), -1) for label in labels.unique()}
    any_correct = {label: block.amax(dim=1).tolist() for label, block in blocks.items()}
    found, each = [], len(labels) // len(parts)
    part_labels = torch.tensor(list(blocks)).repeat_interleave(each // len(blocks))
    for index, name in enumerate(parts):
        values = torch.cat([block[index] for block in blocks.values()])
        own = {label: one[index] for label, one in any_correct.items()}
        # The identities that the ensemble would lose without this part.
        alone = {label: float(one[index] == 1 and sum(one) == 1) for label, one in any_correct.items()}
        found += [
            mean_over_images(f"{HEADLINE}[{name}]", "share", "leakage", values, part_labels, f"{name} alone"),
            mean_over_identities(
                f"{IDENTITIES}[{name}]", "share", "leakage", own, each, f"at least one of {name}'s tries"
            ),
            mean_over_identities(
                f"identities_added[{name}]", "share", "leakage", alone, each, f"by {name}, and by no other part"
            ),
        ]
    return found
