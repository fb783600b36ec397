"""Saving a defended model for people who have transformers alone."""

from os import PathLike
from pathlib import Path
from typing import Any

from calor_hf.modeling.modeling_defended import DefendedForImageClassification
from calor_hf.modeling.own_code import MODELING_FILE, add_code, knows


def save_standalone(
    model: DefendedForImageClassification,
    folder: str | PathLike[str],
    processor: Any = None,
    overwrite: bool = False,
    **kwargs: Any,
) -> None:
    """Save ``model`` so that it loads without calor_hf, with the same scores.

    Where the defense left the base's modules as they were, this is the stock model (``model.to_base()``), which needs
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
        ValueError: the defense has a head that the file does not know.
    """
    folder = Path(folder)
    if (folder / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{folder} holds a model already; choose another folder, or pass overwrite=True")
    if model.defense.own_head:
        if not knows(model.config.defense_name):
            raise ValueError(
                f"the defense '{model.config.defense_name}' has a head of its own that {MODELING_FILE.name} does not "
                "know; such models need calor_hf and the package that registers the defense: use save_pretrained"
            )
        model.save_pretrained(folder, **kwargs)
        add_code(folder)
    else:
        model.to_base().save_pretrained(folder, **kwargs)
    if processor is not None:
        processor.save_pretrained(folder)
