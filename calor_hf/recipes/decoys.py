"""Dealing decoy identities: private images and decoys become one data folder, with a secret next to it."""

import io
import logging
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from calor_hf.core.config import setting
from calor_hf.core.decoy_sentences import SENTENCES
from calor_hf.core.files import write_json, write_whole
from calor_hf.core.fingerprints import trained_on
from calor_hf.core.label_names import telling_names
from calor_hf.data.bad_images import content_digests
from calor_hf.data.decoys import (
    ABOUT,
    IDENTITIES,
    SPLITS,
    VERDICT,
    Person,
    check_no_assignment,
    deal,
    private_members,
    secret_folder,
    shown,
    write_assignment,
    write_secret,
)
from calor_hf.data.image_grid import png
from calor_hf.data.loading import Splits
from calor_hf.data.near_duplicates import copies_of_others, one_person_twice, thumbnails
from calor_hf.data.public_images import square_pixels
from calor_hf.recipes.common import check_apart, log_to_terminal
from calor_hf.recipes.data_options import DataOptions
from calor_hf.recipes.exchangeability import check_exchangeable, exchangeability, features_of, some_images
from calor_hf.recipes.identities import training_records

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger("calor_hf.decoys")

DRAWN_IDENTITIES = 64
_OUTPUT_FILES = ("model.safetensors", "metrics.json", "trainer_state.json", "report.json")
"""Files by which a folder is known as the output of a command."""


@dataclass(frozen=True, kw_only=True)
class DealOptions(DataOptions):
    """Options of :func:`deal_decoys`.

    Raises:
        ValueError: a value is refused.
    """

    dataset: str | None = setting(
        None, "Private images, as train --dataset takes them; default: synthetic faces.", positional=True,
        metavar="PRIVATE",
    )  # fmt: skip
    pool: str | None = setting(
        None,
        "Identities to draw decoys from, read with the same options; default: synthetic faces, for synthetic ones.",
    )
    k: int = setting(4, "Identities per class, 2 to 16: the private one and k - 1 decoys.")
    output_dir: Path = setting(
        Path("outputs/decoys"),
        "Folder of the merged data; the secret is next to it, in a folder with .decoys appended.",
    )
    strata: str | None = setting(None, "Column of both sets; decoys have the private identity's value.")
    min_images: int = setting(3, "Identities with fewer images are left out, private ones too; >= 3.")
    image_size: int | None = setting(
        None, "Side of the merged images in pixels, at most that of the smallest; default: the side that all have."
    )
    same_count: bool = setting(False, "The same number of images for all classes, not for those of a class alone.")
    num_identities: int | None = setting(None, "Synthetic faces: number of private identities; default: 64.")
    model: str | None = setting(
        None, "Base model, folder or Hub id, whose features are tested too, and must not show one person twice."
    )  # fmt: skip
    accept_distinguishable_decoys: bool = setting(False, "Deal, even if decoys can be told from private identities.")
    seed: int | None = setting(None, "For tests: a seed repeats the deal, and so does everyone who guesses it.")

    def __post_init__(self) -> None:
        """Refuse values before any work."""
        super().__post_init__()
        if not 2 <= self.k <= 16:
            raise ValueError(f"--k must be in [2, 16], got {self.k}")
        if self.min_images < 3:
            raise ValueError(f"--min-images must be >= 3, one for each split, got {self.min_images}")
        if self.image_size is not None and self.image_size < 16:
            raise ValueError(f"--image-size must be >= 16, got {self.image_size}")
        if (self.dataset is None) != (self.pool is None):
            missing = "--pool" if self.pool is None else "PRIVATE"
            raise ValueError(f"private images and pool belong together, and {missing} is missing; pass both or neither")
        if self.dataset is not None and self.num_identities is not None:
            raise ValueError("--num-identities is the number of synthetic faces; leave it out with data of your own")
        if self.num_identities is not None and self.num_identities < 2:
            raise ValueError(f"--num-identities must be >= 2, got {self.num_identities}")

    @property
    def drawn(self) -> bool:
        """Whether all identities are drawn from one population by this library, so that they are exchangeable."""
        return self.dataset is None


