"""Image sets from folders, parquet files and the Hub, with train, validation and test splits."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calor_hf.core.seeding import sample_rng
from calor_hf.data.synthetic_faces import load_synthetic_faces

if TYPE_CHECKING:
    from datasets import Dataset

SYNTHETIC_IMAGES = {"train": 20, "validation": 5, "test": 10}
"""Images of each identity in the splits of the embedded default."""


@dataclass(frozen=True)
class Splits:
    """Splits that share their classes; columns ``image`` and ``label``.

    Attributes:
        train: To learn from.
        validation: To choose with.
        test: To report, and for nothing else.
        label_names: Name of each class.
    """

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    label_names: list[str]


def load_splits(
    source: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    revision: str | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    num_identities: int = 64,
    image_size: int = 64,
) -> Splits:
    """Load a labelled image set; splits it lacks are cut from its training split, class by class.

    Args:
        source: Folder (one sub-folder a class, with or without ``train/`` and ``test/`` above; or parquet files named
            after the splits), a parquet file, a Hub id, or None for synthetic faces.
        image_column: Column with the images; None: the one that holds images.
        label_column: Column with the labels; None: the one with class labels, or ``label``.
        revision: Of a Hub data set.
        held_out: Share of each class's training images that a missing validation or test split takes, in (0, 1);
            at least one image.
        seed: Of the cut, and of the synthetic faces.
        num_identities: Synthetic faces only.
        image_size: Synthetic faces only, in pixels.

    Raises:
        FileNotFoundError: ``source`` looks like a path and is none.
        ValueError: no image or label column, a class without images, or too few images to cut.
    """
    if source is None:
        parts: dict[str, Any] = {
            split: load_synthetic_faces(num_identities, count, image_size, seed, split)
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

    names = list(parts["train"].features["label"].names)
    for split in ("test", "validation"):
        if split not in parts:
            parts["train"], parts[split] = _cut(parts["train"], held_out, seed, split)
        elif list(parts[split].features["label"].names) != names:
            raise ValueError(f"the classes of the {split} split differ from those of the train split")
    counts = np.bincount(parts["train"]["label"], minlength=len(names))
    if (counts == 0).any():
        empty = [names[i] for i in np.flatnonzero(counts == 0)[:5]]
        raise ValueError(f"classes without a training image: {', '.join(empty)}; remove them or add images")
    return Splits(parts["train"], parts["validation"], parts["test"], names)


_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}


def _load(source: str, revision: str | None) -> Any:
    from datasets import load_dataset

    path = Path(source).expanduser()
    if path.is_file():
        return load_dataset(path.suffix.lstrip("."), data_files=str(path))
    if path.is_dir():
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
    from datasets import ClassLabel

    for column in (image_column, label_column):
        if column not in data.column_names:
            raise ValueError(f"no column {column!r}; columns: {', '.join(data.column_names)}")
    data = data.select_columns([image_column, label_column])
    if not isinstance(data.features[label_column], ClassLabel):
        data = data.class_encode_column(label_column)
    wanted = {image_column: "image", label_column: "label"}
    return data.rename_columns({old: new for old, new in wanted.items() if old != new})


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
        rng = sample_rng(seed, ("validation", "test").index(split), int(label))
        taken += rng.permutation(members)[: max(1, round(share * len(members)))].tolist()
    kept = np.setdiff1d(np.arange(len(labels)), taken)
    return train.select(kept), train.select(sorted(taken))
