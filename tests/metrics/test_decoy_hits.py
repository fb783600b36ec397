"""Decoy hits: values by hand, for two classes of two identities: 0 and 2 of class 0, 1 and 3 of class 1."""

import dataclasses

import torch

from calor_hf.core.report import EMBEDDING, HEADLINE, MATCH, decoy_hits, guesses
from calor_hf.metrics import METRICS, Evidence, View
from calor_hf.metrics.decoy_hits import hits as hits_of

CLASS_OF = torch.tensor([0, 1, 0, 1])


def evidence_of(shown: list[int]) -> Evidence:
    """Two images of each class, that show these identities; all networks see so."""
    scores = torch.eye(4)[shown]
    view = View("net", scores, torch.eye(4)[:2], scores, decoy_features=torch.eye(4)[2:])
    return Evidence(
        images=torch.linspace(0, 1, 4)[:, None, None, None].expand(-1, 3, 2, 2),
        labels=torch.tensor([0, 0, 1, 1]),
        private_images=torch.zeros(2, 3, 2, 2),
        private_labels=torch.tensor([0, 1]),
        evaluation_model=view,
        embedding=view,
        identity=scores,
        enrolled_identities=torch.eye(4),
        attacker_scores=torch.tensor([2.0, 1.0, 2.0, 1.0]),
        identity_labels=CLASS_OF,
        decoy_labels=torch.tensor([2, 3]),
    )


def test_private_and_decoy_count_alike_and_other_classes_do_not() -> None:
    for shown, hits in (([0, 2, 3, 1], 1.0), ([1, 2, 0, 3], 0.5), ([3, 1, 2, 0], 0.0)):
        found = {one.name: one for one in METRICS.get("decoy_hits")().measure(evidence_of(shown))}
        assert found.pop("private_alone@1").images == 4
        assert {name: one.value for name, one in found.items()} == dict.fromkeys(
            map(decoy_hits, (MATCH, EMBEDDING, HEADLINE)), hits
        )
    logits = torch.tensor([[1.0, 0.0, 9.0, 0.0], [0.0, 1.0, 9.0, 0.0], [0.0, 1.0, 9.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    evidence = evidence_of([0, 0, 1, 1])
    assert evidence.evaluation_model is not None
    view = dataclasses.replace(evidence.evaluation_model, logits=logits)
    measures = METRICS.get("decoy_hits")().measure(dataclasses.replace(evidence, evaluation_model=view))
    assert next(one.value for one in measures if one.name == "private_alone@1") == 0.75  # all but the second image
    tied = evidence_of([0, 0, 1, 1])
    assert tied.evaluation_model is not None
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    # A tie with another class is wrong, one within the class is not.
    assert hits_of(logits, CLASS_OF[None] == tied.labels[:, None]).tolist() == [0, 1, 1, 0]


def test_a_decoy_is_no_recognized_person_and_k_guesses_are_counted() -> None:
    evidence = evidence_of([2, 0, 1, 3])  # class 0: the decoy is submitted first
    for name in ("attack_accuracy", "embedding_accuracy", "identity_match"):
        assert METRICS.get(name)().measure(evidence)[0].value == 0.5
    found = {one.name: one.value for one in METRICS.get("identification_game")().measure(evidence)}
    for leading in (MATCH, EMBEDDING, HEADLINE):
        assert found[guesses(leading)] == 0.5
        assert found[guesses(leading, 2)] == 1.0
