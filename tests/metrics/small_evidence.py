"""Everything that a metric may look at, made up in a moment: four people of six, three reconstructions each.

Some reconstructions look like their person, some like another, so that judges take some and reject others.
"""

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from calor_hf.data.face_renderer import IDENTITY_NAMES
from calor_hf.metrics import Evidence, View

SIDE, CLASSES, WIDTH = 16, 6, 8
IDENTITIES = (0, 2, 3, 5)  # neither 0..n-1 nor all classes: a metric that counts rows instead of labels fails
IMAGES, PRIVATE = 3, 6  # of a person
HELD = 6  # of each of all six classes: 4 people × 30 images of others are tries enough to know a rate of 1 %
PUBLIC = 20  # images of no one
FAITHFULNESS = (0.9, 0.6, 0.2)  # how much of a person the first, second and third reconstruction show
NAMES = IDENTITY_NAMES[:5]

Holder = TypeVar("Holder", Evidence, View)


def small_evidence(**changes: Any) -> Evidence:
    """The same evidence in every test, with every attribute there; ``changes`` replace some."""
    rng = torch.Generator().manual_seed(5)
    faces = torch.rand(CLASSES, 3, SIDE, SIDE, generator=rng)
    labels = torch.tensor(IDENTITIES).repeat_interleave(IMAGES)
    private_labels = torch.tensor(IDENTITIES).repeat_interleave(PRIVATE)
    held_labels = torch.arange(CLASSES).repeat_interleave(HELD)
    share = torch.tensor(FAITHFULNESS).repeat(len(IDENTITIES))[:, None, None, None]
    shown = share * faces[labels] + (1 - share) * faces[labels.roll(IMAGES)]
    known: dict[str, Any] = {
        "images": noisy(shown, 0.2, rng),
        "labels": labels,
        "private_images": noisy(faces[private_labels], 0.1, rng),
        "private_labels": private_labels,
        "held_images": noisy(faces[held_labels], 0.15, rng),
        "held_labels": held_labels,
    }
    images = known["images"], known["private_images"], known["held_images"]
    for role, seed in (
        ("evaluation_model", 1),
        ("second_evaluation_model", 2),
        ("embedding", 7),
        ("extractor", 4),
        ("target", 5),
    ):
        classifies = role not in ("embedding", "extractor")
        known[role] = small_view(role, *images, seed=seed, faces=faces if classifies else None)
    numbers = 2 * torch.rand(CLASSES, len(NAMES), generator=rng) - 1
    known["true_identity"], known["enrolled_identities"] = numbers[labels], numbers
    known["identity"] = (numbers[labels] + 0.2 * torch.randn(len(labels), len(NAMES), generator=rng)).clamp(-1, 1)
    known["identity_names"] = NAMES
    known["public_images"] = noisy(torch.rand(PUBLIC, 3, SIDE, SIDE, generator=rng), 0.1, rng)
    known["attacker_scores"] = torch.rand(len(labels), generator=rng)
    known["ask"] = answers
    known["identity_labels"] = torch.arange(CLASSES)  # no decoys: an identity each
    return Evidence(**{**known, **changes})


def small_view(
    name: str, images: Tensor, private: Tensor, held: Tensor, *, seed: int = 0, faces: Tensor | None = None
) -> View:
    """Features by a random layer of three sets of images; it classifies people where it is given their ``faces``."""
    layer = torch.randn(3 * SIDE * SIDE, WIDTH, generator=torch.Generator().manual_seed(seed)) / 8
    seen = [(some - 0.5).flatten(1) @ layer for some in (images, private, held)]
    if faces is None:
        return View(name, seen[0], seen[1], held_features=seen[2])
    head = (faces - 0.5).flatten(1) @ layer
    scores = [-(torch.cdist(some, head) ** 2) for some in seen]
    return View(name, seen[0], seen[1], scores[0], scores[1], seen[2], scores[2])


def answers(images: Tensor) -> dict[str, Tensor]:
    """Outputs of a target of random layers for images."""
    layer = torch.randn(3 * SIDE * SIDE, WIDTH, generator=torch.Generator().manual_seed(5)) / 8
    features = (images - 0.5).flatten(1) @ layer
    return {"logits": features[:, :CLASSES], "code": features[:, :2].tanh(), "features": features}


def noisy(images: Tensor, scale: float, rng: torch.Generator) -> Tensor:
    """Images in [0, 1] with Gaussian noise of a standard deviation."""
    return (images + scale * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def of_rows(evidence: Evidence, rows: Tensor) -> Evidence:
    """Some reconstructions of an evidence, in a given order."""
    names = {"images", "labels", "identity", "true_identity", "attacker_scores", "features", "logits"}
    return _chosen(evidence, rows, names)


def of_private_rows(evidence: Evidence, rows: Tensor) -> Evidence:
    """Some private training images of an evidence, in a given order."""
    return _chosen(evidence, rows, {"private_images", "private_labels", "private_features", "private_logits"})


def of_held_rows(evidence: Evidence, rows: Tensor) -> Evidence:
    """Some held-out images of an evidence, in a given order."""
    return _chosen(evidence, rows, {"held_images", "held_labels", "held_features", "held_logits"})


def _chosen(holder: Holder, rows: Tensor, names: set[str]) -> Holder:
    """An evidence or a view with some rows of the tensors that are named, in its views too."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, View):
            changes[field.name] = _chosen(value, rows, names)
        elif field.name in names and value is not None:
            changes[field.name] = value[rows]
    return dataclasses.replace(holder, **changes)
