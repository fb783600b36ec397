"""Checkpoints of the Trainer: the newest that is whole, and reading one into a model."""

import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

TRAINER_STATE = "trainer_state.json"


def load_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a saved model of the same class into ``model``: all, or a ``PeftModel``'s adapter.

    Raises:
        RuntimeError: a weight is missing, left over, or of another shape.
    """
    if not isinstance(model, PreTrainedModel):
        _load_adapter(model, Path(path))
        return
    saved = type(model).from_pretrained(path, dtype=model.dtype)
    model.load_state_dict(saved.state_dict(), strict=True)


def _load_adapter(model: Any, path: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved = load_file(path / "adapter_model.safetensors")
    wrong = sorted(saved.keys() ^ get_peft_model_state_dict(model).keys())
    if wrong:
        raise RuntimeError(f"{path} is no checkpoint of this adapter: {', '.join(wrong[:5])} in one of them only")
    set_peft_model_state_dict(model, saved)


def complete_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints in ``output_dir`` that were written to their end, oldest first."""
    found = [
        path
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.name.rpartition("-")[2].isdigit() and (path / TRAINER_STATE).is_file()
    ]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str:
    """Newest of :func:`complete_checkpoints`.

    Raises:
        ValueError: there is none.
    """
    found = complete_checkpoints(output_dir)
    if not found:
        raise ValueError(f"no complete checkpoint in {output_dir} to resume from; start without resuming")
    return str(found[-1])
