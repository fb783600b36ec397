"""What a step, an evaluation and a checkpoint of a training run take: measured on a copy that is thrown away."""

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Subset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calor_hf.core.peak_memory import PeakMemory
from calor_hf.training.samples import some_samples
from calor_hf.training.trainer import DefenseTrainer

WARM_UP, LEAST_STEPS = 3, 5


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        step_seconds: An optimizer step, loading included.
        image_seconds: Evaluating an image.
        save_seconds: A checkpoint.
        checkpoint_bytes: Its size.
        model_bytes: The weights alone.
        memory_bytes: Peak of the process, without the copy.
    """

    step_seconds: float
    image_seconds: float
    save_seconds: float
    checkpoint_bytes: int
    model_bytes: int
    memory_bytes: int


def try_training(trainer: DefenseTrainer, seconds: float = 20.0) -> Rates:
    """Train a copy of the model for some steps, save it once and evaluate it, in a folder that is deleted afterwards.

    Args:
        trainer: Ready to train; its model is left as it is.
        seconds: About how long the steps may take.
    """
    args = copy.copy(trainer.args)
    args.eval_strategy = args.save_strategy = args.logging_strategy = "no"
    args.report_to, args.push_to_hub, args.disable_tqdm, args.resume_from_checkpoint = [], False, True, None
    clock = Clock(seconds)
    with tempfile.TemporaryDirectory() as folder, PeakMemory(trainer.args.device) as memory:
        args.output_dir = folder
        model = copy.deepcopy(trainer.model)
        weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        # The plain class: the same stages and loss, without a choice among checkpoints at the end.
        copied = DefenseTrainer(
            model=model,
            args=args,
            data_collator=trainer.data_collator,
            train_dataset=trainer.train_dataset,
            eval_dataset=trainer.eval_dataset,
            processing_class=trainer.processing_class,
            callbacks=[clock],
        )
        copied.remove_callback(PrinterCallback)
        copied.train()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        image_seconds = _evaluate(copied)
    return Rates(clock.step_seconds, image_seconds, clock.save_seconds, size, weights, max(0, memory.peak - weights))


def _evaluate(trainer: DefenseTrainer) -> float:
    data: Any = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    batch = trainer.args.per_device_eval_batch_size
    trainer.predict(some_samples(data, min(batch, len(data))))  # warms up
    some = Subset(data, range(min(len(data), 2 * batch)))
    begin = time.perf_counter()
    trainer.predict(some)
    return (time.perf_counter() - begin) / len(some)


class Clock(TrainerCallback):
    """Times steps, and the one checkpoint that it asks for before it ends the training."""

    def __init__(self, seconds: float) -> None:
        self._limit, self._ends, self._saved = seconds, [time.perf_counter()], 0.0

    @property
    def step_seconds(self) -> float:
        """Mean over the steps after the warm-up, or over all where there are no others."""
        ends = self._ends[WARM_UP:] if len(self._ends) > WARM_UP + 1 else self._ends
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    @property
    def save_seconds(self) -> float:
        """From the last step to the end of the checkpoint."""
        return max(0.0, self._saved - self._ends[-1])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the time; end where it is up."""
        self._ends.append(time.perf_counter())
        enough = len(self._ends) > WARM_UP + LEAST_STEPS and self._ends[-1] - self._ends[WARM_UP] > self._limit
        if enough or state.global_step == state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The checkpoint is written."""
        self._saved = time.perf_counter()
