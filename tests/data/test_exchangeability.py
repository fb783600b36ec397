"""Two-sample test of private identities and decoys: against another implementation, without and with a difference."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from calor_hf.data.exchangeability import (
    Exchangeability,
    TwoSampleTest,
    _auc,
    _fit,
    describe_people,
    image_statistics,
    two_sample_test,
)
from calor_hf.data.near_duplicates import one_person_twice
from calor_hf.data.synthetic_faces import load_synthetic_faces


def world(classes: int, k: int, shift: float, seed: int = 0) -> tuple[Any, Any]:
    """People of six numbers, two of which are larger for the private member of each class by ``shift``."""
    rng = np.random.default_rng(seed)
    x, private = rng.standard_normal((classes, k, 6)), rng.integers(k, size=classes)
    x[np.arange(classes), private, :2] += shift
    return x.reshape(classes * k, 6), private


def test_regression_and_area_are_those_of_scikit_learn() -> None:
    x, private = world(20, 3, 1.0)
    y = (np.arange(3) == private[:, None]).reshape(-1)
    other = LogisticRegression(C=1.0, tol=1e-9).fit(x, y)
    found = _fit(x, np.stack([y, ~y]).astype(float))
    np.testing.assert_allclose(found[0, :-1], other.coef_[0], atol=2e-3)
    np.testing.assert_allclose(found[1, :-1], -other.coef_[0], atol=2e-3)
    scores = (x @ found[0, :-1]).round(1).reshape(1, 20, 3)  # rounded: with ties
    assert _auc(scores, private[None])[0] == pytest.approx(roc_auc_score(y, scores.reshape(-1)))


@pytest.mark.parametrize("k", [2, 4])
def test_exchangeable_people_are_not_told_apart_and_others_are(k: int) -> None:
    same = [two_sample_test("x", *world(40, k, 0.0, seed), k, permutations=60) for seed in range(3)]
    assert all(test.low < 0.5 < test.high for test in same)
    assert all(test.joint_p > 0.01 for test in same)
    assert np.mean([test.auc for test in same]) == pytest.approx(0.5, abs=0.12)
    other = two_sample_test("x", *world(40, k, 3.0), k, permutations=60)
    assert other.auc > 0.95
    assert other.outranks > 0.85
    assert other.outranks_low < other.outranks
    assert Exchangeability(k, 40, False, (other,)).distinguishable


def test_attacker_without_labels_finds_the_ones_that_are_alike() -> None:
    # All private people share one place, and their decoys are spread: no label is needed to see that.
    rng = np.random.default_rng(1)
    x, private = rng.standard_normal((40, 4, 6)), rng.integers(4, size=40)
    x[np.arange(40), private] = 0.1 * rng.standard_normal((40, 6)) + 2.5
    found = two_sample_test("x", x.reshape(160, 6), private, 4, permutations=20)
    assert found.joint > 0.9
    assert found.joint_p < 1e-6


def test_statement_says_no_more_than_is_known() -> None:
    def verdict(by_construction: bool = False, classes: int = 40, **changes: float) -> Exchangeability:
        numbers = {"auc": 0.6, "low": 0.4, "high": 0.7, "chance_high": 0.65, "outranks": 0.4, "outranks_low": 0.314}
        test = TwoSampleTest(name="x", joint=0.25, joint_p=0.6, **{**numbers, **changes})
        return Exchangeability(4, classes, by_construction, (test,))

    assert "in at least 31 % of the cases (1/k = 25.0 %); no upper bound known" in verdict().statement
    assert "in at least 25 % of the cases" in verdict(outranks_low=0.1).statement
    assert verdict(True).statement == (
        "exchangeable by construction: an attacker names the private identity of a class in 1/k = 25.0 %"
    )
    few = verdict(classes=6, chance_high=0.8)
    assert few.statement == "too few people for a test (6 private ones): no bound is known"
    assert "can be told apart" in verdict(low=0.76).statement
    assert verdict(auc=0.61803).to_dict()["tests"][0]["auc"] == 0.61803


def test_traces_of_compression_show_in_image_statistics() -> None:
    k, classes, each = 2, 24, 3
    faces = load_synthetic_faces(k * classes, each, 32)
    private = np.random.default_rng(0).integers(k, size=classes)
    images = []
    for face, identity in zip(faces["image"], faces["label"], strict=True):
        buffer = io.BytesIO()
        face.save(buffer, "PNG" if identity % k == private[identity // k] else "JPEG", quality=80)
        images.append(Image.open(buffer).convert("RGB"))
    identities = np.asarray(faces["label"])
    found = two_sample_test("x", describe_people(image_statistics(images), identities), private, k, permutations=60)
    assert Exchangeability(k, classes, False, (found,)).distinguishable
    plain = describe_people(image_statistics(faces["image"]), identities)
    assert not Exchangeability(
        k, classes, False, (two_sample_test("x", plain, private, k, permutations=60),)
    ).distinguishable


def test_one_person_under_two_identities_is_found_by_features() -> None:
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(6, 16, generator=generator)
    people[4] = people[1]
    owners = [index // 8 for index in range(48)]
    features = people.repeat_interleave(8, dim=0) + 0.3 * torch.randn(48, 16, generator=generator)
    assert one_person_twice(features, owners) == [(1, 4)]
