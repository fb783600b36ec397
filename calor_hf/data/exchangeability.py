"""Exchangeability of private identities and decoys: a classifier two-sample test, and an attacker without labels."""

import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calor_hf.core.exact_interval import exact_interval
from calor_hf.core.report_text import percent
from calor_hf.core.seeding import named_rng

Array = NDArray[np.float64]

FOLDS, PERMUTATIONS, ROUNDS = 5, 200, 20
MOST_COLUMNS = 32  # of the description of a person; more become principal components
REFUSED = 0.75
"""Lower end of an AUC from which on decoys are refused."""


@dataclass(frozen=True)
class TwoSampleTest:
    """How well a classifier tells private identities from decoys that it was not trained on.

    Attributes:
        name: Description that the classifier read, such as image statistics.
        auc: Area under the curve over people, chance level 0.5.
        low: Lower end of its 95 % interval, by permutation of the private member within each class.
        high: Upper end.
        chance_high: AUC that exchangeable identities stay below in 97.5 % of the deals.
        outranks: Share of classes whose private member gets the highest score of the k.
        outranks_low: Lower end of its exact 95 % interval.
        joint: Share of the private members that an attacker without labels finds, who looks for one member per class
            such that the chosen ones resemble each other and not the rest; with k = 2, in the better of the two sets.
        joint_p: Probability of as many hits if the identities are exchangeable.
    """

    name: str
    auc: float
    low: float
    high: float
    chance_high: float
    outranks: float
    outranks_low: float
    joint: float
    joint_p: float


@dataclass(frozen=True)
class Exchangeability:
    """Result of the test of exchangeability of dealt identities.

    Attributes:
        k: Identities per class.
        classes: Number of classes.
        by_construction: Whether all identities were drawn from one population.
        tests: Two-sample tests.
    """

    k: int
    classes: int
    by_construction: bool
    tests: tuple[TwoSampleTest, ...]

    @property
    def too_few(self) -> bool:
        """Whether an AUC of 0.75 could not be distinguished from chance."""
        return max(test.chance_high for test in self.tests) >= REFUSED

    @property
    def distinguishable(self) -> bool:
        """Whether the lower end of an AUC is above 0.75."""
        return max(test.low for test in self.tests) > REFUSED

    @property
    def statement(self) -> str:
        """Statement about an attacker who names the private identity of a class."""
        chance = f"1/k = {percent(1 / self.k)}"
        if self.distinguishable:
            return "private identities and decoys can be told apart: the decoys hide little"
        if self.by_construction:
            return f"exchangeable by construction: an attacker names the private identity of a class in {chance}"
        if self.too_few:
            return f"too few people for a test ({self.classes} private ones): no bound is known"
        least = max(1 / self.k, *(test.outranks_low for test in self.tests))
        return (
            f"an attacker names the private identity of a class in at least {percent(least, 0)} of the cases "
            f"({chance}); no upper bound known"
        )

    def __str__(self) -> str:
        lines = [
            f"private identities against decoys by {test.name}: AUC {test.auc:.2f} [{test.low:.2f}, {test.high:.2f}], "
            f"chance up to {test.chance_high:.2f}; first of its class {percent(test.outranks, 0)}; chosen without "
            f"labels {percent(test.joint, 0)} (p = {test.joint_p:.2g})"
            for test in self.tests
        ]
        return "\n".join([*lines, self.statement])

    def to_dict(self) -> dict[str, Any]:
        """Content of a JSON file, which is secret."""
        return asdict(self) | {"statement": self.statement}


def image_statistics(images: Iterable[Image.Image]) -> Array:
    """(images, 14) numbers of RGB images in which sources differ: colors, sharpness, traces of compression, size."""
    return np.stack([_statistics(np.asarray(image)) for image in images])


def _statistics(pixels: NDArray[np.uint8]) -> Array:
    x = pixels.astype(np.float32) / 255
    mean, std = x.mean((0, 1)), x.std((0, 1))
    skew = ((x - mean) ** 3).mean((0, 1)) / (std + 1e-3) ** 3
    gray = x.mean(2)
    spectrum = np.abs(np.fft.rfft2(gray - gray.mean())) ** 2
    fast = np.hypot(np.fft.fftfreq(gray.shape[0])[:, None], np.fft.rfftfreq(gray.shape[1])[None]) > 0.25
    packed = len(zlib.compress(np.diff(pixels, axis=1).tobytes(), 1)) / pixels.size
    others = [spectrum[fast].sum() / (spectrum.sum() + 1e-9), _sharpness(gray), _blocks(gray), _blocks(gray.T), packed]
    return np.concatenate([mean, std, skew, np.log(np.array(others) + 1e-6)]).astype(np.float64)


def _sharpness(gray: NDArray[Any]) -> float:
    """Mean square of the Laplacian."""
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    return float(((around - 4 * gray[1:-1, 1:-1]) ** 2).mean())


def _blocks(gray: NDArray[Any]) -> float:
    """Largest mean step between columns, of the eight positions in a JPEG block, in units of the mean."""
    steps = np.abs(np.diff(gray, axis=1)).mean(0)
    phases = np.array([steps[phase::8].mean() for phase in range(8)])
    return float(phases.max() / (phases.mean() + 1e-9))


