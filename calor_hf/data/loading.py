"""Image sets from folders, parquet files and the Hub, with train, validation and test splits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from calor_hf.core.seeding import named_rng
from calor_hf.data.bad_images import without_bad_images
from calor_hf.data.public_images import PublicImages
from calor_hf.data.synthetic_faces import load_synthetic_faces

if TYPE_CHECKING:
    from datasets import Dataset

PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH = 500, 20
SYNTHETIC_IMAGES = {"train": 20, "validation": 5, "test": 10}
"""Images of each identity in the splits of the embedded default."""


@dataclass(frozen=True)
class Splits:
    """Splits with the same classes and columns ``image`` and ``label``: to learn from, to choose with, to report on."""

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    label_names: list[str]

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Refuse data whose classes are not those of a model.

        Raises:
            ValueError: other classes than the model's, or the same in another order.
        """
        names, wanted = self.label_names, list(class_names)
        if len(names) != len(wanted):
            raise ValueError(
                f"the data have {len(names)} classes, the target {len(wanted)}; pass the data it was trained on"
            )
        if set(names) == set(wanted) and names != wanted:
            raise ValueError("the target has the same class names in another order; pass the data it was trained on")


def load_splits(
    source: str | None = None, *, image_column: str | None = None, label_column: str | None = None,
    revision: str | None = None, held_out: float = 0.1, seed: int = 0, on_bad_image: str = "raise",
    num_identities: int = 64, image_size: int = 64, stream: str = "private",
) -> Splits:  # fmt: skip
    """Load a labeled image set; splits it lacks are cut from its training split, class by class.

    Args:
        source: Folder (one sub-folder a class, with or without ``train/`` and ``test/`` above; or parquet files named
            after the splits), a parquet file, a Hub id, or None for synthetic faces.
        image_column: Column with the images; None means the one that holds images.
        label_column: Column with the labels; None means the one with class labels, or ``label``.
        revision: Revision of a Hub data set.
        held_out: Share of each class's training images that a missing validation or test split takes, in (0, 1);
            at least one image.
        seed: Seed of the cut, and of the synthetic faces.
        on_bad_image: ``"raise"`` for files that cannot be decoded, or ``"skip"`` them with a warning.
        num_identities: Synthetic faces only.
        image_size: Synthetic faces only, in pixels.
        stream: Synthetic faces only: ``private``, or ``public`` for disjoint people.

    Raises:
        FileNotFoundError: ``source`` looks like a path that does not exist.
        ValueError: no image or label column, unreadable images, a class without images, a label that the training
            images lack, or too few images to cut.
    """
    if source is None:
        parts: dict[str, Any] = {
            split: load_synthetic_faces(num_identities, count, image_size, seed, split, stream)
            for split, count in SYNTHETIC_IMAGES.items()
        }
    else:
        parts = dict(_load(source, revision))
    parts = {_SPLIT_NAMES.get(name, name): part for name, part in parts.items()}
    if "train" not in parts:
        raise ValueError(f"{source} has no train split, only {', '.join(parts)}; pass one that has")
    image_column = image_column or _image_column(parts["train"])
    label_column = label_column or _label_column(parts["train"])
    parts = {name: _two_columns(part, image_column, label_column) for name, part in parts.items()}
    if source is not None:
        parts = {name: without_bad_images(part, "image", on_bad_image) for name, part in parts.items()}

    names = _label_names(parts["train"])
    parts = {name: _encoded(part, names, name) for name, part in parts.items()}
    for split in ("test", "validation"):
        if split not in parts:
            parts["train"], parts[split] = _cut(parts["train"], held_out, seed, split)
    counts = np.bincount(parts["train"]["label"], minlength=len(names))
    if (counts == 0).any():
        empty = [names[i] for i in np.flatnonzero(counts == 0)[:5]]
        raise ValueError(f"classes without a training image: {', '.join(empty)}; remove them or add images")
    return Splits(parts["train"], parts["validation"], parts["test"], names)


def load_public_images(source: str | None, image_size: int, crop: int | None = None) -> PublicImages:
    """Load the public images of an attacker.

    Args:
        source: As for :func:`load_splits`; None for drawn faces of identities that are disjoint from the private ones.
        image_size: Side in pixels.
        crop: Side of the central square that is kept, in pixels of the original.

    Raises:
        FileNotFoundError: ``source`` looks like a path that does not exist.
        ValueError: it holds no images.
    """
    if source is not None:
        return PublicImages(load_images(source), image_size, crop)
    identities = load_synthetic_faces(PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH, image_size, stream="public")
    return PublicImages(identities, image_size)