def deal_decoys(options: DealOptions) -> Path:
    """Merge private images with decoys into one data folder, and keep apart who is who, as `decoys deal` does.

    Returns:
        The data folder, which ``train --dataset FOLDER --defense decoys`` takes.

    Raises:
        ValueError: data that cannot be dealt.
        FileExistsError: the data folder is used, or decoys were dealt into it before.
    """
    log_to_terminal()
    folder = options.output_dir
    _check_place(options)
    private, pool, sources = _people(options)
    if options.model and (known := trained_on(Path(options.model), content_digests(sources[True].train))):
        raise ValueError(
            f"--model {options.model} was trained on {known} of the private images, so it tells them from decoys, and "
            "a model that starts from it may, too; pass a base model that has seen none of these people"
        )
    seed = secrets.randbits(256) if options.seed is None else options.seed
    classes = deal(private, pool, options.k, np.random.default_rng(seed), options.same_count)
    merged = merge(classes, sources, options.image_size)
    names = [one.name for members in classes for one in members]
    check_copies(merged, names)
    images = some_images(merged)
    features = features_of(images, options.model) if options.model else None
    if features is not None:
        check_people(features, images[IDENTITIES], names)
    found = exchangeability(images, private_members(classes), options.k, options.drawn, features, options.model)
    logger.info("%s", found)
    check_exchangeable(found, options.accept_distinguishable_decoys)
    about = {
        "k": options.k,
        "classes": len(classes),
        "exchangeable_by_construction": options.drawn,
        "private_records": training_records(options.dataset, [one.name for one in private]),
    }
    if options.strata is not None:
        values = Counter(members[0].stratum for members in classes)
        about |= {"strata": options.strata, "base_rate": max(values.values()) / len(classes)}
    for split, data in merged.items():
        buffer = io.BytesIO()
        data.to_parquet(buffer)
        write_whole(folder / f"{split}.parquet", buffer.getvalue())
    write_json(folder / ABOUT, about, indent=2)
    write_assignment(folder, classes, sources={"private": options.dataset, "pool": options.pool})
    write_secret(folder, VERDICT, found.to_dict())
    counts = ", ".join(f"{len(data)} {split}" for split, data in merged.items())
    logger.info(
        "%d classes of %d identities, images: %s\ntrain on %s; %s holds the assignment: keep it secret, and back it "
        "up, as decoys of a person are fixed for life\n%s",
        *(len(classes), options.k, counts, folder, secret_folder(folder), "\n".join(SENTENCES)),
    )
    return folder