def describe_people(rows: Array, identities: NDArray[np.int64]) -> Array:
    """(people, columns) standardized description of each identity: means and deviations over its images.

    Args:
        rows: (images, columns) numbers of each image.
        identities: (images,) in [0, people).
    """
    people = int(identities.max()) + 1
    groups = [rows[identities == index] for index in range(people)]
    x = np.concatenate([[group.mean(0) for group in groups], [group.std(0) for group in groups]], axis=1)
    x = _standardized(x)
    columns = min(MOST_COLUMNS, max(2, people // 5))
    if x.shape[1] > columns:
        left, size, _ = np.linalg.svd(x, full_matrices=False)
        x = _standardized(left[:, :columns] * size[:columns])
    return x


def _standardized(x: Array) -> Array:
    std = x.std(0)
    standardized: Array = (x - x.mean(0)) / np.where(std > 1e-9, std, 1.0)
    return standardized


def two_sample_test(
    name: str, x: Array, private: NDArray[np.int64], k: int, permutations: int = PERMUTATIONS
) -> TwoSampleTest:
    """Test whether a classifier tells the private members from their decoys, by cross-validation over classes.

    The null distribution is that of other deals: the private member of each class drawn again.

    Args:
        name: Name of what ``x`` describes.
        x: (k · classes, columns) description of each identity, in the order of identities.
        private: (classes,) position of the private member in its class, in [0, k).
        k: Identities per class.
        permutations: Number of other deals.

    Source:
        Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", ICLR 2017, arXiv:1610.06545.
    """
    classes = len(private)
    others = named_rng(0, "data/exchangeability/permutations").integers(k, size=(permutations, classes))
    deals = np.concatenate([private[None], others])
    fold = named_rng(0, "data/exchangeability/folds").permutation(classes) % min(FOLDS, classes)
    scores = np.zeros((len(deals), classes, k))
    aucs = np.zeros(len(deals))
    for number in range(int(fold.max()) + 1):
        out = fold == number
        by_class = x.reshape(classes, k, -1)
        weights = _fit(by_class[~out].reshape(-1, x.shape[1]), _one_hot(deals[:, ~out], k))
        scores[:, out] = np.einsum("pd,ckd->pck", weights[:, :-1], by_class[out])
        aucs += out.mean() * _auc(scores[:, out], deals[:, out])
    auc, null = aucs[0], aucs[1:]
    below, above = np.quantile(null, [0.025, 0.975])
    won = _first(scores[0], private)
    hits, joint_p = _joint_hits(x, private, k)
    return TwoSampleTest(
        name, float(auc), float(max(0, auc - (above - 0.5))), float(min(1, auc + (0.5 - below))),
        float(above), float(won.mean()), exact_interval(int(won.sum()), classes)[0], hits / classes, joint_p,
    )  # fmt: skip


def _one_hot(members: NDArray[np.int64], k: int) -> Array:
    """(deals, classes · k) with 1 for the private members."""
    chosen: Array = (members[..., None] == np.arange(k)).reshape(len(members), -1).astype(np.float64)
    return chosen


def _fit(x: Array, y: Array, steps: int = 12) -> Array:
    """Weights (deals, columns + 1) of logistic regressions with an L2 penalty of 1, by Newton's method.

    Args:
        x: (people, columns).
        y: (deals, people) in {0, 1}, one regression each.
        steps: Newton steps.
    """
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.ones(x.shape[1])
    penalty[-1] = 1e-3
    found = []
    for some in np.array_split(y, -(-len(y) // 32)):  # bounds the memory
        w = np.zeros((len(some), x.shape[1]))
        for _ in range(steps):
            p = 1 / (1 + np.exp(-np.clip(w @ x.T, -30, 30)))
            slope = (p - some) @ x + penalty * w
            curvature = (x.T[None] * (p * (1 - p))[:, None]) @ x + np.diag(penalty)
            w = w - np.linalg.solve(curvature, slope[..., None])[..., 0]
        found.append(w)
    return np.concatenate(found)


def _auc(scores: Array, members: NDArray[np.int64]) -> Array:
    """(deals,) share of pairs, private and decoy, in which the private one has the higher score; a tie is one half."""
    is_private = members[..., None] == np.arange(scores.shape[2])
    found = []
    for row, chosen in zip(scores, is_private, strict=True):
        decoys, private = np.sort(row[~chosen]), row[chosen]
        below = np.searchsorted(decoys, private, "left") + np.searchsorted(decoys, private, "right")
        found.append(below.mean() / (2 * len(decoys)))
    return np.array(found)


def _first(scores: Array, private: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(classes,) whether the private member has the highest score alone."""
    own = np.take_along_axis(scores, private[:, None], axis=1)
    alone: NDArray[np.bool_] = (scores >= own).sum(axis=1) == 1
    return alone


def _joint_hits(x: Array, private: NDArray[np.int64], k: int) -> tuple[int, float]:
    """Private members among those that an attacker without labels chooses, and the probability of as many by chance.

    The choice does not depend on ``private``, so that the hits of exchangeable identities are binomial.
    """
    from scipy.stats import binom

    classes = len(private)
    by_class = x.reshape(classes, k, -1)
    apart = (by_class - by_class.mean(axis=1, keepdims=True)).reshape(classes * k, -1)
    columns = apart.T.reshape(-1, classes, k)
    choice = np.concatenate([columns, -columns]).argmax(axis=2)  # the extremes of each column to start with
    for _ in range(ROUNDS):
        scores = (_fit(apart, _one_hot(choice, k), steps=6)[:, :-1] @ apart.T).reshape(-1, classes, k)
        before, choice = choice, scores.argmax(axis=2)
        if (before == choice).all():
            break
    first, second = -np.partition(-scores, 1, axis=2)[..., :2].transpose(2, 0, 1)
    best = int(np.log1p(np.exp(second - first)).sum(axis=1).argmin())
    hits = int((choice[best] == private).sum())
    if k == 2:
        hits = max(hits, classes - hits)
        return hits, float(min(1.0, 2 * binom.sf(hits - 1, classes, 0.5)))
    return hits, float(binom.sf(hits - 1, classes, 1 / k))
