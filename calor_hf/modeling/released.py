"""Models that load without calor_hf: the stock model, or one with the code of its head."""

import shutil
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageClassification

from calor_hf.core.files import WEIGHTS, read_json, write_json, write_whole
from calor_hf.core.saved_config import plain_processor
from calor_hf.modeling import modeling_standalone
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.modeling.modeling_defended import DefendedForImageClassification, model_class_of

MODELING_FILE = Path(modeling_standalone.__file__)
PROCESSOR = "preprocessor_config.json"
_KEPT = ("config.json", "model.safetensors.index.json", PROCESSOR)


def released_copy(folder: Path, into: Path) -> Path:
    """Copy a saved model as it is published, so that it loads with transformers alone.

    The copy is a stock model if the defense kept the classifier, else one with the code of its head.

    Returns:
        ``into``, or ``folder`` itself if it is a stock model, or of a defense that the code does not know.
    """
    config = AutoConfig.from_pretrained(folder)
    if not isinstance(config, DefendedConfig):
        return folder
    if config.make_defense().own_head:
        if config.defense not in modeling_standalone.HEADS:
            return folder
        into.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name in _KEPT or WEIGHTS.fullmatch(path.name):
                shutil.copy(path, into)
        _add_code(into)
        return into
    AutoModelForImageClassification.from_pretrained(folder, dtype="auto").to_base().save_pretrained(into)
    if (folder / PROCESSOR).is_file():
        shutil.copy(folder / PROCESSOR, into)
    return into


def save_standalone(
    model: DefendedForImageClassification,
    folder: str | PathLike[str],
    processor: Any = None,
    overwrite: bool = False,
    **kwargs: Any,
) -> None:
    """Save ``model`` so that it loads without calor_hf, with the same scores.

    If the defense left the base's modules as they were, this is the stock model (``model.to_base()``), which needs no
    code besides transformers. If it added a head (CALoR, LoFt, MID), the folder has one Python file, which Auto
    classes and ``pipeline`` read with ``trust_remote_code=True``; a program that imports calor_hf gets our own class.

    Args:
        model: The defended model.
        folder: Output folder; created if it does not exist.
        processor: Image processor to save with it, which ``pipeline`` needs.
        overwrite: Replace an existing model.
        kwargs: As for ``save_pretrained``.

    Raises:
        FileExistsError: ``folder`` holds a model already.
        ValueError: the defense has a head that the file does not know.
    """
    folder = Path(folder)
    if (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model already; choose another folder, or pass overwrite=True")
    if model.defense.own_head:
        if model.config.defense not in modeling_standalone.HEADS:
            raise ValueError(
                f"the defense '{model.config.defense}' has a head of its own that {MODELING_FILE.name} does not "
                "know; such models need calor_hf and the package that registers the defense: use save_pretrained"
            )
        model.save_pretrained(folder, **kwargs)
        _add_code(folder)
    else:
        model.to_base().save_pretrained(folder, **kwargs)
    if processor is not None:
        plain_processor(processor).save_pretrained(folder)


def _add_code(folder: Path) -> None:
    """Add the code of the head to a saved model, and name it in its configuration."""
    kind = model_class_of(AutoConfig.from_pretrained(folder).defense)
    config = read_json(folder / "config.json", {"model_type": str})
    config["auto_map"] = {
        "AutoConfig": f"{MODELING_FILE.stem}.{kind.config_class.__name__}",
        "AutoModelForImageClassification": f"{MODELING_FILE.stem}.{kind.__name__}",
    }
    write_whole(folder / MODELING_FILE.name, MODELING_FILE.read_bytes())
    write_json(folder / "config.json", config, indent=2, sort_keys=True)
