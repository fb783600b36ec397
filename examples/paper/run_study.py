"""Run a study from its settings to its figure; each cell is a file, so that an interrupted study can resume.

Cells whose training failed are measured again on resuming.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from calor_hf._version import __version__
from calor_hf.core.files import (
    check_unused,
    check_writable,
    delete,
    read_json,
    remove_parts,
    write_figure,
    write_json,
    write_whole,
)
from examples.paper.lab import Lab, LabOptions, TrainingFailedError
from examples.paper.study import STUDIES, Cell, Found, Study, data_of

logger = logging.getLogger(f"calor_hf.{__name__}")  # log_to_terminal shows the messages of calor_hf

RESULT, FIGURE, TABLE = "study.json", "study.png", "study.md"
_OWN = ("cells", "audits", "models", "options.json", RESULT, FIGURE, TABLE)


def run_study(
    name: str,
    settings: dict[str, Any],
    output_dir: str | Path,
    options: LabOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Found:
    """Run the missing cells of a study, and write ``study.json``, ``study.png`` and ``study.md``.

    Args:
        name: Registered name.
        settings: Settings of the study; they override those of a quick trial.
        output_dir: Folder of the results, with ``cells`` (one file each), ``models`` and ``audits``.
        options: Sources of models, images and prior. None means the synthetic faces.
        resume: Continue the study in the folder.
        overwrite: Delete that study first.

    Returns:
        Content of ``study.json``.

    Raises:
        KeyError: unknown study.
        ValueError: invalid settings or options, or others than those of the study in the folder.
        FileExistsError: the folder has files, and neither ``resume`` nor ``overwrite`` is set.
        RuntimeError: every cell failed.
    """
    options, folder = options or LabOptions(), Path(output_dir)
    kind = STUDIES.get(name)
    config = kind.config_class.from_dict({**(kind.quick if options.quick else {}), **settings})
    lab = Lab(folder, options, kind.needs)
    study = kind(config, lab)
    cells = study.cells()
    begun = {"study": name, "settings": config.to_dict(), "options": options.to_dict()}
    _prepare(folder, json.loads(json.dumps(begun)), resume, overwrite)
    records = []
    for number, cell in enumerate(cells, 1):
        file = folder / "cells" / f"{cell.name}.json"
        done = file.is_file() and "failed" not in read_json(file, {"numbers": dict})["numbers"]
        logger.info("%s, %d of %d: %s%s", name, number, len(cells), cell.name, " (finished before)" if done else "")
        if not done:
            content = json.dumps(_measured(study, cell, begun), indent=1, allow_nan=False)
            write_whole(file, (content + "\n").encode())
        records.append(read_json(file, {"cell": str, "values": dict, "numbers": dict, "seconds": float}))
    found = {
        **json.loads(json.dumps(begun)),
        "claim": kind.claim,
        "source": kind.source,
        "version": __version__,
        "cells": [{key: record[key] for key in ("cell", "values", "numbers", "seconds")} for record in records],
    }
    if len(failed := failures(found)) == len(records):
        raise RuntimeError(f"every cell failed, the first is {failed[0]}")
    write_json(folder / RESULT, found, indent=1, allow_nan=False)
    show(kind, found, folder)
    return found


def failures(found: Found) -> list[str]:
    """Name each cell that failed, with its error."""
    return [f"{cell['cell']}: {cell['numbers']['failed']}" for cell in found["cells"] if "failed" in cell["numbers"]]


def show(kind: type[Study[Any]], found: Found, folder: Path) -> None:
    """Write figure and table."""
    from matplotlib.figure import Figure

    write_whole(folder / TABLE, (page(kind, found) + "\n").encode())
    figure = Figure(figsize=kind.size, layout="constrained")
    kind.draw(found, figure)
    write_figure(folder / FIGURE, figure)


def page(kind: type[Study[Any]], found: Found) -> str:
    """Return the table with claim, caveat, failures and settings as Markdown."""
    options = found["options"]
    parts = [f"# {found['study']}", f"The paper: {kind.claim} ({kind.source})", kind.table(found)]
    if kind.caveat:
        parts.append(kind.caveat)
    if options["quick"]:
        parts.append("**A quick trial with minimal training and attacks. The numbers mean nothing.**")
    if failed := failures(found):
        parts.append("\n".join(["Failed:\n", *(f"- {line}" for line in failed)]))
    settings = ", ".join(f"{key} = {value}" for key, value in found["settings"].items())
    seconds = sum(cell["seconds"] for cell in found["cells"])
    extra = f"; options of training: {' '.join(options['train_options'])}" if options["train_options"] else ""
    prior = f", prior {options['prior']}" if kind.needs else ""
    parts.append(
        f"On {kind.data or data_of(found)}{prior}; {settings}{extra}; seed {options['seed']}; "
        f"{seconds / 60:.1f} minutes; calor_hf {found['version']}."
    )
    return "\n\n".join(parts)


def _measured(study: Study[Any], cell: Cell, begun: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    try:
        numbers = study.measure(cell)
    except TrainingFailedError as error:
        logger.warning("%s failed: %s", cell.name, error)
        numbers = {"failed": str(error)}
    return {
        **begun,
        "cell": cell.name,
        "values": cell.values,
        "numbers": numbers,
        "seconds": time.perf_counter() - begin,
        "version": __version__,
    }


def _prepare(folder: Path, begun: dict[str, Any], resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ValueError("--resume continues the study in the output folder, --overwrite deletes it; pass one")
    if overwrite:
        delete(folder / name for name in _OWN)
    elif not resume:
        check_unused(folder, "study")
    check_writable(folder)
    remove_parts(folder)
    file = folder / "options.json"
    if file.is_file():
        before = read_json(file)
        other = [key for key in begun if before.get(key) != begun[key]]
        if other:
            was, now = ({key: one.get(key) for key in other} for one in (before, begun))
            raise ValueError(
                f"the study in {folder} was begun with {was}, now it is {now}; resume with the same, or pass another "
                "--output-dir"
            )
    write_json(file, begun, indent=1)
