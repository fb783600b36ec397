"""The files of a model that are published: only those on a list."""

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
from calor_hf.hub.evidence import CONFIG, CONFIG_SHAPE, Evidence, StaleRecordError, gather, read_model

logger = logging.getLogger(__name__)

WHOLE, INDEX, PROCESSOR = "model.safetensors", "model.safetensors.index.json", "preprocessor_config.json"
GRID = "grid.png"
_GENERATED = (EVIDENCE, CURVES, RECONSTRUCTIONS)


@dataclass(frozen=True)
class Release:
    """Content of a publication.

    Attributes:
        files: Content, or the file that holds it, by name in the repository.
        shows_people: Whether reconstructions of real people are included.
        telling_names: Published class names that may be names of people.
    """

    files: Mapping[str, Path | bytes]
    shows_people: bool
    telling_names: tuple[str, ...]

    @property
    def card(self) -> str:
        """Text of the model card."""
        content = self.files[CARD]
        return content.decode() if isinstance(content, bytes) else read_text(content)

    def table(self) -> str:
        """Return names and sizes of the files as text."""
        sizes = {n: len(c) if isinstance(c, bytes) else c.stat().st_size for n, c in sorted(self.files.items())}
        return "\n".join(f"  {size:>13,}  {name}" for name, size in sizes.items())


def prepare_release(
    folder: str | Path, method: str, details: CardDetails, *, measured_in: str | Path | None = None,
    report: str | Path | None = None, card: str | None = None, anonymize_labels: bool = False,
    include_reconstructions: bool = False, stale_is_error: bool = True,
) -> Release:  # fmt: skip
    """Select the files of a saved model to publish, and write its card.

    Args:
        folder: The model to publish.
        method: Docstring of the defense.
        details: Details for the card.
        measured_in: Output folder of training, if the model was converted from there into ``folder``.
        report: Report of an audit, or the audit's folder.
        card: The card so far.
        anonymize_labels: Publish numbers instead of class names.
        include_reconstructions: Publish reconstructions of real people too; synthetic ones are always published.
        stale_is_error: Whether a training record of other weights is refused, or left out with a warning.

    Raises:
        FileNotFoundError: no model, weights or report.
        ValueError: a file is damaged or about another model, or reconstructions were requested without a report.
    """
    folder, origin = Path(folder), Path(folder if measured_in is None else measured_in)
    if include_reconstructions and report is None:
        raise ValueError("there are no reconstructions without an audit; pass its folder as the report (--report)")
    saved = read_model(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in weight_files(folder)}
    try:
        evidence = gather(origin, report)
    except StaleRecordError as error:
        if stale_is_error:
            raise
        logger.warning("%s; the card will not have its numbers", error)
        evidence = gather(origin, report, use_record=False)
    config = read_json(folder / CONFIG, CONFIG_SHAPE)
    if anonymize_labels and "id2label" in config:
        config["id2label"] = {str(index): name for index, name in numbered(config["id2label"]).items()}
        config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    names = tuple(telling_names(config.get("id2label", {}).values()))
    synthetic, secret = evidence.synthetic, evidence.report is not None and evidence.report.with_decoys
    if secret and include_reconstructions:
        raise ValueError(
            "reconstructions of a model with decoys are not published: next to photographs they tell which identities "
            "are private; omit --include-reconstructions"
        )
    model = replace(
        evidence.model, architecture=saved.architecture, base_class=saved.base_class, telling_names=len(names)
    )
    evidence = replace(evidence, model=model)
    grid = (
        _grid(evidence, report)
        if report is not None and not secret and (synthetic or include_reconstructions)
        else None
    )
    if grid is not None:
        files[RECONSTRUCTIONS] = grid
    elif include_reconstructions:
        raise FileNotFoundError(
            f"no image of reconstructions ({GRID}) in the folder of the report {report}; pass the folder of the audit "
            "as it was written"
        )
    for place, name in ((folder, PROCESSOR), (origin, CURVES)):
        if (place / name).is_file():
            files[name] = place / name
    modules = _own_code(config, folder)
    files |= {name: folder / name for name in modules}
    details = replace(
        details, class_names=names, remote_code=bool(modules), curves=CURVES in files, reconstructions=grid is not None
    )
    base = details.base_model or (evidence.training.base_model if evidence.training else None) or ""
    files[CONFIG] = (json.dumps(_without_paths(config, base), indent=2, sort_keys=True) + "\n").encode()
    files[CARD] = str(build_card(evidence, method, details, card)).encode()
    files[EVIDENCE] = evidence.to_json()
    return Release(files, grid is not None and not synthetic, names)


def weight_files(folder: Path) -> list[str]:
    """Return the names of the weight files; raise ``FileNotFoundError`` if one is missing."""
    index = folder / INDEX
    names = [WHOLE]
    if index.is_file():
        shards = set(read_json(index, {"weight_map": dict[str, str]})["weight_map"].values())
        names = [INDEX, *sorted(name for name in shards if WEIGHTS.fullmatch(name))]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"no weights in {folder}: {', '.join(missing)} missing; save the model there first")
    return names


def replaces(name: str) -> bool:
    """Whether a file in a repository is deleted if a new release lacks it: weights and generated files."""
    return name in (INDEX, *_GENERATED) or WEIGHTS.fullmatch(name) is not None


def _own_code(config: dict[str, Any], folder: Path) -> list[str]:
    """Return the modules in the model's folder that the configuration's ``auto_map`` names."""
    references = [one for one in config.get("auto_map", {}).values() if isinstance(one, str) and "--" not in one]
    names = sorted({f"{one.rpartition('.')[0]}.py" for one in references})
    return [name for name in names if re.fullmatch(r"\w+\.py", name) and (folder / name).is_file()]


def _without_paths(value: Any, base: str) -> Any:
    """Replace ``_name_or_path``, which may be a local path, by ``base``."""
    if isinstance(value, dict):
        return {k: base if k == "_name_or_path" else _without_paths(v, base) for k, v in value.items()}
    return [_without_paths(one, base) for one in value] if isinstance(value, list) else value


def _grid(evidence: Evidence, report: str | Path) -> Path | None:
    attack = None if evidence.report is None else evidence.report.strongest
    home = Path(report) if Path(report).is_dir() else Path(report).parent
    grid = home / (attack.name if attack else "") / GRID
    return grid if grid.is_file() and home.resolve() in grid.resolve().parents else None
