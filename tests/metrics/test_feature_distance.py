"""Feature distance by hand, against scipy and sklearn, and where float32 would lose them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from calor_hf.metrics.feature_distance import FeatureDistance, nearest_distances
from tests.metrics.small_evidence import small_evidence

FEATURES, LABELS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), torch.tensor([4, 4, 1])
PRIVATE, PRIVATE_LABELS = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 0.5], [6.0, 8.0]]), torch.tensor([4, 4, 1, 1])


def random_features(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_distances_by_hand() -> None:
    # Squared, to the nearest of the same class: (1, 1) is at 2 of the origin and at 5 of (3, 0), (0, 0.5) at 1/4.
    # The nearest of any class would be at 1/4 for the first, the mean of class 4 at 10.25.
    found = nearest_distances(FEATURES, LABELS, PRIVATE, PRIVATE_LABELS)
    assert found.dtype == torch.float64
    assert found.tolist() == [2.0, 5.0, 0.25]


def test_a_private_picture_is_at_zero_of_itself() -> None:
    features = random_features(12, 5, 1)
    labels = torch.arange(3).repeat(4)
    assert nearest_distances(features, labels, features.flip(0), labels.flip(0)).tolist() == [0.0] * 12


def test_distances_are_those_of_scipy_and_sklearn() -> None:
    features, private = random_features(30, 9, 1), random_features(50, 9, 2)
    labels, private_labels = torch.arange(30) % 4, torch.arange(50) % 5
    found = nearest_distances(features, labels, private, private_labels)
    table = cdist(features.double().numpy(), private.double().numpy(), "sqeuclidean")
    table[labels.numpy()[:, None] != private_labels.numpy()[None, :]] = np.inf
    assert found.numpy() == pytest.approx(table.min(axis=1), rel=1e-12)
    for label in range(4):
        nearest = NearestNeighbors(n_neighbors=1).fit(private[private_labels == label].double().numpy())
        distances, _ = nearest.kneighbors(features[labels == label].double().numpy())
        assert found[labels == label].numpy() == pytest.approx(distances[:, 0] ** 2, rel=1e-9)


def test_small_distances_far_from_the_origin_are_kept() -> None:
    # 1e4 + 2^-10 is a float32; ‖a‖² + ‖b‖² − 2ab, as a fast cdist has it, is 0 or nonsense there.
    features, private = torch.full((1, 4), 1e4 + 2**-10), torch.full((1, 4), 1e4)
    label = torch.tensor([0])
    assert nearest_distances(features, label, private, label).item() == 4 * 2**-20
    fast = torch.cdist(features, private, compute_mode="use_mm_for_euclid_dist") ** 2
    assert fast.item() != pytest.approx(4 * 2**-20, rel=0.5)


@pytest.mark.parametrize(
    ("private", "private_labels", "words"),
    [
        (PRIVATE, torch.tensor([4, 4, 2, 2]), "no private image of class 1"),
        (PRIVATE[:, :1], PRIVATE_LABELS, "of one network, got"),
        (PRIVATE[:3], PRIVATE_LABELS, "4 rows"),
        (PRIVATE.log(), PRIVATE_LABELS, "1 of 4 rows of private_features are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(private: Tensor, private_labels: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nearest_distances(FEATURES, LABELS, private, private_labels)


def test_measures_name_their_network_and_normalize_the_embedding_alone() -> None:
    evidence = small_evidence()
    evaluation_model, embedding = evidence.evaluation_model, evidence.embedding
    assert evaluation_model is not None
    assert embedding is not None
    scaled = dataclasses.replace(embedding, name="facenet", features=7 * embedding.features)
    by_evaluation_model, _, by_face = FeatureDistance().measure(dataclasses.replace(evidence, embedding=scaled))
    assert (by_evaluation_model.name, by_face.name) == ("delta_eval", "delta_face")
    assert by_evaluation_model.direction == by_face.direction == "privacy"
    assert evaluation_model.name in by_evaluation_model.note
    assert "facenet" in by_face.note

    labels, known = evidence.labels.numpy(), evidence.private_labels.numpy()
    for measure, view, unit in ((by_evaluation_model, evaluation_model, False), (by_face, embedding, True)):
        ours, theirs = (some.double().numpy() for some in (view.features, view.private_features))
        if unit:
            ours, theirs = (some / np.linalg.norm(some, axis=1, keepdims=True) for some in (ours, theirs))
        table = cdist(ours, theirs) ** 2
        expected = np.where(labels[:, None] == known[None, :], table, np.inf).min(axis=1).mean()
        assert measure.value == pytest.approx(expected)


def test_unit_features_are_at_most_four_apart() -> None:
    evidence = small_evidence()
    assert evidence.embedding is not None
    ends = torch.tensor([[2.0, 0.0], [-5.0, 0.0], [0.0, 0.0]])  # same direction, opposite one, none
    view = dataclasses.replace(
        evidence.embedding, features=ends.repeat(4, 1), private_features=torch.tensor([[0.1, 0.0]]).repeat(24, 1)
    )
    *_, by_face = FeatureDistance().measure(dataclasses.replace(evidence, embedding=view))
    assert by_face.value == pytest.approx((0 + 4 + 1) / 3)


def test_without_an_embedding_the_evaluation_model_speaks_alone() -> None:
    found = FeatureDistance().measure(small_evidence(embedding=None))
    assert [measure.name for measure in found] == ["delta_eval", "delta_eval_recognized"]


def test_distance_of_recognized_images_alone() -> None:
    evidence = small_evidence()
    evaluation_model, labels = evidence.evaluation_model, evidence.labels
    assert evaluation_model is not None
    assert evaluation_model.logits is not None
    kept = evaluation_model.logits.argmax(dim=1) == labels
    assert 0 < kept.sum() < len(labels)
    every, some, _ = FeatureDistance().measure(evidence)
    values = nearest_distances(
        evaluation_model.features, labels, evaluation_model.private_features, evidence.private_labels
    )
    assert some.value == pytest.approx(float(values[kept].mean()))
    assert some.value < every.value  # it flatters
    assert (some.images, some.direction) == (int(kept.sum()), "privacy")
    assert math.isnan(some.std)


def test_distance_without_a_recognized_image_is_not_a_number_and_says_why() -> None:
    evidence = small_evidence(embedding=None)
    assert evidence.evaluation_model is not None
    wrong = torch.eye(6)[(evidence.labels + 1) % 6]
    every, some = FeatureDistance().measure(
        dataclasses.replace(evidence, evaluation_model=dataclasses.replace(evidence.evaluation_model, logits=wrong))
    )
    assert math.isfinite(every.value)
    assert math.isnan(some.value)
    assert some.note == "the evaluation model recognized no one"
    only_features = FeatureDistance().measure(dataclasses.replace(evidence, evaluation_model=evidence.extractor))
    assert [measure.name for measure in only_features] == ["delta_eval"]
