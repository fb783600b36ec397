"""What happens between the steps: fresh optimizer state, evaluation and checkpoints at the ends of stages."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from calor_hf.training.trainer import DefenseTrainer


class StageCallback(TrainerCallback):
    """Keeps a :class:`DefenseTrainer` to its plan."""

    def __init__(self, trainer: "DefenseTrainer") -> None:
        self.trainer = trainer
        self._evaluated_at = self._saved_at = -1

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the data which epoch it is: accelerate does so only in single-process runs."""
        dataset = self.trainer.train_dataset
        if hasattr(dataset, "set_epoch") and hasattr(dataset, "__len__"):
            dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A later stage starts with a fresh optimizer state: the moments belong to another loss."""
        self.trainer.begin_step()
        plan = self.trainer.plan
        starts = [stage.start for stage in plan.stages[1:]] if plan else []
        if state.global_step in starts and not self.trainer.is_deepspeed_enabled:
            self.trainer.optimizer.state.clear()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate and save where a stage ends, and regularly inside the later ones; save nothing after a NaN."""
        if self.trainer.is_checkpoint_step(state.global_step):
            control.should_log = control.should_evaluate = control.should_save = True
        matters = control.should_evaluate or control.should_save or control.should_training_stop
        if matters or control.should_log or args.device.type == "cpu":
            # On an accelerator this waits for it, so not at every step.
            self.trainer.check_finite(weights=matters)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the step."""
        self._evaluated_at = state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the step."""
        self._saved_at = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Do nothing twice where a stage and an epoch end together, and nothing after a NaN."""
        if self._evaluated_at == state.global_step:
            control.should_evaluate = False
        if self._saved_at == state.global_step:
            control.should_save = False
        if control.should_evaluate or control.should_save:
            self.trainer.check_finite(weights=True)
