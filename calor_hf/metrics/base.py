"""Base class of the metrics, the evidence they read, and means with intervals."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calor_hf.core.registry import Registry
from calor_hf.core.report import Direction, Measure
from calor_hf.metrics.statistics import bootstrap_interval, identity_means, share_interval, slot_std

__all__ = [
    "METRICS", "Direction", "Evidence", "Measure", "Metric", "View", "check_rows", "mean_over_identities",
    "mean_over_images", "measured", "private_images_of",
]  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """Outputs of one network for the images, on the CPU.

    Attributes:
        name: Name of the network in reports.
        features: (n, d) of the reconstructions.
        private_features: (m, d) of the private training images of the attacked identities.
        logits: (n, classes) of the reconstructions; None if the network does not classify identities.
        private_logits: (m, classes) of the private training images.
        held_features: (h, d) of private images that the target was not trained on.
        held_logits: (h, classes) of the same images.
        decoy_features: (d, features) of training images of decoys, if the data hold some.
    """

    name: str
    features: Tensor
    private_features: Tensor
    logits: Tensor | None = None
    private_logits: Tensor | None = None
    held_features: Tensor | None = None
    held_logits: Tensor | None = None
    decoy_features: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything a metric may use, on the CPU.

    Attributes:
        images: (n, 3, height, width) reconstructions in [0, 1].
        labels: (n,) int64 class that each reconstruction is meant to show; images of a class are adjacent.
        private_images: (m, 3, height, width) private training images of the attacked identities, in [0, 1].
        private_labels: (m,) int64.
        evaluation_model: View of the evaluation model: another network than the target, trained on the same identities.
        second_evaluation_model: View of a second one of another kind, which shares as little as possible with both.
        embedding: View of a network that tells any identities apart, such as one for face verification.
        extractor: View of a network for image quality, such as Inception.
        target: View of the model under attack.
        held_labels: (h,) int64 labels of the ``held_*`` images of the views.
        held_images: (h, 3, height, width) those images.
        identity: (n, k) identity numbers drawn in each reconstruction; synthetic faces only.
        true_identity: (n, k) identity numbers that it is meant to show.
        enrolled_identities: (classes, k) identity numbers of every class of the target, in the order of the labels.
        identity_names: k names of these numbers.
        attacker_scores: (n,) how sure the attacker is of each reconstruction; only their order within a class counts.
        ask: Outputs that the target releases for (n, 3, height, width) images in [0, 1], by name, each one row per
            image, as :func:`calor_hf.metrics.decoder_inversion.released` gives them.
        public_images: (p, 3, height, width) in [0, 1] of other identities, which an attacker could have.
        identity_labels: (identities,) class of every identity that evaluation models score, if the data hold decoys:
            the private one of class c is identity c, and decoys follow. ``enrolled_identities`` have the same order.
        decoy_labels: (d,) int64, identity of each row of ``decoy_features``.
    """

    images: Tensor
    labels: Tensor
    private_images: Tensor
    private_labels: Tensor
    evaluation_model: View | None = None
    second_evaluation_model: View | None = None
    embedding: View | None = None
    extractor: View | None = None
    target: View | None = None
    held_labels: Tensor | None = None
    held_images: Tensor | None = None
    identity: Tensor | None = None
    true_identity: Tensor | None = None
    enrolled_identities: Tensor | None = None
    identity_names: tuple[str, ...] = ()
    attacker_scores: Tensor | None = None
    ask: Callable[[Tensor], dict[str, Tensor]] | None = None
    public_images: Tensor | None = None
    identity_labels: Tensor | None = None
    decoy_labels: Tensor | None = None

    def enrolled(self, view: View) -> tuple[Tensor, Tensor]:
        """Features and identities of all training images that a network without scores compares with."""
        if view.decoy_features is None or self.decoy_labels is None:
            return view.private_features, self.private_labels
        return (
            torch.cat([view.private_features, view.decoy_features]),
            torch.cat([self.private_labels, self.decoy_labels]),
        )


def mean_over_images(
    name: str, unit: str, direction: Direction, values: Tensor, labels: Tensor, note: str = "", slots: bool = True
) -> Measure:
    """Mean of one number per image, with its interval over identities and its standard deviation over slots.

    ``values`` is one number per image, (n,), and ``labels`` (n,) int64; for the others see :class:`Measure`. ``slots``:
    whether the i-th images of all identities belong to one restart; otherwise there is no deviation.
    """
    means = identity_means(values, labels)
    # Resampled by identity, and weighted by its images: the interval is that of the mean over images, although
    # images of one identity are not independent.
    counts = np.array([float((labels == label).sum()) for label in means])
    low, high = bootstrap_interval(np.array(list(means.values())), counts)
    if unit == "share":
        low, high = share_interval(low, high, len(means))
    mean, std = float(values.double().mean()), slot_std(values, labels) if slots else math.nan
    return Measure(name, mean, unit, direction, len(values), len(means), low, high, std, means, note)


