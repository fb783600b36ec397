"""Saving a defended model for people who have transformers alone."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

from calor_hf.core.files import write_whole
from calor_hf.modeling import modeling_standalone
from calor_hf.modeling.modeling_defended import DefendedForImageClassification

MODELING_FILE = Path(modeling_standalone.__file__)


def save_standalone(
    model: DefendedForImageClassification,
    folder: str | PathLike[str],
    processor: Any = None,
    overwrite: bool = False,
    **kwargs: Any,
) -> None:
    """Save ``model`` so that it loads without calor_hf, with the same scores.

    Where the defence left the base's modules as they were, this is the stock model (``model.to_base()``), which needs
    no code besides transformers. Where it put in a head (CALoR, LoFt, MID) the folder carries one Python file,
    which Auto classes and ``pipeline`` read with ``trust_remote_code=True``; a program that imports calor_hf
    gets our own class.

    Args:
        model: The defended model.
        folder: Where to; made if need be.
        processor: Image processor to save beside it, which ``pipeline`` needs.
        overwrite: Replace a model that is there.
        kwargs: As for ``save_pretrained``.

    Raises:
        FileExistsError: ``folder`` holds a model already.
        ValueError: the defence has a head that the file does not know.
    """
    folder = Path(folder)
    if (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model already; choose another folder, or pass overwrite=True")
    if model.defense.own_head:
        if model.config.defense_name not in modeling_standalone.HEADS:
            raise ValueError(
                f"the defence '{model.config.defense_name}' has a head of its own that {MODELING_FILE.name} does not "
                "know; such models need calor_hf and the package that registers the defence: use save_pretrained"
            )
        model.save_pretrained(folder, **kwargs)
        _add_code(folder)
    else:
        model.to_base().save_pretrained(folder, **kwargs)
    if processor is not None:
        processor.save_pretrained(folder)


def _add_code(folder: Path) -> None:
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    name = "CALoR" if config["model_type"] == "calor" else "Defended"
    config["auto_map"] = {
        "AutoConfig": f"{MODELING_FILE.stem}.{name}Config",
        "AutoModelForImageClassification": f"{MODELING_FILE.stem}.{name}ForImageClassification",
    }
    write_whole(folder / MODELING_FILE.name, MODELING_FILE.read_bytes())
    write_whole(config_file, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
