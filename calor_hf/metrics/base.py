"""What every metric promises: numbers with their interval, from what networks see in the reconstructions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from calor_hf.core.registry import Registry
from calor_hf.core.report import Direction, Measure
from calor_hf.metrics.statistics import bootstrap_interval, identity_means, share_interval, slot_std

__all__ = [
    "METRICS", "Direction", "Evidence", "Measure", "Metric", "View", "check_rows", "mean_over_identities",
    "mean_over_images",
]  # fmt: skip


@dataclass(frozen=True)
class View:
    """Images as one network sees them, on the CPU.

    Attributes:
        name: Of the network, as the report prints it.
        features: (n, d) of the reconstructions.
        private_features: (m, d) of the private training images of the attacked people.
        logits: (n, classes) of the reconstructions; None: the network classifies no one.
        private_logits: (m, classes) of the private training images.
        held_features: (h, d) of private images that the target was not trained on.
        held_logits: (h, classes) of them.
    """

    name: str
    features: Tensor
    private_features: Tensor
    logits: Tensor | None = None
    private_logits: Tensor | None = None
    held_features: Tensor | None = None
    held_logits: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """All that a metric may look at; on the CPU.

    Attributes:
        images: (n, 3, height, width) reconstructions in [0, 1].
        labels: (n,) int64: whom each is meant to show; images of a person lie together.
        private_images: (m, 3, height, width) private training images of the attacked people, in [0, 1].
        private_labels: (m,) int64.
        evaluation_model: The evaluation model's view; another network than the target, trained on the same people.
        second_evaluation_model: Of a second one of another kind, that shares as little as possible with both.
        embedding: Of a network that tells any people apart, such as one for face verification.
        extractor: Of a network for image quality, such as Inception.
        target: Of the model under attack itself.
        held_labels: (h,) int64: who is on the ``held_*`` images of the views.
        held_images: (h, 3, height, width) those images.
        identity: (n, k) numbers of the person drawn in each reconstruction; synthetic faces alone.
        true_identity: (n, k) numbers of the person that it is meant to show.
        identity_names: k names of these numbers.
        ask: What the target releases about (n, 3, height, width) images in [0, 1], by name, each a row an image; as
            :func:`calor_hf.metrics.decoder_inversion.released` does.
        public_images: (p, 3, height, width) in [0, 1] of no one in particular, that an attacker could have.
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
    identity_names: tuple[str, ...] = ()
    ask: Callable[[Tensor], dict[str, Tensor]] | None = None
    public_images: Tensor | None = None


def mean_over_images(
    name: str, unit: str, direction: Direction, values: Tensor, labels: Tensor, note: str = ""
) -> Measure:
    """Mean of one number per image, with its interval over identities and its standard deviation over slots.

    Args:
        name: As in :class:`Measure`.
        unit: As in :class:`Measure`.
        direction: As in :class:`Measure`.
        values: (n,) one number per image.
        labels: (n,) int64.
        note: As in :class:`Measure`.
    """
    means = identity_means(values, labels)
    counts = np.array([float((labels == label).sum()) for label in means])
    low, high = bootstrap_interval(np.array(list(means.values())), counts)
    if unit == "share":
        low, high = share_interval(low, high, len(means))
    mean, std = float(values.double().mean()), slot_std(values, labels)
    return Measure(name, mean, unit, direction, len(values), len(means), low, high, std, means, note)


def mean_over_identities(
    name: str, unit: str, direction: Direction, values: dict[int, float], images: int, note: str = ""
) -> Measure:
    """Mean of one number per identity, with its interval; identities with NaN are left out and counted in the note.

    Args:
        name: As in :class:`Measure`.
        unit: As in :class:`Measure`.
        direction: As in :class:`Measure`.
        values: A number for each identity, by label.
        images: Number of reconstructions they come from.
        note: As in :class:`Measure`.
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
    """A way of saying how much leaked.

    Attributes:
        needs: Attributes of :class:`Evidence` that may not be None.
        by_image: Whether the number is a mean over images, so that reconstructions of *other* people are a chance
            level.
        about_target: Whether the number is the target's, whatever was rebuilt, so that an audit gives it once.
        slow: Whether it trains something, so that an audit runs it only when asked.
        per_image: Function behind it, ``(predictions, references, **options) -> (n,)``, where :func:`load_metric` is to
            offer its mean as an ``evaluate.Metric``; None: it is not offered.
    """

    needs: ClassVar[tuple[str, ...]] = ("evaluation_model",)
    by_image: ClassVar[bool] = True
    about_target: ClassVar[bool] = False
    slow: ClassVar[bool] = False
    per_image: ClassVar[Callable[..., Tensor] | None] = None

    @abstractmethod
    def measure(self, evidence: Evidence) -> list[Measure]:
        """The metric's numbers.

        Raises:
            ValueError: something in :attr:`needs` is missing, or shapes do not fit.
        """

    def missing(self, evidence: Evidence) -> str | None:
        """Name of the first thing in :attr:`needs` that ``evidence`` lacks; None: all is there."""
        return next((name for name in self.needs if getattr(evidence, name) is None), None)

    def require(self, evidence: Evidence) -> None:
        """Raise ``ValueError`` where something is missing."""
        name = self.missing(evidence)
        if name is not None:
            raise ValueError(f"{type(self).__name__} needs {name}, and the evidence has none; pass one to the audit")


def check_rows(labels: Tensor, **tensors: Tensor) -> None:
    """Raise ``ValueError`` unless every tensor has a finite row for each label, and there is one at all."""
    if labels.ndim != 1 or labels.dtype != torch.int64 or len(labels) == 0:
        raise ValueError(f"expected labels (n,) int64 with n >= 1, got {tuple(labels.shape)} {labels.dtype}")
    for name, tensor in tensors.items():
        if len(tensor) != len(labels):
            raise ValueError(f"expected {name} with {len(labels)} rows, one a label, got {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            rows = int((~tensor.reshape(len(tensor), -1).isfinite().all(dim=1)).sum())
            raise ValueError(
                f"{rows} of {len(tensor)} rows of {name} are not finite; look at the network and its input"
            )


METRICS: Registry[Metric] = Registry("metric", "calor_hf.metrics")
