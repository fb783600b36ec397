"""A Trainer that keeps the newest checkpoints, reads them whole, and says what to do where they cannot be written."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from calor_hf.core.files import saving
from calor_hf.training.checkpoints import delete_old_checkpoints, load_weights
from calor_hf.training.publishing import PublishingTrainer


class SavingTrainer(PublishingTrainer):
    """``Trainer`` whose old checkpoints are deleted in the order of steps, and that explains a full disk.

    Checkpoints are read with ``from_pretrained`` and strictly. (The Trainer of transformers 5.23 reads the file raw
    and drops what was renamed: most weights of ViT, Swin, BEiT and DINOv2.)
    """

    @property
    def bare_model(self) -> Any:
        """The model, or what a ``PeftModel`` has inside: attributes that are set have to be set there."""
        inside = getattr(self.model, "get_base_model", None)
        return self.model if inside is None else inside()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``."""
        result = super().train(*args, **kwargs)
        self._delete_old_checkpoints()  # a process that was killed at that may have left some
        return result

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """As ``Trainer.save_model``.

        Raises:
            NotSavedError: the disk is full, or not to be written to.
        """
        with saving(output_dir or self.args.output_dir):
            super().save_model(output_dir, *args, **kwargs)

    def save_state(self) -> None:
        """As ``Trainer.save_state``.

        Raises:
            NotSavedError: the disk is full, or not to be written to.
        """
        with saving(self.args.output_dir):
            super().save_state()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # old ones are deleted below
        try:
            with saving(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"):
                super()._save_checkpoint(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        self._delete_old_checkpoints()

    def _delete_old_checkpoints(self) -> None:
        if self.args.should_save:
            delete_old_checkpoints(self.args.output_dir, self.args.save_total_limit, self.state.best_global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._reads_plain_checkpoints(model):
            load_weights(self.model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._reads_plain_checkpoints(None):
            load_weights(self.model, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _reads_plain_checkpoints(self, model: Any) -> bool:
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return model is None and not sharded and isinstance(self.bare_model, PreTrainedModel)
