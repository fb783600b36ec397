"""Agreement of two evaluation models by hand and against sklearn; an evaluation model that has features alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize
from torch import Tensor

from calor_hf.metrics import Evidence, Measure, View
from calor_hf.metrics.agreement import Agreement, cohen_kappa, mean_cosines
from tests.metrics.small_evidence import of_private_rows, of_rows, small_evidence

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def scores(right: list[int]) -> Tensor:
    """Logits of three classes that name the right person where ``right`` is 1."""
    shifted = (LABELS + 1 - torch.tensor(right)) % 3
    return torch.eye(3)[shifted]


def two_evaluation_models(first: list[int], second: list[int]) -> dict[str, Measure]:
    nothing = torch.zeros(6, 1)
    evidence = small_evidence(
        labels=LABELS, evaluation_model=View("A", nothing, nothing, scores(first)),
        second_evaluation_model=View("B", nothing, nothing, scores(second)),
    )  # fmt: skip
    return {measure.name: measure for measure in Agreement().measure(evidence)}


def by_features(evidence: Evidence) -> Evidence:
    """The same evidence, whose second evaluation model gives no scores."""
    assert evidence.second_evaluation_model is not None
    return dataclasses.replace(
        evidence, second_evaluation_model=dataclasses.replace(evidence.second_evaluation_model, logits=None)
    )


def test_measures_by_hand() -> None:
    found = two_evaluation_models([1, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0])
    assert {name: measure.value for name, measure in found.items()} == {
        "second_evaluation_model@1": pytest.approx(2 / 6),
        "both_evaluation_models@1": pytest.approx(1 / 6),
        "false_discovery": 3 / 4,
        # Agreed 2/6, by chance (4·2 + 2·4)/36 = 4/9.
        "evaluation_models_kappa": pytest.approx((1 / 3 - 4 / 9) / (5 / 9)),
    }
    assert found["both_evaluation_models@1"].by_identity == {0: 0.5, 1: 0.0, 2: 0.0}
    assert found["false_discovery"].by_identity == {0: 0.5, 1: 1.0, 2: 1.0}
    assert (found["false_discovery"].images, found["false_discovery"].direction) == (4, "neither")
    assert (found["both_evaluation_models@1"].direction, found["second_evaluation_model@1"].direction) == (
        "leakage",
        "leakage",
    )
    assert "A and B" in found["both_evaluation_models@1"].note
    assert found["evaluation_models_kappa"].direction == "neither"


def test_pictures_that_fool_the_judge_alone_are_no_success() -> None:
    found = two_evaluation_models([1] * 6, [0] * 6)
    assert (found["both_evaluation_models@1"].value, found["false_discovery"].value) == (0.0, 1.0)
    assert found["evaluation_models_kappa"].value == 0.0


@pytest.mark.parametrize(("same", "undefined"), [([1] * 6, True), ([0] * 6, True), ([1, 0, 0, 0, 0, 0], False)])
def test_kappa_is_undefined_where_both_judges_never_change_their_minds(same: list[int], undefined: bool) -> None:
    kappa = two_evaluation_models(same, same)["evaluation_models_kappa"]
    assert math.isnan(kappa.value) == undefined
    assert ("undefined" in kappa.note) == undefined
    assert undefined or kappa.value == 1.0


def test_nothing_to_reject_is_not_a_number() -> None:
    rejected = two_evaluation_models([0] * 6, [1, 0, 0, 0, 0, 0])["false_discovery"]
    assert math.isnan(rejected.value)
    assert (rejected.images, rejected.note) == (0, "the evaluation model recognized no one")


def test_kappa_is_that_of_sklearn() -> None:
    rng = torch.Generator().manual_seed(1)
    for share in (0.1, 0.5, 0.9):
        first = torch.rand(300, generator=rng) < share
        second = first ^ (torch.rand(300, generator=rng) < 0.3)
        expected = cohen_kappa_score(first.numpy(), second.numpy())
        assert cohen_kappa(first, second) == pytest.approx(expected)


def test_mean_cosines_by_hand() -> None:
    # Person 2 lies at 0° and 90°, in the mean at 45° though one image is a thousand times as long; person 7 at 180°.
    private, labels = torch.tensor([[1000.0, 0.0], [-3.0, 0.0], [0.0, 1.0]]), torch.tensor([2, 7, 2])
    found, identities = mean_cosines(torch.tensor([[0.0, 5.0], [-1.0, 0.0]]), private, labels)
    assert identities.tolist() == [2, 7]
    half = math.sqrt(0.5)
    assert found.numpy() == pytest.approx(np.array([[half, 0.0], [-half, 1.0]]))


def test_a_judge_of_features_takes_the_nearest_mean_as_sklearn_does() -> None:
    evidence = by_features(small_evidence())
    view, private_labels = evidence.second_evaluation_model, evidence.private_labels.numpy()
    assert view is not None
    unit = normalize(view.private_features.double().numpy())
    identities = np.unique(private_labels)
    means = normalize(np.stack([unit[private_labels == label].mean(axis=0) for label in identities]))
    nearest = (
        KNeighborsClassifier(n_neighbors=1).fit(means, identities).predict(normalize(view.features.double().numpy()))
    )
    right = nearest == evidence.labels.numpy()
    assert 0 < right.sum() < len(right)
    found = Agreement().measure(evidence)[0]
    assert found.name == "second_evaluation_model@1"
    assert found.value == pytest.approx(right.mean())
    assert "nearest of 4 mean private images in second_evaluation_model" in found.note


def test_a_judge_of_features_knows_a_private_picture() -> None:
    evidence = by_features(small_evidence())
    assert evidence.second_evaluation_model is not None
    own = evidence.second_evaluation_model.private_features[::2]
    copies = dataclasses.replace(
        evidence, second_evaluation_model=dataclasses.replace(evidence.second_evaluation_model, features=own)
    )
    assert Agreement().measure(copies)[0].value == 1.0


def test_one_person_alone_leaves_a_judge_of_features_no_choice() -> None:
    one = of_private_rows(of_rows(small_evidence(), torch.arange(3)), torch.arange(6))
    assert Agreement().measure(one)[0].value <= 1  # a classifier has all its classes to choose from
    with pytest.raises(ValueError, match="attack two classes or more, or pass a classifier"):
        Agreement().measure(by_features(one))


def test_what_does_not_fit_is_refused() -> None:
    evidence = small_evidence()
    with pytest.raises(ValueError, match="gives no scores"):
        Agreement().measure(dataclasses.replace(evidence, evaluation_model=evidence.extractor))
    with pytest.raises(ValueError, match="no private image of class 0"):
        Agreement().measure(by_features(of_private_rows(evidence, evidence.private_labels != 0)))