def mean_over_identities(
    name: str, unit: str, direction: Direction, values: dict[int, float], images: int, note: str = ""
) -> Measure:
    """Mean of one number per identity, with its interval; identities with NaN are left out and counted in the note.

    ``values`` are by label, and come from ``images`` reconstructions; for the others see :class:`Measure`.
    """
    known = {label: value for label, value in values.items() if not math.isnan(value)}
    if len(known) < len(values):
        note = f"{len(values) - len(known)} of {len(values)} people left out: no number. {note}".strip()
    numbers = np.array(list(known.values()))
    low, high = bootstrap_interval(numbers)
    if unit == "share":
        low, high = share_interval(low, high, len(known))
    value = float(numbers.mean()) if known else math.nan
    return Measure(name, value, unit, direction, images, len(known), low, high, math.nan, known, note)


class Metric(ABC):
    """Measure of leakage.

    Attributes:
        needs: Attributes of :class:`Evidence` that may not be None.
        by_image: Whether the number is a mean over images, so that reconstructions of *other* identities give a chance
            level.
        about_target: Whether the number depends on the target only, not on reconstructions: an audit gives it once.
        slow: Whether it trains a network, so that an audit runs it only on request.
        per_image: Function ``(predictions, references, **options) -> (n,)`` whose mean :func:`load_metric` offers as an
            ``evaluate`` module, or None.
    """

    needs: ClassVar[tuple[str, ...]] = ("evaluation_model",)
    by_image: ClassVar[bool] = True
    about_target: ClassVar[bool] = False
    slow: ClassVar[bool] = False
    per_image: ClassVar[Callable[..., Tensor] | None] = None

    @abstractmethod
    def measure(self, evidence: Evidence) -> list[Measure]:
        """Compute the metric's numbers.

        Raises:
            ValueError: something in :attr:`needs` is missing, or shapes do not fit.
        """

    def missing(self, evidence: Evidence) -> str | None:
        """Return the first name in :attr:`needs` that ``evidence`` lacks; None if nothing is missing."""
        return next((name for name in self.needs if getattr(evidence, name) is None), None)

    def require(self, evidence: Evidence) -> tuple[Any, ...]:
        """Return the parts of ``evidence`` in :attr:`needs`; raise ``ValueError`` if one is missing."""
        if (name := self.missing(evidence)) is not None:
            raise ValueError(f"{type(self).__name__} needs {name}, and the evidence has none; pass one to the audit")
        return tuple(getattr(evidence, name) for name in self.needs)

    def view(self, evidence: Evidence, name: str) -> View:
        """Return a view of ``evidence`` that the metric needs.

        Raises:
            ValueError: something in :attr:`needs` is missing, or features are not one finite row per label.
        """
        self.require(evidence)
        view: View = getattr(evidence, name)
        check_rows(evidence.labels, features=view.features)
        check_rows(evidence.private_labels, private_features=view.private_features)
        return view

    def scores(self, evidence: Evidence) -> Tensor:
        """Return the evaluation model's (n, classes) logits of the reconstructions.

        Raises:
            ValueError: something in :attr:`needs` is missing, or the evaluation model does not classify identities.
        """
        self.require(evidence)
        if evidence.evaluation_model is None or evidence.evaluation_model.logits is None:
            raise ValueError(
                "the evaluation model gives no scores of people; pass a classifier trained on the private images"
            )
        return evidence.evaluation_model.logits


def check_rows(labels: Tensor, **tensors: Tensor) -> None:
    """Raise ``ValueError`` unless there are labels and every tensor has one finite row per label."""
    if labels.ndim != 1 or labels.dtype != torch.int64 or len(labels) == 0:
        raise ValueError(f"expected labels (n,) int64 with n >= 1, got {tuple(labels.shape)} {labels.dtype}")
    for name, tensor in tensors.items():
        if len(tensor) != len(labels):
            raise ValueError(f"expected {name} with {len(labels)} rows, one per label, got {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            rows = int((~tensor.reshape(len(tensor), -1).isfinite().all(dim=1)).sum())
            raise ValueError(
                f"{rows} of {len(tensor)} rows of {name} are not finite; look at the network and its input"
            )


def private_images_of(label: int, private_labels: Tensor) -> Tensor:
    """(m,) bool mask of the private images of a class; raise ``ValueError`` if it has none."""
    mask = private_labels == label
    if not mask.any():
        raise ValueError(f"no private image of class {label}; pass the data that the target was trained on")
    return mask


def measured(metrics: dict[str, Metric], evidence: Evidence) -> list[Measure]:
    """Compute metrics; those that lack evidence are left out, and one that fails has the reason as its note."""
    found: list[Measure] = []
    for name, metric in metrics.items():
        if metric.missing(evidence) is not None:
            continue
        try:
            found += metric.measure(evidence)
        except (ValueError, FloatingPointError) as error:
            # One metric that fails must not cost the numbers of the others.
            logger.warning("metric %s: %s", name, error)
            identities = len(evidence.labels.unique())
            found.append(Measure(name, math.nan, "", "neither", len(evidence.labels), identities, note=str(error)))
    return found


METRICS: Registry[Metric] = Registry("metric", "calor_hf.metrics")
