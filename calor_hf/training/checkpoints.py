"""Checkpoints of the Trainer: writing them, finding the newest complete one, and reading one into a model."""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from calor_hf.core.files import read_json, read_tensors, saving

TRAINER_STATE = "trainer_state.json"


def load_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a saved model of the same class into ``model``: all, or a ``PeftModel``'s adapter.

    Raises:
        RuntimeError: a weight is missing, left over, or of another shape.
    """
    if isinstance(model, PreTrainedModel):
        model.load_state_dict(type(model).from_pretrained(path, dtype=model.dtype).state_dict(), strict=True)
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    saved, _ = read_tensors(Path(path) / "adapter_model.safetensors")
    wrong = sorted(saved.keys() ^ get_peft_model_state_dict(model).keys())
    if wrong:
        raise RuntimeError(f"{path} is no checkpoint of this adapter: {', '.join(wrong[:5])} in one of them only")
    set_peft_model_state_dict(model, saved)


def complete_checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints in ``output_dir`` that were written to their end, oldest first."""
    return [path for path in _checkpoints(output_dir) if is_complete(path)]


def steps_done(checkpoint: str | os.PathLike[str]) -> int:
    """Optimizer steps that were done at a checkpoint."""
    return int(read_json(Path(checkpoint) / TRAINER_STATE, {"global_step": int})["global_step"])


def is_complete(folder: Path) -> bool:
    """Whether a model was saved to its end: the state, which is written last, is there and whole."""
    try:
        json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def delete_old_checkpoints(
    output_dir: str | os.PathLike[str], limit: int | None, best_steps: Collection[int | None] = ()
) -> None:
    """Keep the newest checkpoints and the best ones; delete incomplete ones, which a killed process leaves.

    Newest by step. (The Trainer of transformers goes by the time of the folder: if the clock was set back, it deletes
    the checkpoint that it has just written.)

    ``limit`` is how many to keep, as ``save_total_limit``, None or 0 for all; ``best_steps`` the steps of the best.
    """
    if not limit or limit < 0:
        return
    whole = complete_checkpoints(output_dir)
    kept = {path for path in whole if _step(path) in best_steps} | set(whole[-1:])
    for path in reversed(whole):
        if len(kept) < limit:
            kept.add(path)
    for path in _checkpoints(output_dir):
        if path not in kept:
            (path / TRAINER_STATE).unlink(missing_ok=True)  # first: half of it is not to be resumed from
            shutil.rmtree(path)


def _checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    found = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) >= 0]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str:
    """Newest of :func:`complete_checkpoints`.

    Raises:
        ValueError: the folder holds no checkpoint.
    """
    found = complete_checkpoints(output_dir)
    if not found:
        raise ValueError(f"no complete checkpoint in {output_dir} to resume from; start without resuming")
    return str(found[-1])


class CheckpointTrainer(Trainer):
    """``Trainer`` whose checkpoints are deleted in the order of steps, and read with ``from_pretrained`` and strictly.

    (The Trainer of transformers 5.23 reads the file raw and drops renamed weights: most of ViT, Swin, BEiT and DINOv2.)
    """

    @property
    def is_sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # old ones are deleted below
        try:
            with saving(self.checkpoint_folder(self.state.global_step)):
                super()._save_checkpoint(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        self._saved_at = self.state.global_step
        chosen = self.chosen_step()
        if chosen is not None:  # with save_total_limit=1 the Trainer deletes all others at the end
            self.state.best_model_checkpoint = str(self.checkpoint_folder(chosen))
        self._delete_old_checkpoints()

    def _delete_old_checkpoints(self) -> None:
        if self.args.should_save:
            best = {self.state.best_global_step, self.chosen_step()}
            delete_old_checkpoints(self.run_folder, self.args.save_total_limit, best)

    def chosen_step(self) -> int | None:
        """Step of the checkpoint that is the result so far; None if it is the last one."""
        return None

    @property
    def run_folder(self) -> Path:
        """Folder of the checkpoints: the output folder, or a trial's folder in it."""
        return Path(self._get_output_dir(trial=getattr(self, "_trial", None)))

    def checkpoint_folder(self, step: int) -> Path:
        """Folder of the checkpoint after ``step`` steps."""
        return self.run_folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"

    def save_state(self) -> None:
        """As ``Trainer.save_state``; raises ``NotSavedError`` if the disk is full or cannot be written to."""
        with saving(self.args.output_dir):
            super().save_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if model is None and not self.is_sharded:
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self.is_sharded:
            load_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()
