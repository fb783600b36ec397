"""Image sets from folders, tables and the Hub, with train, validation and test splits."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calor_hf.core.label_names import class_order
from calor_hf.core.seeding import named_rng
from calor_hf.data.bad_images import without_bad_images
from calor_hf.data.folders import ARCHIVES, ImageFolder, load_labeled_folder, load_plain_folder
from calor_hf.data.labels import chosen_splits, image_column_of, labeled, only_images, with_labels
from calor_hf.data.public_images import PublicImages
from calor_hf.data.summary import Summary, summarize
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.data.tables import is_table, load_hub, load_table

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH = 500, 20
SYNTHETIC_IMAGES = {"train": 20, "validation": 5, "test": 10}
"""Images of each identity in the splits of the embedded default."""


@dataclass(frozen=True)
class Splits:
    """Splits with the same classes and columns ``image`` and ``label``: to learn from, to choose with, to report on.

    ``summary`` accounts for every file of a local set or image of another; None for drawn faces. ``left_out`` are
    classes with too few images, with the number that they have.
    """

    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    label_names: list[str]
    summary: Summary | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def check_duplicates(self) -> None:
        """Refuse images that are identical in two splits.

        Raises:
            ValueError: there are some.
        """
        if self.summary is not None and self.summary.shared:
            found = "; ".join(f"{count} of {two} in {one}" for (one, two), count in self.summary.shared.items())
            raise ValueError(
                f"the splits of {self.summary.source} share identical images ({found}), so results on them would be "
                "too good; remove them, or pass --allow-duplicates-across-splits"
            )

    def for_classes(self, class_names: Sequence[str]) -> "Splits":
        """Return the same images, with the labels of a model whose classes have these names.

        Raises:
            ValueError: other classes than the model's.
        """
        order = class_order(self.label_names, class_names, "the data")
        if order is None:
            return self
        number, names = np.argsort(order), list(class_names)
        train, validation, test = (
            with_labels(part, number[np.asarray(part["label"])].tolist(), names)
            for part in (self.train, self.validation, self.test)
        )
        return Splits(train, validation, test, names, self.summary)


def load_splits(
    source: str | None = None, *, image_column: str | None = None, label_column: str | None = None,
    splits: Mapping[str, str] | None = None, revision: str | None = None, held_out: float = 0.1, seed: int = 0,
    on_bad_image: str = "raise", num_identities: int = 64, image_size: int = 64, stream: str = "private",
    keep: Sequence[str] = (), min_images: int = 0,
) -> Splits:  # fmt: skip
    """Load a labeled image set; splits it lacks are cut from its training split, class by class.

    Args:
        source: Folder (one sub-folder per class, with or without ``train/`` and ``test/`` above), a table or a folder
            of tables named after their splits (see :mod:`calor_hf.data.tables`), a Hub id, or None for synthetic faces.
        image_column: Column with the images; None means ``image``, or the only one that holds images.
        label_column: Column with the labels; None means ``label``, or the only one with class labels.
        splits: Own name of each split to use, such as ``{"train": "train_clean"}``; None means all, which must then be
            named train, validation (val, dev, valid) and test.
        revision: Revision of a Hub data set.
        held_out: Share of each class's training images that a missing validation or test split takes, in (0, 1);
            at least one image.
        seed: Seed of the cut, and of the synthetic faces.
        on_bad_image: ``"raise"`` for files that cannot be decoded, or ``"skip"`` them with a warning.
        num_identities: Synthetic faces only.
        image_size: Synthetic faces only, in pixels.
        stream: Synthetic faces only: ``private``, or ``public`` for disjoint people.
        keep: Further columns that stay; for a folder of images, columns of its metadata files.
        min_images: Leave out classes with fewer images, or too few training images for the missing splits; 0 keeps all.

    Raises:
        FileNotFoundError: ``source`` looks like a path that does not exist.
        ValueError: no image or label column, unreadable images, a class without images, a label that the training
            images lack, or too few images to cut.
    """
    left_out: dict[str, int] = {}
    if source is None:
        if image_column or label_column or splits or revision or keep:
            raise ValueError("synthetic faces have no columns, splits or revisions to choose; pass a dataset")
        parts: dict[str, Any] = {
            split: load_synthetic_faces(num_identities, count, image_size, seed, split, stream)
            for split, count in SYNTHETIC_IMAGES.items()
        }
        found, contents, names = None, dict[str, Any](), parts["train"].features["label"].names
    else:
        if revision is not None and Path(source).expanduser().exists():
            raise ValueError(f"a revision is that of a Hub data set, and {source} is on this machine; leave it out")
        folder = _image_folder(source)
        found = load_labeled_folder(folder, label_column, keep) if folder else ImageFolder(_load(source, revision), {})
        parts, names = labeled(chosen_splits(found.parts, splits), image_column, label_column, _folder(source), keep)
        parts, contents, not_taken = _checked(parts, found, on_bad_image)
        if min_images:
            parts, contents, names, left_out = _large_enough(parts, contents, names, min_images)
    for split in ("test", "validation"):
        if split not in parts:
            digests = contents.get("train")
            kept, taken = _cut(parts["train"], held_out, seed, split, digests)
            if digests is not None:
                contents |= {"train": digests[kept], split: digests[taken]}
            parts["train"], parts[split] = parts["train"].select(kept), parts["train"].select(taken)
    counts = np.bincount(parts["train"]["label"], minlength=len(names))
    if (counts == 0).any():
        empty = [names[i] for i in np.flatnonzero(counts == 0)[:5]]
        raise ValueError(
            f"classes without a training image: {', '.join(empty)}; add images, or remove these classes (if the label "
            "column declares more classes than it holds, store class names as words instead)"
        )
    summary = None
    if found is not None:
        words = {split: [names[label] for label in part["label"]] for split, part in parts.items()}
        ordered = {split: contents[split].tolist() for split in ("train", "validation", "test")}
        summary = summarize(str(source), words, ordered, not_taken, found.notes)
        logger.info("%s", summary)
    return Splits(parts["train"], parts["validation"], parts["test"], names, summary, left_out)


def load_public_images(
    source: str | None, image_size: int, crop: int | None = None, image_column: str | None = None
) -> PublicImages:
    """Load the public images of an attacker.

    Args:
        source: As for :func:`load_splits`; None for drawn faces of identities that are disjoint from the private ones.
        image_size: Side in pixels.
        crop: Side of the central square that is kept, in pixels of the original.
        image_column: As for :func:`load_splits`.

    Raises:
        FileNotFoundError: ``source`` looks like a path that does not exist.
        ValueError: it holds no images.
    """
    if source is not None:
        images, files = load_images(source, image_column)
        return PublicImages(images, image_size, crop, files=files)
    identities = load_synthetic_faces(PUBLIC_IDENTITIES, PUBLIC_IMAGES_EACH, image_size, stream="public")
    return PublicImages(identities, image_size, drawn=True)


def load_images(source: str, image_column: str | None = None) -> tuple["Dataset", list[str]]:
    """Images without labels, in a column ``image``, of the training split if there are several; digests of the files.

    The arguments are those of :func:`load_splits`.

    Raises:
        FileNotFoundError: ``source`` looks like a path that does not exist.
        ValueError: no image column, or unreadable images.
    """
    folder = _image_folder(source)
    found = load_plain_folder(folder) if folder else ImageFolder(_load(source, None), {})
    name = "train" if "train" in found.parts else next(iter(found.parts))
    if len(found.parts) > 1 and name != "train":
        raise ValueError(f"{source} has several splits ({', '.join(found.parts)}), none named train; pass one of them")
    data = found.parts[name]
    images = only_images(data, image_column or image_column_of(data), name, _folder(source))
    images, digests = without_bad_images(images, "image", "raise")
    logger.info("%s", summarize(source, {"train": []}, {"train": digests}, found.not_taken))
    return images, digests


def _checked(
    parts: dict[str, Any], found: ImageFolder, on_bad_image: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, int]]]:
    """Readable images of each split, their digests, and the files that are not taken."""
    kept, contents, not_taken = {}, {}, dict(found.not_taken)
    for split, part in parts.items():
        kept[split], digests = without_bad_images(part, "image", on_bad_image)
        contents[split] = np.asarray(digests)
        if bad := len(part) - len(digests):
            not_taken[split] = {**not_taken.get(split, {}), "unreadable": bad}
    return kept, contents, not_taken


def _large_enough(
    parts: Mapping[str, Any], contents: Mapping[str, Any], names: Sequence[str], min_images: int
) -> tuple[dict[str, Any], dict[str, Any], list[str], dict[str, int]]:
    """Images, digests and names of classes that are large enough, and the images of each other class."""
    counts = {split: np.bincount(part["label"], minlength=len(names)) for split, part in parts.items()}
    total, missing = np.sum(list(counts.values()), axis=0), {"validation", "test"} - parts.keys()
    enough = (total >= min_images) & (counts["train"] >= 1 + len(missing))
    left_out = {name: int(count) for name, count, kept in zip(names, total, enough, strict=True) if not kept}
    kept_names, number = [name for name in names if name not in left_out], np.cumsum(enough) - 1
    if not left_out:
        return dict(parts), dict(contents), kept_names, left_out
    kept, digests = {}, {}
    for split, part in parts.items():
        labels = np.asarray(part["label"])
        rows = np.flatnonzero(enough[labels])
        kept[split] = with_labels(part.select(rows), number[labels[rows]].tolist(), kept_names)
        digests[split] = contents[split][rows]
    return kept, digests, kept_names, left_out


def _image_folder(source: str) -> Path | None:
    """Folder of image files, if ``source`` is one and does not hold tables."""
    path = Path(source).expanduser()
    return path if path.is_dir() and not is_table(path) else None


def _load(source: str, revision: str | None) -> dict[str, Any]:
    path = Path(source).expanduser()
    if path.exists() and is_table(path):
        return load_table(path)
    if path.is_file():
        if path.name.lower().endswith(ARCHIVES):
            raise ValueError(f"{path} is an archive, and archives are not read; unpack it and pass the folder")
        raise ValueError(f"{path} is a file, and no table; pass a folder of images, a table or a Hub data set id")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"no folder or file {source}; pass an image folder, parquet files or a Hub data set id")
    return load_hub(source, revision)


def _folder(source: str) -> Path | None:
    """Folder that relative paths in a table start from; None for the Hub."""
    path = Path(source).expanduser().absolute()
    return (path if path.is_dir() else path.parent) if path.exists() else None


def _cut(train: Any, share: float, seed: int, split: str, contents: Any = None) -> tuple[list[int], list[int]]:
    """Rows that stay, and rows that become ``split``; identical images stay together if that leaves enough to cut."""
    if not 0 < share < 1:
        raise ValueError(f"held_out must be in (0, 1), got {share}")
    labels = np.asarray(train["label"])
    groups = np.arange(len(labels)) if contents is None else np.unique(contents, return_inverse=True)[1]
    first, last = np.full(len(labels), labels.max(initial=0)), np.zeros(len(labels), dtype=labels.dtype)
    np.minimum.at(first, groups, labels)
    np.maximum.at(last, groups, labels)
    taken: list[int] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            name = train.features["label"].names[label]
            raise ValueError(f"class {name} has {len(members)} training image: too few to cut a {split} split from")
        rng = named_rng(seed, "data/held-out", split, int(label))
        copies: dict[int, list[int]] = {}
        for row in members:
            if first[groups[row]] == last[groups[row]]:  # an image of two classes stays
                copies.setdefault(int(groups[row]), []).append(int(row))
        sets = list(copies.values())
        if not sets or len(sets[0]) == len(members):
            sets = [[int(row)] for row in members]
        wanted, cut = max(1, round(share * len(members))), list[int]()
        for index in rng.permutation(len(sets)):
            if len(cut) < wanted and len(cut) + len(sets[index]) < len(members):
                cut += sets[index]
        taken += cut
    kept = np.setdiff1d(np.arange(len(labels)), taken)
    return kept.tolist(), sorted(taken)
