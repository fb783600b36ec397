"""Precision, recall, density and coverage by hand, and against loops over sklearn's neighbors; both variants."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from calor_hf.metrics import Measure, View
from calor_hf.metrics.prdc import PRDC, prdc
from tests.metrics.small_evidence import small_evidence

# With k = 1 the real images' balls are [-1, 1], [0, 2], [1, 5] and [3, 17].
REALS = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
# 0.4 lies in two of them; 6 in that of 10, but not in that of 3, which is nearer; 20 in none.
FAKES = torch.tensor([[0.4], [6.0], [20.0]])


def cloud(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(view: View, labels: list[int], private_labels: list[int], **options: object) -> dict[str, Measure]:
    evidence = small_evidence(extractor=view, labels=torch.tensor(labels), private_labels=torch.tensor(private_labels))
    return {measure.name: measure for measure in PRDC(**options).measure(evidence)}  # type: ignore[arg-type]


def test_one_feature_by_hand() -> None:
    # The fakes' balls are [-5.2, 6], [0.4, 11.6] and [6, 34]; the nearest fake to 10 is 6.
    expected = {"precision": 1 / 3, "recall": 1.0, "density": 3 / 4, "coverage": 3 / 4}
    assert prdc(FAKES, REALS, k=1) == pytest.approx(expected)
    standard = {"precision": 2 / 3, "recall": 1.0, "density": 3 / 3, "coverage": 3 / 4}
    assert prdc(FAKES, REALS, k=1, variant="standard") == pytest.approx(standard)
    # Recall is precision with the sides changed.
    assert prdc(REALS, FAKES, k=1)["recall"] == pytest.approx(1 / 3)
    assert prdc(REALS, FAKES, k=1, variant="standard")["recall"] == pytest.approx(2 / 3)


def radii(points: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Distance to the k-th other point; sklearn counts the point itself first."""
    distances: NDArray[np.float64] = NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points)[0][:, k]
    return distances


def by_loops(fakes: Tensor, reals: Tensor, k: int, variant: str) -> dict[str, float]:
    f, r = fakes.numpy(), reals.numpy()
    real_radii, fake_radii = radii(r, k), radii(f, k)
    inside = [[np.linalg.norm(a - b) <= radius for b, radius in zip(r, real_radii, strict=True)] for a in f]
    precise, recalled = [], []
    for a, row in zip(f, inside, strict=True):
        nearest = int(np.argmin([np.linalg.norm(a - b) for b in r]))
        precise.append(row[nearest] if variant == "ppa" else any(row))
    for b in r:
        distances = [np.linalg.norm(a - b) for a in f]
        holds = [distance <= radius for distance, radius in zip(distances, fake_radii, strict=True)]
        recalled.append(holds[int(np.argmin(distances))] if variant == "ppa" else any(holds))
    return {
        "precision": float(np.mean(precise)),
        "recall": float(np.mean(recalled)),
        "density": sum(map(sum, inside)) / (k * (len(r) if variant == "ppa" else len(f))),
        "coverage": float(np.mean([any(row[place] for row in inside) for place in range(len(r))])),
    }


@pytest.mark.parametrize("variant", ["ppa", "standard"])
@pytest.mark.parametrize(("k", "fakes", "reals"), [(3, 7, 9), (1, 12, 5), (2, 4, 20)])
def test_it_is_that_of_loops(k: int, fakes: int, reals: int, variant: str) -> None:
    seen: list[float] = []
    for seed in range(5):
        first, second = cloud(fakes, 3, seed), cloud(reals, 3, seed + 50) + 0.8
        found = prdc(first, second, k, variant)
        assert found == pytest.approx(by_loops(first, second, k, variant))
        seen += found.values()
    assert len({round(value, 6) for value in seen}) > 4  # neither all 0 nor all 1


