"""Measures of a model with decoys on real images: false accepts, enrolment, and attributes that the k share."""

import math

import torch
from torch import Tensor

from calor_hf.auditing.networks import Network
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.core.report import Measure
from calor_hf.core.report_text import percent
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.metrics.enrolment import enrolment
from calor_hf.metrics.false_accepts import false_accepts
from calor_hf.metrics.identification_game import log_odds

STRANGERS, IMAGES_EACH = 20, 10
"""Drawn strangers, and images of each."""


def real_people(
    target: Network, private: PrivateImages, held_logits: Tensor | None, public: Tensor | None
) -> list[Measure]:
    """Measures by the target's scores of images that it was not trained on; nothing for data without decoys.

    Args:
        target: The attacked model.
        private: Private images and decoys.
        held_logits: (h, classes) the model's logits of the private images that it was not trained on, or None.
        public: (n, 3, height, width) images of strangers, or None; strangers to drawn faces are drawn.

    Returns:
        ``false_accepts/decoys``, ``enrolment_auc/decoys``, both again for ``strangers``, and the shared attribute.
    """
    decoys, labels = private.decoys, private.held_labels
    if decoys is None or held_logits is None or labels is None:
        return []
    claimed, surest = log_odds(held_logits, labels), (_surest(held_logits), labels)
    theirs = _logits(target, decoys.held_images)
    own_class = log_odds(theirs, decoys.class_of[decoys.held_labels])
    found = [
        false_accepts(claimed, own_class, decoys.held_labels, "decoys", "test images of decoys, by their own class"),
        enrolment(surest, (_surest(theirs), decoys.held_labels), "decoys", "private against decoy; has to include 0.5"),
    ]
    others = strangers(private, public)
    if others is None:
        reason = "not measured: no images of strangers; pass --public-dataset"
        names = ("false_accepts/strangers", "enrolment_auc/strangers")
        found += [Measure(name, math.nan, "share", "neither", 0, 0).failed(reason) for name in names]
    else:
        scores, note = _surest(_logits(target, others[0])), "images of strangers, by the class that likes them most"
        found += [
            false_accepts(claimed, scores, others[1], "strangers", note),
            enrolment(surest, (scores, others[1]), "strangers", "private against never enrolled: membership"),
        ]
    return found + _attribute(private)


def strangers(private: PrivateImages, public: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Images of people that the model does not know, and their numbers; images of unknown people count as one each."""
    side = private.images.shape[-1]
    if private.drawn:
        return labeled_pixels(load_synthetic_faces(STRANGERS, IMAGES_EACH, side, stream="public"), side)
    return None if public is None else (public, torch.arange(len(public)))


def _attribute(private: PrivateImages) -> list[Measure]:
    """Measure of the attribute that the strata disclose; the metric ``attributes`` measures those of drawn faces."""
    decoys, people = private.decoys, len(private.label_names)
    if decoys is not None and decoys.strata:
        rate = percent(decoys.base_rate, 0)
        note = f"all people of a class share it, so it is disclosed with certainty; base rate {rate}"
        return [Measure(f"attribute_accuracy[{decoys.strata}]", 1.0, "share", "leakage", 0, people, note=note)]
    if private.drawn:
        return []
    reason = "not measured: no column says an attribute of these people (decoys deal --strata)"
    return [Measure("attribute_accuracy", math.nan, "share", "leakage", 0, people).failed(reason)]


def _logits(target: Network, images: Tensor) -> Tensor:
    logits = target.outputs(images)[1]
    assert logits is not None  # of a target
    return logits


def _surest(logits: Tensor) -> Tensor:
    """(n,) log-odds of the class that the model takes each image for."""
    return log_odds(logits, logits.argmax(dim=1))
