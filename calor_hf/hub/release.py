"""The files of a model that are published: those on a list, and nothing else that lies beside them."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calor_hf.core.files import WEIGHTS, read_json, read_text
from calor_hf.core.label_names import numbered, telling_names
from calor_hf.hub.card import CARD, CURVES, EVIDENCE, RECONSTRUCTIONS, CardDetails, build_card
from calor_hf.hub.evidence import (
    CONFIG,
    CONFIG_SHAPE,
    GRID,
    StaleRecordError,
    gather,
    read_model,
    strongest,
    synthetic,
    to_json,
)

logger = logging.getLogger(__name__)

WHOLE, INDEX, PROCESSOR = "model.safetensors", "model.safetensors.index.json", "preprocessor_config.json"
_GENERATED = (EVIDENCE, CURVES, RECONSTRUCTIONS)


@dataclass(frozen=True)
class Release:
    """What is to be published.

    Attributes:
        files: Content, or the file that has it, by name in the repository.
        shows_people: Whether images rebuilt of real people are among them.
        telling_names: Class names among them that may be people's.
    """

    files: Mapping[str, Path | bytes]
    shows_people: bool
    telling_names: tuple[str, ...]

    @property
    def card(self) -> str:
        """The model card."""
        content = self.files[CARD]
        return content.decode() if isinstance(content, bytes) else read_text(content)

    def table(self) -> str:
        """Names and sizes of the files."""
        sizes = {n: len(c) if isinstance(c, bytes) else c.stat().st_size for n, c in sorted(self.files.items())}
        return "\n".join(f"  {size:>13,}  {name}" for name, size in sizes.items())


def prepare_release(
    folder: str | Path,
    method: str,
    details: CardDetails,
    *,
    measured_in: str | Path | None = None,
    report: str | Path | None = None,
    card: str | None = None,
    anonymize_labels: bool = False,
    include_reconstructions: bool = False,
    stale_is_error: bool = True,
) -> Release:
    """Choose what is published of a saved model, and write its card.

    Args:
        folder: The model as it is to be published.
        method: Docstring of the defense.
        details: For the card.
        measured_in: Folder that training left, if the model was converted into ``folder`` from there.
        report: Report of an audit, or the audit's folder.
        card: The card so far.
        anonymize_labels: Numbers instead of class names.
        include_reconstructions: Show what was rebuilt of real people too; drawn ones are shown anyway.
        stale_is_error: Whether a training record of other weights is refused, or left out with a warning.

    Raises:
        FileNotFoundError: no model, weights or report.
        ValueError: a file is damaged, or about another model; reconstructions were asked for without a report.
    """
    folder, origin = Path(folder), Path(folder if measured_in is None else measured_in)
    read_model(folder)
    if include_reconstructions and report is None:
        raise ValueError("there are no reconstructions without an audit; pass its folder as the report (--report)")
    files: dict[str, Path | bytes] = {name: folder / name for name in weight_files(folder)}
    try:
        evidence = gather(origin, report)
    except StaleRecordError as error:
        if stale_is_error:
            raise
        logger.warning("%s; the card will not have its numbers", error)
        evidence = gather(origin, report, use_record=False)
    config = read_json(folder / CONFIG, CONFIG_SHAPE)
    evidence["model"] |= {"class": (config.get("architectures") or ["?"])[0], "base_class": config.get("base_class")}
    if anonymize_labels and "id2label" in config:
        config["id2label"] = {str(index): name for index, name in numbered(config["id2label"]).items()}
        config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    names = tuple(telling_names(config.get("id2label", {}).values()))
    base = details.base_model or evidence["model"]["base_model"] or ""
    drawn = synthetic(evidence)
    evidence["model"]["telling_names"] = len(names)
    grid = _grid(evidence, report) if report is not None and (drawn or include_reconstructions) else None
    if grid is not None:
        files[RECONSTRUCTIONS] = grid
    elif include_reconstructions:
        raise FileNotFoundError(
            f"no image of reconstructions ({GRID}) beside the report {report}; pass the folder of the audit as "
            "it was written"
        )
    for place, name in ((folder, PROCESSOR), (origin, CURVES)):
        if (place / name).is_file():
            files[name] = place / name
    modules = _own_code(config, folder)
    files |= {name: folder / name for name in modules}
    details = replace(
        details, class_names=names, remote_code=bool(modules), curves=CURVES in files, reconstructions=grid is not None
    )
    files[CONFIG] = (json.dumps(_without_paths(config, base), indent=2, sort_keys=True) + "\n").encode()
    files[CARD] = str(build_card(evidence, method, details, card)).encode()
    files[EVIDENCE] = to_json(evidence)
    return Release(files, grid is not None and not drawn, names)


def weight_files(folder: Path) -> list[str]:
    """Names of the files with the weights.

    Raises:
        FileNotFoundError: there are none, or one is missing.
    """
    index = folder / INDEX
    names = [WHOLE]
    if index.is_file():
        shards = set(read_json(index, {"weight_map": dict[str, str]})["weight_map"].values())
        names = [INDEX, *sorted(name for name in shards if WEIGHTS.fullmatch(name))]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"no weights in {folder}: {', '.join(missing)} missing; save the model there first")
    return names


def replaces(name: str) -> bool:
    """Whether a file in a repository gives way if a new release lacks it: weights and what goes with the card."""
    return name in (INDEX, *_GENERATED) or WEIGHTS.fullmatch(name) is not None


def _own_code(config: dict[str, Any], folder: Path) -> list[str]:
    """Modules that the configuration says the model's code is in, where they lie beside it."""
    references = [one for one in config.get("auto_map", {}).values() if isinstance(one, str) and "--" not in one]
    names = sorted({f"{one.rpartition('.')[0]}.py" for one in references})
    return [name for name in names if re.fullmatch(r"\w+\.py", name) and (folder / name).is_file()]


def _without_paths(value: Any, base: str) -> Any:
    """The configuration without ``_name_or_path``, which may be a path of this machine; ``base`` in its place."""
    if isinstance(value, dict):
        return {k: base if k == "_name_or_path" else _without_paths(v, base) for k, v in value.items()}
    return [_without_paths(one, base) for one in value] if isinstance(value, list) else value


def _grid(evidence: dict[str, Any], report: str | Path) -> Path | None:
    audit = evidence["audit"]
    attack = None if audit is None else strongest(audit)
    home = Path(report) if Path(report).is_dir() else Path(report).parent
    grid = home / (attack["name"] if attack else "") / GRID
    return grid if grid.is_file() and home.resolve() in grid.resolve().parents else None
