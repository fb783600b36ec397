"""The embedded default data: synthetic faces of no real person, without a download."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from calor_hf.core.files import parse_json
from calor_hf.core.seeding import named_rng
from calor_hf.data.face_renderer import CHUNK, IDENTITY_NAMES, NUISANCE_NAMES, render_faces
from calor_hf.data.image_grid import png
from calor_hf.data.public_images import labeled_pixels

if TYPE_CHECKING:
    from datasets import Dataset

STREAMS = ("private", "public")
SPLITS = ("train", "validation", "test")
_RECIPE = {"images_per_identity": int, "image_size": int, "seed": int, "split": str, "stream": str}
_MOST = 1000  # images of an identity that are drawn again


def sample_identities(num_identities: int, seed: int = 0, stream: str = "private") -> Tensor:
    """Identity numbers: the truth that leakage is measured against.

    Identity i depends on (seed, stream, i) alone, so more identities keep the first ones; the streams are disjoint.

    Args:
        num_identities: Number of identities, >= 1.
        seed: Seed of the population, >= 0.
        stream: ``private`` for identities to protect, ``public`` for an attacker's prior.

    Returns:
        (num_identities, 24) float32, uniform in [-1, 1], named by ``IDENTITY_NAMES``.
    """
    _check_choice("stream", stream, STREAMS)
    _check_count("num_identities", num_identities, 1)
    rows = [
        named_rng(seed, "data/synthetic_faces/identity", stream, identity).uniform(-1, 1, len(IDENTITY_NAMES))
        for identity in range(num_identities)
    ]
    return torch.from_numpy(np.stack(rows)).float()


def sample_nuisances(
    identity: int, num_images: int, seed: int = 0, split: str = "train", stream: str = "private"
) -> Tensor:
    """Nuisance numbers of an identity's images; image j depends on (seed, stream, split, identity, j) alone.

    Args:
        identity: Index of the identity in the stream.
        num_images: Number of images, >= 1.
        seed: Seed of the population, >= 0.
        split: ``train``, ``validation`` or ``test``.
        stream: ``private`` or ``public``.

    Returns:
        (num_images, 13) float32, uniform in [-1, 1], named by ``NUISANCE_NAMES``.
    """
    _check_choice("stream", stream, STREAMS)
    _check_choice("split", split, SPLITS)
    _check_count("num_images", num_images, 1)
    rng = named_rng(seed, "data/synthetic_faces/nuisance", stream, split, identity)
    return torch.from_numpy(rng.uniform(-1, 1, (num_images, len(NUISANCE_NAMES)))).float()


def load_synthetic_faces(
    num_identities: int = 64, images_per_identity: int = 20, image_size: int = 64, seed: int = 0, split: str = "train",
    stream: str = "private",
) -> "Dataset":  # fmt: skip
    """Images of synthetic faces; the splits show the same identities in other poses, lights and expressions.

    Args:
        num_identities: Number of identities, the classes.
        images_per_identity: Number of images of each one.
        image_size: Side in pixels, >= 16.
        seed: Seed of the population, >= 0; see :func:`sample_identities` for their numbers.
        split: ``train``, ``validation`` or ``test``.
        stream: ``private`` or ``public``: disjoint identities.

    Returns:
        ``datasets.Dataset`` with ``image`` (PNG in memory) and ``label`` (``identity_000`` …), sorted by label. The
        description in its ``info`` records the arguments, for :func:`drawn_identities`.

    Raises:
        ValueError: an argument outside its range.
    """
    _check_count("images_per_identity", images_per_identity, 1)
    _check_count("image_size", image_size, 16)
    _check_choice("split", split, SPLITS)
    identities = sample_identities(num_identities, seed, stream)

    from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image

    names = [f"identity_{index:03d}" for index in range(num_identities)]
    identity = identities.repeat_interleave(images_per_identity, dim=0)
    nuisance = torch.cat(
        [sample_nuisances(index, images_per_identity, seed, split, stream) for index in range(num_identities)]
    )
    drawn: list[dict[str, bytes | None]] = []
    with torch.no_grad():
        for some_identities, some_nuisance in zip(identity.split(CHUNK), nuisance.split(CHUNK), strict=True):
            images = render_faces(some_identities, some_nuisance, image_size)
            pixels = (images * 255).round().to(torch.uint8)
            drawn += [{"bytes": png(image, compress_level=1), "path": None} for image in pixels]
    labels = torch.arange(num_identities).repeat_interleave(images_per_identity).tolist()
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    values = images_per_identity, image_size, seed, split, stream
    info = DatasetInfo(json.dumps(dict(zip(_RECIPE, values, strict=True))), features=features)
    return Dataset.from_dict({"image": drawn, "label": labels}, info=info)


@torch.no_grad()
def drawn_identities(data: "Dataset", classes: Sequence[int] | None = None) -> Tensor | None:
    """Identity numbers of the classes of drawn faces; None for all other data, whatever their names.

    The record of :func:`load_synthetic_faces` in the data set is not trusted: each image of ``classes`` (None means
    all) has to be one that the renderer draws again, up to rounding.

    Returns:
        (identities, 24) float32 as of :func:`sample_identities`, or None.
    """
    names = getattr(data.features["label"], "names", ())
    wanted = range(len(names)) if classes is None else classes
    try:
        record = parse_json(data.info.description, "the record", _RECIPE)
        count, size, seed, split, stream = (record[name] for name in _RECIPE)
        if count > _MOST or data[0]["image"].size != (size, size):
            return None
        truth = sample_identities(len(names), seed, stream)
        nuisances = {label: sample_nuisances(label, count, seed, split, stream) for label in wanted}
    except ValueError:  # not a record of a drawing
        return None
    pixels, labels = labeled_pixels(data, size, classes)
    redrawn = all(_shows(pixels[labels == label], truth[label], drawn) for label, drawn in nuisances.items())
    return truth if redrawn else None


@torch.no_grad()
def dealt_identities(data: "Dataset", names: Sequence[str], wanted: Sequence[int]) -> Tensor | None:
    """Identity numbers of drawn faces that were dealt as decoys; None for all other data.

    Names are not trusted: each image of the ``wanted`` identities is drawn again, as by :func:`drawn_identities`.

    Args:
        data: Training split, with columns ``image`` and ``identities``.
        names: Name of each identity before the deal, such as ``identity_017``.
        wanted: Identities whose images are drawn again.

    Returns:
        (identities, 24) float32 as of :func:`sample_identities`, or None.
    """
    known = [re.fullmatch("identity_([0-9]+)", name) for name in names]
    if not all(known):
        return None
    numbers = [int(match[1]) for match in known if match]
    truth, owners = sample_identities(max(numbers) + 1)[numbers], np.asarray(data["identities"])
    for identity in wanted:
        images = data.select(np.flatnonzero(owners == identity))
        pixels, _ = labeled_pixels(images, images[0]["image"].size[0])
        if len(pixels) > _MOST or not _shows(pixels, truth[identity], sample_nuisances(numbers[identity], len(pixels))):
            return None
    return truth


def _shows(pixels: Tensor, identity: Tensor, nuisances: Tensor) -> bool:
    """Whether each of (m, 3, size, size) bytes is one of the images that the renderer draws, up to rounding."""
    faces = (render_faces(identity.expand(len(nuisances), -1), nuisances, pixels.shape[-1]) * 255).round()
    return all((faces - image).abs().amax(dim=(1, 2, 3)).min() <= 1 for image in pixels)


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; pass one of {', '.join(choices)}")
