"""What each attack of an ensemble got, and what it added."""

from collections.abc import Sequence

import torch

from calor_hf.auditing.report import HEADLINE
from calor_hf.metrics import Evidence, Measure
from calor_hf.metrics.attack_accuracy import topk_correct


def of_parts(evidence: Evidence, parts: Sequence[str]) -> list[Measure]:
    """Of an attack that is made of others: whom each of them gave away, and whom it alone did.

    Args:
        evidence: Of all images; each person's are in one block a part, in the order of the parts.
        parts: Names.
    """
    evaluation_model, labels = evidence.evaluation_model, evidence.labels
    if not parts or evaluation_model is None or evaluation_model.logits is None:
        return []
    first = topk_correct(evaluation_model.logits, labels)
    blocks = {int(label): first[labels == label].view(len(parts), -1).amax(dim=1).tolist() for label in labels.unique()}
    found, each = [], len(labels) // len(parts)
    for index, name in enumerate(parts):
        mine = torch.cat([first[labels == label].view(len(parts), -1)[index] for label in blocks])
        whose = torch.tensor(list(blocks)).repeat_interleave(each // len(blocks))
        found.append(Measure.of_images(f"{HEADLINE}[{name}]", "share", "leakage", mine, whose, f"{name} alone"))
        own = {label: hit[index] for label, hit in blocks.items()}
        alone = {label: float(hit[index] == 1 and sum(hit) == 1) for label, hit in blocks.items()}
        tries = f"at least one of {name}'s tries"
        found.append(Measure.of_identities(f"identities_recognized[{name}]", "share", "leakage", own, each, tries))
        missed = f"by {name}, and by no other part"
        found.append(Measure.of_identities(f"identities_added[{name}]", "share", "leakage", alone, each, missed))
    return found
