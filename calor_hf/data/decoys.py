"""Decoy identities: the deal, the data that it gives, and the secret assignment next to them."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calor_hf.core.files import read_json, saving, write_json

IDENTITIES = "identities"
"""Column with the number of the identity that an image shows; identity i belongs to class i // k."""
ABOUT = "decoys.json"
"""File in the data folder that says what they are; nothing in it depends on the assignment."""
ASSIGNMENT = "assignment.json"
"""File in the secret folder that says which identities are private."""
VERDICT = "exchangeability.json"
"""File in the secret folder about :mod:`calor_hf.data.exchangeability`."""
SPLITS = ("train", "validation", "test")


# The merged data


def identities_per_class(labels: ArrayLike, identities: ArrayLike) -> int:
    """Return k of merged training data, checked.

    Args:
        labels: (images,) classes.
        identities: (images,) identities, each of the image's class.

    Raises:
        ValueError: identities that are not k per class, numbered by class, or unequal numbers of images within a class.
    """
    found, members = np.asarray(labels), np.asarray(identities)
    remedy = "make the data with calor-hf decoys deal"
    if members.dtype.kind not in "iu":
        raise ValueError(f"the column {IDENTITIES} must hold whole numbers, got {members.dtype}; {remedy}")
    classes, people = np.unique(found), np.unique(members)
    k = len(people) // max(1, len(classes))
    if not np.array_equal(people, np.arange(k * len(classes))) or not np.array_equal(members // max(1, k), found):
        raise ValueError(
            f"the {len(people)} identities of {len(classes)} classes are not k per class, numbered class by class from "
            f"0; {remedy}"
        )
    counts = np.bincount(members).reshape(len(classes), k)
    if (unequal := np.flatnonzero(counts.min(axis=1) < counts.max(axis=1))).size:
        label = unequal[0]
        raise ValueError(
            f"the identities of class {label} have {', '.join(map(str, counts[label]))} training images; they must "
            f"have equally many, or the model tells them apart: {remedy}"
        )
    return k


def is_dealt(data: str | Path) -> bool:
    """Whether ``data`` is a folder that ``calor-hf decoys deal`` wrote."""
    return (Path(data).expanduser() / ABOUT).is_file()


# The deal


@dataclass(frozen=True)
class Person:
    """An identity before or after the deal.

    Attributes:
        name: Its class name in the set it comes from.
        private: Whether it is private; else it is of the pool.
        rows: Rows of its images in that set, by split.
        stratum: Value that it shares with its decoys, or None.
    """

    name: str
    private: bool
    rows: Mapping[str, Sequence[int]]
    stratum: Any = None


def deal(
    private: Sequence[Person], pool: Sequence[Person], k: int, rng: np.random.Generator, same_count: bool = False
) -> list[list[Person]]:
    """Draw k − 1 decoys of each private identity, and cut all to the same numbers of images.

    Args:
        private: Private identities, each with an image in every split.
        pool: Identities to draw decoys from, likewise.
        k: Identities per class.
        rng: Secret random numbers.
        same_count: One number of images for all classes; else the smallest of each class.

    Returns:
        The k identities of each class; classes and members are in random order.

    Raises:
        ValueError: too few identities in a stratum of the pool.
    """
    left: dict[Any, list[Person]] = defaultdict(list)
    for index in rng.permutation(len(pool)):
        left[pool[index].stratum].append(pool[index])
    classes: list[list[Person]] = []
    for index in rng.permutation(len(private)):
        one = private[index]
        others = left[one.stratum][: k - 1]
        if len(others) < k - 1:
            wanted = (k - 1) * sum(person.stratum == one.stratum for person in private)
            there = sum(person.stratum == one.stratum for person in pool)
            where = "" if one.stratum is None else f" of the stratum {one.stratum!r}"
            raise ValueError(
                f"k={k} needs {wanted} identities{where} in the pool, and it has {there} with enough images; pass a "
                "larger --pool, a smaller --k or fewer private identities"
            )
        del left[one.stratum][: k - 1]
        members = [one, *others]
        classes.append([members[place] for place in rng.permutation(k)])
    counts = [{split: min(len(one.rows[split]) for one in members) for split in SPLITS} for members in classes]
    if same_count:
        counts = [{split: min(count[split] for count in counts) for split in SPLITS}] * len(classes)
    return [
        [replace(one, rows=_cut(one.rows, count, rng)) for one in members]
        for members, count in zip(classes, counts, strict=True)
    ]


def _cut(rows: Mapping[str, Sequence[int]], count: Mapping[str, int], rng: np.random.Generator) -> dict[str, list[int]]:
    return {split: rng.permutation(np.asarray(rows[split]))[: count[split]].tolist() for split in SPLITS}


def private_members(classes: Sequence[Sequence[Person]]) -> NDArray[np.int64]:
    """(classes,) position of the private identity among the members of each class."""
    return np.array([next(j for j, one in enumerate(members) if one.private) for members in classes])


# The secret


def secret_folder(data: str | Path) -> Path:
    """Folder of the assignment and of what depends on it: next to the data folder, never inside it."""
    place = Path(data).expanduser().resolve()
    return place.with_name(f"{place.name}.decoys")


def write_secret(data: str | Path, name: str, content: Any) -> None:
    """Write a JSON file into the secret folder, readable by its owner alone.

    Raises:
        NotSavedError: no room or no permission.
    """
    folder = secret_folder(data)
    with saving(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    before = os.umask(0o177)
    try:
        write_json(folder / name, content, indent=2)
    finally:
        os.umask(before)


@dataclass(frozen=True)
class Assignment:
    """Which identities are private.

    Attributes:
        k: Identities per class.
        private: Private identity of each class, in [0, k · classes).
        names: Names of the members of each class, in their order, in the sets that they come from.
    """

    k: int
    private: list[int]
    names: list[list[str]]


def write_assignment(data: str | Path, classes: Sequence[Sequence[Person]], **about: Any) -> None:
    """Write the assignment of dealt ``classes``, whose data are in the folder ``data``; ``about`` are more entries.

    Raises:
        FileExistsError: there is one already; it is never replaced.
    """
    check_no_assignment(data)
    k = len(classes[0])
    private = (k * np.arange(len(classes)) + private_members(classes)).tolist()
    names = [[one.name for one in members] for members in classes]
    content = {"k": k, "private": private, "names": names, "data": _digest(data), **about}
    write_secret(data, ASSIGNMENT, content)


def check_no_assignment(data: str | Path) -> None:
    """Raise ``FileExistsError`` if decoys were dealt before into the folder ``data``."""
    file = secret_folder(data) / ASSIGNMENT
    if file.exists():
        raise FileExistsError(
            f"{file} exists. The decoys of a person must stay the same: a second deal would reveal the private people, "
            "who are in both; train on the data of the first deal"
        )


def read_assignment(data: str | Path) -> Assignment:
    """Read the assignment of the data in a folder.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged, or belongs to other data.
    """
    file = secret_folder(data) / ASSIGNMENT
    if not file.is_file():
        raise FileNotFoundError(f"no assignment of decoys in {file}; pass the folder that calor-hf decoys deal wrote")
    found = read_json(file, {"k": int, "private": list[int], "names": list[list[str]], "data": str})
    if found["data"] != _digest(data):
        raise ValueError(f"{file} belongs to other data than {data}; pass the folder as calor-hf decoys deal wrote it")
    return Assignment(found["k"], found["private"], found["names"])


def _digest(data: str | Path) -> str:
    """Digest of the tables of a data folder."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update((Path(data).expanduser() / f"{split}.parquet").read_bytes())
    return digest.hexdigest()


def shown(names: Iterable[str], most: int = 5) -> str:
    """The first of some names, for messages."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
