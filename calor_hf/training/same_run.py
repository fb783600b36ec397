"""Description of a training run in its checkpoints; a resume that contradicts it is refused."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calor_hf.core.files import read_json, reading
from calor_hf.data.bad_images import to_rgb
from calor_hf.modeling.base_model import defense_of
from calor_hf.training.checks import readable_identities, readable_labels
from calor_hf.training.stages import StagePlan

RUN = "run.json"
"""File of a checkpoint with :func:`about_run`."""
_ARGUMENTS = ("seed", "optim", "learning_rate", "head_learning_rate", "weight_decay")
"""Training arguments whose new value the optimizer of a resumed run would not follow."""
_PICTURES, _SIDE, _NEAR = 8, 4, 4  # images per split, pixels of a side, and difference of two decoders, of 255
_SHAPE: dict[str, Any] = {
    "about": dict,
    "classes": list[str],
    "data": dict[str, dict[str, Any]],
    "stages": list[list[Any]],
    "steps_per_epoch": int | None,
}


def about_run(model: Any, args: Any, data: Mapping[str, Any], plan: StagePlan) -> dict[str, Any]:
    """Describe a run, as JSON.

    Args:
        model: The model, or a ``PeftModel`` around it: its size, its defense with all settings, and its classes count.
        args: Training arguments.
        data: Data by split, see :func:`fingerprint`.
        plan: The stages.
    """
    config = model.config
    about = {"defense": getattr(config, "defense", "none"), **defense_of(model).config.to_dict()}
    about["base model"] = getattr(config, "base_class", None) or type(model).__name__
    about["head_only"] = getattr(args, "head_only", False)
    about["number of weights"] = sum(weight.numel() for weight in model.parameters())
    names = config.id2label or {}
    described = {
        "about": about | {name: getattr(args, name, None) for name in _ARGUMENTS},
        "classes": [str(names[index]) for index in sorted(names)],
        "data": {split: fingerprint(one) for split, one in data.items()},
        "stages": [[stage.name, stage.start, stage.stop] for stage in plan.stages],
        "steps_per_epoch": plan.steps_per_epoch,
    }
    found: dict[str, Any] = json.loads(json.dumps(described))  # tuples and enumerations as they are read back
    return found


def fingerprint(dataset: Any) -> dict[str, Any]:
    """Cheap description of a dataset that is the same in every process and on every machine.

    It covers the number of samples, the labels that can be read without decoding images, in their order, and of a
    ``datasets.Dataset`` (or one behind the attribute ``images``) the look of eight images, evenly spread: 4 x 4 pixels
    each. The samples of a stream or another dataset are not examined.
    """
    labels, count = readable_labels(dataset), len(dataset) if hasattr(dataset, "__len__") else None
    named = {"labels": labels, "identities": readable_identities(dataset)}
    digests = {name: None if values is None else _digest(values) for name, values in named.items()}
    return {"samples": count, **digests, "pictures": _pictures(getattr(dataset, "images", dataset))}


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(json.dumps(values.tolist()).encode()).hexdigest()[:16]


def _pictures(dataset: Any) -> list[list[int]] | None:
    features = getattr(dataset, "features", None) or {}
    column = next((name for name, kind in features.items() if type(kind).__name__ == "Image"), None)
    if column is None or not hasattr(dataset, "with_format") or not len(dataset):
        return None
    plain = dataset.with_format(None)
    places = np.linspace(0, len(plain) - 1, min(_PICTURES, len(plain))).round().astype(int).tolist()
    images = [to_rgb(plain[index][column]).resize((_SIDE, _SIDE), 4) for index in places]  # 4: mean over boxes
    return [np.asarray(image).flatten().tolist() for image in images]


def check_same_run(place: Path, now: Mapping[str, Any], step: int | None) -> None:
    """Refuse to resume a run with other settings or data than it was started with.

    A stage in progress may become longer, or shorter if it is not past its new end; one that has not begun may change.

    Args:
        place: A checkpoint, or the folder of a finished run.
        now: :func:`about_run` of the resuming run.
        step: Optimizer steps done, or None if no stage may change.

    Raises:
        ValueError: the message names all that differs, and how; or the description is damaged.
    """
    with reading(str(place / RUN)):
        found = list(_differences(read_json(place / RUN, _SHAPE), now, step))
    if found:
        raise ValueError(
            f"{place} belongs to another run: {'; '.join(found)}. Resume with the same, or start again in another "
            "output_dir (--output-dir), or with --overwrite"
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], step: int | None) -> Iterator[str]:
    was, is_now = before["about"], now["about"]
    for name in dict.fromkeys([*was, *is_now]):
        if was.get(name) != is_now.get(name):
            yield f"{name} was {was.get(name)}, now it is {is_now.get(name)}"
    if len(before["classes"]) != len(now["classes"]):
        yield f"there were {len(before['classes'])} classes, now there are {len(now['classes'])}"
    else:
        pairs = enumerate(zip(before["classes"], now["classes"], strict=True))
        others = (f"class {index} was '{one}', now it is '{two}'" for index, (one, two) in pairs if one != two)
        yield from islice(others, 1)
    data = {split: _other_data(before["data"].get(split) or {}, found) for split, found in now["data"].items()}
    yield from (f"the {split} data {text}" for split, text in data.items() if text)
    steps, steps_now = before["steps_per_epoch"], now["steps_per_epoch"]
    if steps == steps_now:
        yield from islice(_other_stages(before["stages"], now["stages"], step), 1)
    elif not any(data.values()):
        batches = "batch size, gradient accumulation or processes differ"
        yield f"an epoch was {steps} optimizer steps, now it is {steps_now} ({batches})"


def _other_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    if before.get("samples") != now["samples"]:
        return f"had {before.get('samples')} samples, now {now['samples']}"
    if before.get("labels") != now["labels"]:
        return "have other labels, or in another order"
    if before.get("identities") != now["identities"]:
        return "have other identities, or in another order"
    one, two = (np.asarray(data.get("pictures") or [], dtype=int) for data in (before, now))
    same = one.shape == two.shape and (abs(one - two) <= _NEAR).all()
    return None if same else "have other images"


def _other_stages(before: Sequence[Any], now: Sequence[Any], step: int | None) -> Iterator[str]:
    """Compare the stages that have begun (all if ``step`` is None); the one at ``step`` may end elsewhere after it."""
    absent: Any = ["", 0, 0]
    for one, two in zip_longest(before, now, fillvalue=absent):
        name, start, stop = one[0], one[1], one[2]  # of a damaged file, `reading` names the file
        if step is not None and (start >= step or (two[:2] == [name, start] and step <= min(stop, two[2]))):
            continue
        if one != two:
            done = "" if step is None else f", and step {step} is done"
            yield f"stage '{name}' lasted from step {start} to {stop}, now '{two[0]}' from {two[1]} to {two[2]}{done}"
