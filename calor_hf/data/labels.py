"""Splits, columns and labels of tables: one image and one class per row, classes matched by name across splits."""

import logging
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calor_hf.data.decoys import IDENTITIES
from calor_hf.data.folders import SPLIT_NAMES

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_LABEL_COLUMNS = ("labels", "cls")  # without declared classes; cls is that of webdataset
_LABEL_TYPES = ("bool", "int", "uint", "float", "string", "large_string", "null")


def chosen_splits(parts: Mapping[str, Any], chosen: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the splits ``train``, ``validation`` and ``test`` of a set, as far as it has them.

    Args:
        parts: The set, by its own names.
        chosen: Own name of each split to use; None means all, by their names.

    Raises:
        ValueError: an unknown name, a name used twice, or no training split.
    """
    listed = ", ".join(parts)
    if chosen:
        if unknown := [f"{split}={name}" for split, name in chosen.items() if split not in SPLITS or name not in parts]:
            raise ValueError(
                f"--splits {unknown[0]}: expected train=NAME, validation=NAME or test=NAME with names of: {listed}"
            )
        if len(set(chosen.values())) < len(chosen):
            raise ValueError(f"--splits uses one split twice, got {dict(chosen)}; pass each once, and leave others out")
        parts = {split: parts[name] for split, name in chosen.items()}
    found: dict[str, Any] = {}
    for name, part in parts.items():
        split = SPLIT_NAMES.get(name.lower())
        if split is None or split in found:
            reason = "is not train, validation or test" if split is None else f"is a second {split} split"
            raise ValueError(
                f"the split {name!r} {reason} (splits: {listed}); choose those to use by name, such as "
                f"--splits train={next(iter(parts))}; a validation or test split left out is cut from it"
            )
        found[split] = part
    if "train" not in found:
        raise ValueError(
            f"no train split, only {listed}; pass a set that has one, or --splits train={next(iter(parts))}"
        )
    return found


def labeled(
    parts: Mapping[str, "Dataset"], image_column: str | None = None, label_column: str | None = None,
    folder: Path | None = None, keep: Sequence[str] = (),
) -> tuple[dict[str, "Dataset"], list[str]]:  # fmt: skip
    """Reduce each split to columns ``image`` and ``label``, with the same classes in the same order.

    Classes and their order are those of the training split; labels of the others are matched by name. Whole numbers
    (also as floating-point numbers), booleans and words serve as class names if the column declares none.

    Args:
        parts: Splits, among them ``train``.
        image_column: Column with the images; None means ``image``, or the only one with images.
        label_column: Column with the labels; None means ``label``, or the only one with declared classes.
        folder: Folder that relative paths of images start from; None means that the table is not a local one.
        keep: Further columns that stay; ``identities`` always does.

    Returns:
        The splits, and the class names.

    Raises:
        ValueError: no such column or several, a row without exactly one class, or a class that the training split
            lacks.
    """
    from datasets import concatenate_datasets

    parts = {split: part.with_format(None) for split, part in parts.items()}
    image_column = image_column or image_column_of(parts["train"])
    label_column = label_column or _label_column(parts["train"])
    read = {split: _row_classes(part, label_column, split, parts) for split, part in parts.items()}
    names = read["train"][1]
    number = {_normal(name): index for index, name in enumerate(names)}
    if len(number) < len(names):
        twin = next(name for index, name in enumerate(names) if number[_normal(name)] != index)
        raise ValueError(
            f"the classes {twin!r} and {names[number[_normal(twin)]]!r} differ only in spaces or in the encoding of "
            "letters; give them one name"
        )
    result = {}
    for split, part in parts.items():
        rows, own = read[split]
        unknown = list(dict.fromkeys(own[row] for row in rows if _normal(own[row]) not in number))
        if unknown:
            raise ValueError(
                f"the {split} split has classes that the train split lacks: {', '.join(unknown[:5])} (train has "
                f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}); use the same class names in both, add "
                f"training images{_leave_out(split, parts)}"
            )
        images = only_images(part, image_column, split, folder)
        kept = [*keep, *({IDENTITIES} & set(part.column_names))]
        for column in keep:
            _check_column(part, column, split)
        if kept:
            images = concatenate_datasets([images, part.select_columns(kept)], axis=1)
        result[split] = with_labels(images, [number[_normal(own[row])] for row in rows], names)
    return result, names


def with_labels(images: "Dataset", labels: Sequence[int], names: Sequence[str]) -> "Dataset":
    """Return ``images`` with a new column ``label`` of the classes ``names``."""
    from datasets import ClassLabel

    kept = images.remove_columns("label") if "label" in images.column_names else images
    return kept.add_column("label", list(labels)).cast_column("label", ClassLabel(names=list(names)))


def image_column_of(data: "Dataset") -> str:
    """Return the column with the images: ``image``, or the only one that holds images.

    Raises:
        ValueError: no column holds images, or several do.
    """
    found = [name for name, feature in data.features.items() if _holds_images(feature)]
    if "image" in data.column_names:
        return "image"
    return _only(found, data, "images", "--image-column", "image")


def _label_column(data: "Dataset") -> str:
    from datasets import ClassLabel

    if "label" in data.column_names:
        return "label"
    found = [name for name, feature in data.features.items() if isinstance(feature, ClassLabel)]
    found = found or [name for name in _LABEL_COLUMNS if name in data.column_names]
    return _only(found, data, "class labels", "--label-column", "label")


def _only(found: list[str], data: "Dataset", what: str, option: str, name: str) -> str:
    if len(found) == 1:
        return found[0]
    problem = f"several columns hold {what}: {', '.join(found)}" if found else f"no column holds {what}"
    raise ValueError(f"{problem}; columns: {', '.join(data.column_names)}; choose one with {option}, or name it {name}")


def _holds_images(feature: Any) -> bool:
    from datasets import Image

    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def only_images(data: "Dataset", column: str, split: str = "train", folder: Path | None = None) -> "Dataset":
    """Return the images alone, decoded, in a column ``image``; paths of files and encoded bytes become images.

    Raises:
        ValueError: no such column, or another type.
    """
    from datasets import Image

    _check_column(data, column, split)
    images = data.select_columns([column]).rename_columns({column: "image"})
    feature = data.features[column]
    kind = str(getattr(feature, "dtype", ""))
    if kind in ("string", "large_string"):
        if folder is None:
            raise ValueError(
                f"the column {column!r} of the {split} split holds words, not images: paths of files are read in local "
                "tables only; store the images, or choose another column with --image-column"
            )
        images = images.map(_located, input_columns=["image"], fn_kwargs={"folder": str(folder)})
    elif not (_holds_images(feature) or kind in ("binary", "large_binary")):
        raise ValueError(
            f"the column {column!r} of the {split} split holds {feature}, expected images, their encoded bytes (PNG, "
            "JPEG, ...), or paths of files; store images, or choose another column with --image-column"
        )
    return images.cast_column("image", Image())


def _located(path: str | None, folder: str) -> dict[str, str | None]:
    return {"image": None if path is None else str(Path(folder, path))}


def _check_column(data: "Dataset", column: str, split: str) -> None:
    if column not in data.column_names:
        raise ValueError(f"the {split} split has no column {column!r}; columns: {', '.join(data.column_names)}")


def _row_classes(data: "Dataset", column: str, split: str, parts: Mapping[str, Any]) -> tuple[list[int], list[str]]:
    """Index into the class names for each row, and the names, in order."""
    from datasets import ClassLabel, Value

    _check_column(data, column, split)
    feature = data.features[column]
    declared = list(feature.names) if isinstance(feature, ClassLabel) else None
    values = data.select_columns([column]).with_format("arrow")[:][column].to_pylist() if len(data) else []
    remedy = f"correct or remove such rows{_leave_out(split, parts)}"
    if not isinstance(feature, ClassLabel | Value) or feature.dtype.rstrip("0123456789") not in _LABEL_TYPES:
        example = f"{values[0]!r:.60}" if values else "no row"
        raise ValueError(
            f"the label column {column!r} of the {split} split must hold one class per row, a whole number, word or "
            f"truth value, but row 0 holds {example} (type {feature}); images with several labels are not supported, "
            "and of one-hot labels store the position of the 1; or choose another column with --label-column"
        )
    problems = [(row, problem) for row, value in enumerate(values) if (problem := _problem(value, declared))]
    if problems:
        row, problem = problems[0]
        more = f" ({len(problems)} of {len(values)} rows are such)" if len(problems) > 1 else ""
        raise ValueError(f"row {row} of the {split} split {problem}, in the label column {column!r}{more}; {remedy}")
    if declared is not None:
        return values, declared
    if feature.dtype.startswith("float"):
        values = [int(value) for value in values]
    order = sorted(set(values))
    index = {value: number for number, value in enumerate(order)}
    return [index[value] for value in values], [str(value) for value in order]


def _problem(value: Any, declared: list[str] | None) -> str | None:
    """Return why a label is not the name or number of a class."""
    if (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    ):
        return "has no label"
    if isinstance(value, str):
        return None
    if value < 0:
        return f"has the label {value:g}, which stands for no label (classes are numbered from 0)"
    if isinstance(value, float) and not value.is_integer():
        return f"has the label {value:g}, which is not a whole number"
    if declared is not None and value >= len(declared):
        return f"has the label {value}, and the column declares {len(declared)} classes (0 to {len(declared) - 1})"
    return None


def _leave_out(split: str, parts: Mapping[str, Any]) -> str:
    """Remedy of leaving out a split that is not the training split."""
    if split == "train":
        return ""
    kept = " ".join(f"{name}=NAME" for name in parts if name != split)
    return f", or leave that split out with --splits {kept} (a missing one is cut from the training images)"


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()