@pytest.mark.parametrize("variant", ["ppa", "standard"])
def test_equal_sets_overlap_wholly(variant: str) -> None:
    points = cloud(9, 4, 1)
    # A image's ball holds itself and its k nearest: 9 (k + 1) pairs over 9 k.
    expected = {"precision": 1.0, "recall": 1.0, "density": 4 / 3, "coverage": 1.0}
    assert prdc(points, points, 3, variant) == pytest.approx(expected)
    assert prdc(points[torch.randperm(9)], points[torch.randperm(9)], 3, variant) == pytest.approx(expected)


def test_clouds_far_apart_do_not_overlap() -> None:
    expected = dict.fromkeys(("precision", "recall", "density", "coverage"), 0.0)
    assert prdc(cloud(9, 4, 1), cloud(8, 4, 2) + 1e6) == expected


def test_near_pictures_far_from_the_origin_keep_their_distances() -> None:
    # Squares of 1e6 would swallow what tells these images apart. Each ball holds two of them.
    points = REALS.double() / 1e4 + 1e6
    expected = {"precision": 1.0, "recall": 1.0, "density": 2.0, "coverage": 1.0}
    assert prdc(points, points, k=1) == pytest.approx(expected)
    assert prdc(FAKES.double() / 1e4 + 1e6, points, k=1) == pytest.approx(prdc(FAKES, REALS, k=1))


@pytest.mark.parametrize(("fakes", "reals", "known"), [
    (4, 4, {"precision", "recall", "density", "coverage"}), (3, 4, {"precision", "density", "coverage"}),
    (4, 3, {"recall"}), (1, 1, set()), (0, 5, set()), (5, 0, set()),
])  # fmt: skip
def test_a_ball_takes_more_than_k_pictures(fakes: int, reals: int, known: set[str]) -> None:
    found = prdc(cloud(9, 2, 1)[:fakes], cloud(9, 2, 2)[:reals])
    assert {name for name, value in found.items() if not math.isnan(value)} == known


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="variant ppa or standard and k >= 1, got 'mibench' and 3"):
        prdc(FAKES, REALS, variant="mibench")
    with pytest.raises(ValueError, match="got 'ppa' and 0"):
        prdc(FAKES, REALS, k=0)
    with pytest.raises(ValueError, match="of one network"):
        prdc(FAKES, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="some rows of features are not finite"):
        prdc(FAKES * math.nan, REALS)


def test_people_are_averaged_and_class_0_is_one_of_them() -> None:
    # Person 0 as above; person 4, whose images are copies of the private ones; person 7 has too few.
    fakes = torch.cat([FAKES, REALS + 100, torch.tensor([[0.0], [5.0]])])
    reals = torch.cat([REALS, REALS + 100, torch.tensor([[0.0]])])
    labels, private_labels = [0] * 3 + [4] * 4 + [7] * 2, [0] * 4 + [4] * 4 + [7]
    view = View("mine", fakes, reals)
    found = measured(view, labels, private_labels, k=1)
    assert found["precision"].by_identity == {0: pytest.approx(1 / 3), 4: 1.0}
    assert found["precision"].value == pytest.approx(2 / 3)
    # 0: [-1, 1] holds 0 and 1; [0, 2] too; [1, 5] holds 1 and 3; [3, 17] holds 3 and 10: 8 pairs of 4.
    assert found["density"].by_identity == {0: pytest.approx(3 / 4), 4: pytest.approx(2.0)}
    assert found["coverage"].value == pytest.approx((3 / 4 + 1) / 2)
    assert found["recall"].by_identity == {0: 1.0, 4: 1.0, 7: 1.0}  # two reconstructions are more than k
    assert (found["precision"].images, found["precision"].identities) == (9, 2)
    assert found["precision"].note.startswith("1 of 3 people left out: no number.")
    assert found["precision"].note.endswith("of people with more than 1 private images; by mine")
    standard = measured(view, labels, private_labels, k=1, variant="standard")
    assert standard["precision_standard"].by_identity == {0: pytest.approx(2 / 3), 4: 1.0}
    assert set(standard) == {f"{name}_standard" for name in found}
