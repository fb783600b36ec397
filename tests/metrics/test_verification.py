"""Verification by hand, and its promise: strangers pass at the stated rate, whatever the galleries' sizes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from calor_hf.metrics import Evidence, Measure, View
from calor_hf.metrics.verification import Verification, best_cosine, threshold_at
from tests.metrics.small_evidence import of_held_rows, of_private_rows, small_evidence


def measured(evidence: Evidence) -> dict[str, Measure]:
    return {measure.name: measure for measure in Verification().measure(evidence)}


def lock(features: Tensor, gallery: Tensor, held: Tensor, *labels: Tensor) -> dict[str, Measure]:
    """Measures of an embedding alone; ``labels`` of the three sets of features."""
    empty = torch.zeros(0, 3, 4, 4)
    view = View("facenet", features, gallery, held_features=held)
    return measured(Evidence(empty, labels[0], empty, labels[1], embedding=view, held_labels=labels[2]))


def test_best_cosine_is_that_of_scipy() -> None:
    probes, gallery = torch.randn(7, 5), torch.randn(4, 5)
    expected = 1 - cdist(probes.double().numpy(), gallery.double().numpy(), "cosine").min(axis=1)
    assert best_cosine(probes, gallery).numpy() == pytest.approx(expected)
    assert best_cosine(torch.zeros(1, 5), gallery).item() == 0.0


def test_thresholds_by_hand() -> None:
    scores = torch.arange(200.0)[torch.randperm(200)]
    assert threshold_at(scores, 100) == 197.0  # 198 and 199 lie above: two of 200
    assert threshold_at(scores[scores < 199], 100) == 197.0  # 198 alone: one of 199
    assert threshold_at(scores, 200) == 198.0
    assert math.isnan(threshold_at(scores, 201))
    assert threshold_at(torch.ones(100), 100) == 1.0  # all tie, so that no one is above


def test_measures_by_hand() -> None:
    # Gallery of person 3: (1, 0) and (1, 1); of person 8: (-1, 0). Strangers of 3: 59 times cosine −0.71, once 0.99;
    # strangers of 8: 60 times 0. One of 120 may pass, so an image passes above 0.
    gallery, gallery_labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]]), torch.tensor([3, 8, 3])
    held = torch.tensor([[0.0, 2.0]] * 60 + [[-1.0, 0.0]] * 59 + [[0.6, 0.8]])
    held_labels = torch.tensor([3] * 60 + [8] * 60)
    features, labels = torch.tensor([[1.0, 0.1], [-1.0, 0.2], [-1.0, -1.0], [0.0, 1.0]]), torch.tensor([3, 3, 8, 8])
    found = lock(features, gallery, held, labels, gallery_labels, held_labels)
    passed, ceiling = found["verified@FAR=1e-2"], found["genuine_accepted@FAR=1e-2"]
    assert passed.by_identity == {3: 0.5, 8: 0.5}
    assert (passed.value, passed.images, passed.identities, passed.direction) == (0.5, 4, 2, "leakage")
    assert (passed.low, passed.high) == (0.5, 0.5)
    assert ceiling.by_identity == {3: 1.0, 8: pytest.approx(59 / 60)}
    assert ceiling.value == pytest.approx(119 / 120)
    assert (ceiling.images, ceiling.direction) == (120, "neither")
    assert "tried 120 times; by facenet" in passed.note


@pytest.mark.parametrize("sizes", [[5] * 20, [1, 40] * 10])
def test_strangers_pass_at_the_stated_rate(sizes: list[int]) -> None:
    """Reconstructions that show no one of these people are strangers too."""
    rng = torch.Generator().manual_seed(9)
    identities = torch.arange(len(sizes))
    centers = torch.randn(len(sizes), 8, generator=rng)
    gallery_labels, held_labels = identities.repeat_interleave(torch.tensor(sizes)), identities.repeat_interleave(60)
    gallery, held = (centers[some] + torch.randn(len(some), 8, generator=rng) for some in (gallery_labels, held_labels))
    labels = identities.repeat_interleave(500)
    other = (labels + torch.randint(1, len(sizes), labels.shape, generator=rng)) % len(sizes)
    features = centers[other] + torch.randn(len(labels), 8, generator=rng)
    found = lock(features, gallery, held, labels, gallery_labels, held_labels)
    assert found["verified@FAR=1e-2"].value == pytest.approx(1e-2, rel=0.3)
    assert found["verified@FAR=1e-3"].value == pytest.approx(1e-3, rel=0.8)
    assert found["genuine_accepted@FAR=1e-2"].value > 0.1  # so the lock opens at all
    if len(set(sizes)) > 1:  # a large gallery is easier to enter: the rate holds on average, as the class says
        shares = np.array(list(found["verified@FAR=1e-2"].by_identity.values()))
        assert shares[1::2].mean() > shares[::2].mean()


def test_pictures_of_the_private_set_pass_and_an_empty_direction_does_not() -> None:
    evidence = small_evidence()
    assert evidence.embedding is not None
    own = torch.arange(0, 24, 2)  # three training images of each person
    copies = dataclasses.replace(evidence.embedding, features=evidence.embedding.private_features[own])
    assert measured(dataclasses.replace(evidence, embedding=copies))["verified@FAR=1e-2"].value == 1.0
    empty = dataclasses.replace(evidence.embedding, features=torch.zeros(12, 8))
    assert measured(dataclasses.replace(evidence, embedding=empty))["verified@FAR=1e-2"].value == 0.0


def test_a_rate_that_too_few_strangers_tried_is_not_a_number() -> None:
    found = measured(small_evidence())  # 4 galleries × 30 images of others
    assert math.isfinite(found["verified@FAR=1e-2"].value)
    for name in ("verified@FAR=1e-3", "verified@FAR=1e-4", "genuine_accepted@FAR=1e-3"):
        assert math.isnan(found[name].value)
        assert "too few tries" in found[name].note
        assert "tried 120 times" in found[name].note
    fewer = measured(of_held_rows(small_evidence(), torch.arange(0, 36, 2)))
    assert math.isnan(fewer["verified@FAR=1e-2"].value)


def test_held_pictures_of_others_alone_leave_no_ceiling() -> None:
    evidence = small_evidence()
    assert evidence.held_labels is not None
    assert evidence.embedding is not None
    strangers = of_held_rows(evidence, ~torch.isin(evidence.held_labels, evidence.labels))  # 12 of people 1 and 4
    repeated = of_held_rows(strangers, torch.arange(12).repeat(3))
    found = measured(repeated)
    assert math.isfinite(found["verified@FAR=1e-2"].value)
    assert math.isnan(found["genuine_accepted@FAR=1e-2"].value)
    assert found["genuine_accepted@FAR=1e-2"].note == "no held-out images of the attacked people"


def test_what_is_missing_is_named() -> None:
    evidence = small_evidence()
    assert evidence.embedding is not None
    with pytest.raises(ValueError, match="held-out private images"):
        measured(dataclasses.replace(evidence, embedding=dataclasses.replace(evidence.embedding, held_features=None)))
    with pytest.raises(ValueError, match="no private image of class 5"):
        measured(of_private_rows(evidence, evidence.private_labels != 5))