def load_images(source: str, image_column: str | None = None) -> "Dataset":
    """Images without labels, in a column ``image``, of the training split if there are several.

    The arguments are those of :func:`load_splits`.

    Raises:
        FileNotFoundError: ``source`` looks like a path that does not exist.
        ValueError: no image column, or unreadable images.
    """
    parts = dict(_load(source, None))
    images = parts.get("train", next(iter(parts.values())))
    column = image_column or _image_column(images)
    images = images.select_columns([column]).rename_columns({column: "image"})
    return without_bad_images(images, "image", "raise")


_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}


def _load(source: str, revision: str | None) -> Any:
    from datasets import load_dataset

    path = Path(source).expanduser()
    if path.is_file():
        return load_dataset(path.suffix.lstrip("."), data_files=str(path))
    if path.is_dir():
        if empty := _folders_without_images(path):
            raise ValueError(f"class folders without an image: {', '.join(empty[:5])}; remove or fill them")
        return load_dataset(str(path))
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"no folder or file {source}; pass an image folder, parquet files or a Hub data set id")
    try:
        return load_dataset(source, revision=revision)
    except Exception as error:
        raise ValueError(
            f"{source} is no folder here, and the Hub gave no data set of this name ({error}); pass the path of an "
            "image folder or parquet file, or check the id and the connection"
        ) from error


def _image_column(data: Any) -> str:
    from datasets import Image

    found = [name for name, feature in data.features.items() if isinstance(feature, Image)]
    if not found:
        raise ValueError(f"no column holds images; columns: {', '.join(data.column_names)}; pass image_column")
    return str(found[0])


def _label_column(data: Any) -> str:
    from datasets import ClassLabel

    found = [name for name, feature in data.features.items() if isinstance(feature, ClassLabel)]
    found += [name for name in ("label", "labels") if name in data.column_names]
    if not found:
        raise ValueError(f"no column holds class labels; columns: {', '.join(data.column_names)}; pass label_column")
    return str(found[0])


def _two_columns(data: Any, image_column: str, label_column: str) -> Any:
    for column in (image_column, label_column):
        if column not in data.column_names:
            raise ValueError(f"no column {column!r}; columns: {', '.join(data.column_names)}")
    return data.select_columns([image_column, label_column]).rename_columns(
        {image_column: "image", label_column: "label"}
    )


def _label_names(train: Any) -> list[str]:
    from datasets import ClassLabel

    feature = train.features["label"]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return [str(value) for value in sorted(set(train["label"]))]  # numbers with gaps, or words


def _encoded(part: Any, names: list[str], split: str) -> Any:
    from datasets import ClassLabel

    feature = part.features["label"]
    own = feature.names if isinstance(feature, ClassLabel) else None
    if own == names:
        return part
    index = {name: number for number, name in enumerate(names)}
    words = [own[value] if own else str(value) for value in part["label"]]
    if unknown := sorted(set(words) - index.keys()):
        raise ValueError(f"the {split} split has classes that the train split lacks: {', '.join(unknown[:5])}")
    part = part.remove_columns("label").add_column("label", [index[word] for word in words])
    return part.cast_column("label", ClassLabel(names=names))


def _folders_without_images(root: Path) -> list[str]:
    # An image folder's classes are its innermost folders; a set of parquet files has none with images.
    extensions = Image.registered_extensions()
    found = {}
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if not inner and Path(folder) != root:
            found[os.path.relpath(folder, root)] = any(Path(name).suffix.lower() in extensions for name in files)
    return sorted(name for name, filled in found.items() if not filled) if any(found.values()) else []


def _cut(train: Any, share: float, seed: int, split: str) -> tuple[Any, Any]:
    if not 0 < share < 1:
        raise ValueError(f"held_out must be in (0, 1), got {share}")
    labels = np.asarray(train["label"])
    taken: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            name = train.features["label"].names[label]
            raise ValueError(f"class {name} has {len(members)} training image: too few to cut a {split} split from")
        rng = named_rng(seed, "data/held-out", split, int(label))
        taken += rng.permutation(members)[: max(1, round(share * len(members)))].tolist()
    kept = np.setdiff1d(np.arange(len(labels)), taken)
    return train.select(kept), train.select(sorted(taken))