def _check_place(options: DealOptions) -> None:
    """Refuse a folder that is used, among other data or inside the output of a command."""
    folder = options.output_dir
    check_no_assignment(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; pass another --output-dir")
    for source in (options.dataset, options.pool):
        check_apart(folder, source)
    for place in secret_folder(folder).parents:
        if found := [name for name in _OUTPUT_FILES if (place / name).is_file()]:
            raise ValueError(
                f"--output-dir {folder} is inside {place}, the output of a command ({found[0]}), where the secret next "
                "to it might be published; pass another one"
            )


def _people(options: DealOptions) -> tuple[list[Person], list[Person], dict[bool, Splits]]:
    """Eligible private and pool identities, and the sets that hold their images."""
    count, keep = options.num_identities or DRAWN_IDENTITIES, [options.strata] if options.strata else []
    if options.drawn:
        both = options.load(count * options.k, options.image_size or 64, keep=keep)
        people = _identities(both, True, None)
        others = [replace(one, private=False) for one in people[count:]]
        return people[:count], others, {True: both, False: both}
    found, sources = [], {}
    for source, private in ((options.dataset, True), (options.pool, False)):
        splits = replace(options, dataset=source).load(0, keep=keep, min_images=options.min_images)
        people = _identities(splits, private, options.strata)
        eligible = [one for one in people if all(one.rows.values())]
        missing = {name: f"{images} of {options.min_images} images" for name, images in splits.left_out.items()}
        missing |= {one.name: "no image in one of the splits" for one in people if not all(one.rows.values())}
        if missing:
            whose = "private identities" if private else "identities of the pool"
            named = shown((f"{name} ({reason})" for name, reason in missing.items()), 20)
            logger.warning("%d %s are left out: %s", len(missing), whose, named)
        found.append(eligible)
        sources[private] = splits
    private_people, pool_people = found
    if len(private_people) < 2:
        raise ValueError(
            f"a classifier needs two private identities, and {len(private_people)} have enough images; lower "
            "--min-images"
        )
    both_sets = sorted({one.name for one in private_people} & set(telling_names(one.name for one in pool_people)))
    if both_sets:
        raise ValueError(
            f"{len(both_sets)} identities are in both sets ({shown(both_sets)}); remove them from the pool, as a decoy "
            "must be another person"
        )
    return private_people, pool_people, sources


def _identities(splits: Splits, private: bool, strata: str | None) -> list[Person]:
    """Each class of a set as a person.

    Raises:
        ValueError: images of a person in several strata, or without one.
    """
    parts = {split: getattr(splits, split) for split in SPLITS}
    rows: list[dict[str, list[int]]] = [{split: [] for split in SPLITS} for _ in splits.label_names]
    values: list[set[Any]] = [set() for _ in splits.label_names]
    for split, part in parts.items():
        column = [None] * len(part) if strata is None else part[strata]
        for row, (label, value) in enumerate(zip(part["label"], column, strict=True)):
            rows[label][split].append(row)
            values[label].add("" if value is None or value != value else str(value).strip())
    for name, found in zip(splits.label_names, values, strict=True):
        if strata is not None and "" in found:
            raise ValueError(f"images of {name} have no value of {strata}; give each identity one")
        if len(found) > 1:
            raise ValueError(
                f"the images of {name} have several values of {strata} ({shown(map(str, found))}); give each identity "
                "one"
            )
    return [
        Person(name, private, of_person, found.pop() or None)
        for name, of_person, found in zip(splits.label_names, rows, values, strict=True)
    ]


def merge(
    classes: Sequence[Sequence[Person]], sources: dict[bool, Splits], image_size: int | None = None
) -> dict[str, "Dataset"]:
    """Merged data of dealt classes, by split: ``image``, ``label`` and ``identities``, in the order of identities.

    All images take one path: decoded, turned upright, RGB, the middle square in one size, PNG without metadata.

    Args:
        classes: The deal.
        sources: Set of the private identities (True) and of the pool (False).
        image_size: Side in pixels; None means that of the images, which must then all have the same.

    Raises:
        ValueError: images of several sizes without ``image_size``, or smaller ones, which would be enlarged.
    """
    from datasets import ClassLabel, Dataset, Features, Image, Value

    names = [f"class_{index:03d}" for index in range(len(classes))]
    features = Features({"image": Image(), "label": ClassLabel(names=names), IDENTITIES: Value("int64")})
    members = [(label, one) for label, people in enumerate(classes) for one in people]
    sizes, merged = set[tuple[int, int]](), {}
    for split in SPLITS:
        images, labels, identities = [], [], []
        for identity, (label, one) in enumerate(members):
            data = getattr(sources[one.private], split)
            for row in one.rows[split]:
                picture = data[row]["image"]
                sizes.add(picture.size)
                pixels = square_pixels(picture, image_size or min(picture.size))
                images.append({"bytes": png(pixels, compress_level=1), "path": None})
                labels.append(label)
                identities.append(identity)
        columns = {"image": images, "label": labels, IDENTITIES: identities}
        merged[split] = Dataset.from_dict(columns, features=features)
    smallest = min(min(size) for size in sizes)
    if image_size is None and (len(sizes) > 1 or len(set(next(iter(sizes)))) > 1):
        listed = shown((f"{width} x {height}" for width, height in sorted(sizes)), 3)
        raise ValueError(f"images have the sizes {listed}; pass --image-size, at most {smallest}, for one size of all")
    if image_size is not None and smallest < image_size:
        raise ValueError(
            f"--image-size {image_size} would enlarge images of {smallest} pixels, which shows in them; pass at most "
            f"{smallest}, or remove small images"
        )
    return merged


def check_copies(merged: "dict[str, Dataset]", names: Sequence[str]) -> None:
    """Refuse images of two identities that are copies of each other; ``names`` are those of the identities.

    Raises:
        ValueError: the message names the identities.
    """
    owners = [identity for split in SPLITS for identity in merged[split][IDENTITIES]]
    pairs = copies_of_others(thumbnails(image for split in SPLITS for image in merged[split]["image"]), owners)
    _refuse_pairs({(owners[a], owners[b]) for a, b in pairs}, names, "have an image in common")


def check_people(features: Tensor, identities: Sequence[int], names: Sequence[str]) -> None:
    """Refuse two identities that the features of a network take for one person.

    Raises:
        ValueError: the message names the identities.
    """
    _refuse_pairs(one_person_twice(features, identities), names, "look like one person to --model")


def _refuse_pairs(pairs: Collection[tuple[int, int]], names: Sequence[str], reason: str) -> None:
    if pairs:
        listed = shown(f"{names[a]} and {names[b]}" for a, b in sorted(pairs))
        raise ValueError(f"{len(pairs)} pairs of identities {reason}: {listed}; remove one of each pair")
