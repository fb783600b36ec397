"""`calor-hf plan train`: what the stages, evaluations and checkpoints of a training run will take."""

import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from calor_hf.recipes.plan import Part, Plan
from calor_hf.recipes.train import defended_trainer, load_parts
from calor_hf.recipes.train_arguments import DataArguments, ModelArguments, defense_settings, parse
from calor_hf.training.arguments import CALoRTrainingArguments
from calor_hf.training.calor_trainer import CALoRTrainer
from calor_hf.training.plan import PlannedStage
from calor_hf.training.trainer import DefenseTrainer
from calor_hf.training.trial import Rates, try_training


def plan_training(words: Sequence[str], processes: int = 1, seconds: float = 20.0) -> Plan:
    """What ``calor-hf train`` with these options will take.

    Args:
        words: Options of ``calor-hf train``.
        processes: That would share each batch.
        seconds: About how long the trial may take.
    """
    model_args, data_args, _, args = parse(words)
    with tempfile.TemporaryDirectory() as folder:  # a trainer makes its folder when it is made
        args.push_to_hub, args.output_dir = False, folder
        return _plan(model_args, data_args, args, processes, seconds)


def _plan(
    model_args: ModelArguments, data_args: DataArguments, args: CALoRTrainingArguments, processes: int, seconds: float
) -> Plan:
    begin = time.perf_counter()
    base, data, common = load_parts(model_args, data_args, args)
    if model_args.defense == "none":
        trainer = DefenseTrainer(model=base, args=args, **common)
    else:  # as if the base knew nothing: the rank is not looked for, which takes long
        trainer = defended_trainer(base, model_args, args, data, common, False)
    loaded = time.perf_counter() - begin
    rates = try_training(trainer, seconds)
    trainer.planned_values()
    run = Run(trainer, model_args, rates, processes)
    parts = [Part("loading", loaded), *run.rank(), *run.undefended(), *run.stages(), run.end(len(data["test"]))]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assumptions = [f"steps as long as those of a trial ({batch} images a device each)"]
    if processes > 1:
        assumptions.append(f"{processes} processes with devices like this one; their communication costs nothing")
    if isinstance(trainer, CALoRTrainer):
        assumptions.append("the adapt stage stops by rule: after one epoch at the earliest")
    return Plan("train", parts, rates.memory_bytes, run.disk_bytes(), args.device.type, processes, assumptions)


class Run:
    """The parts of a training run, from what was measured."""

    def __init__(self, trainer: DefenseTrainer, model_args: ModelArguments, rates: Rates, processes: int) -> None:
        self.trainer, self.model_args, self.rates, self.processes = trainer, model_args, rates, processes
        args, plan = trainer.args, trainer.plan
        assert plan is not None  # planned_values was called
        data: Any = trainer.train_dataset
        self.plan, self.train_images = plan, len(data)
        self.validation = 0 if trainer.eval_dataset is None else len(trainer.eval_dataset)
        self.samples = min(self.train_images, getattr(args, "confidence_samples", 2048))
        self.batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self.per_epoch = plan.steps_per_epoch or plan.total_steps
        self.adapts = isinstance(trainer, CALoRTrainer)

    def steps(self, count: float) -> int:
        """Steps that each process makes; a number of steps that was asked for does not shrink."""
        shared = 1 if self.trainer.args.max_steps > 0 else self.processes
        return math.ceil(count / shared)

    def looked_at(self, images: int) -> float:
        """Seconds of an evaluation that the processes share."""
        return images * self.rates.image_seconds / self.processes

    def part(self, name: str, steps: float, evaluations: int, also: int = 0, saves: int = 0) -> Part:
        """Steps, and after some of them an evaluation of the validation split, ``also`` training images, a save."""
        done = self.steps(steps)
        looked = evaluations * (self.validation + also)
        seconds = done * self.rates.step_seconds + self.looked_at(looked) + saves * self.rates.save_seconds
        trained = done * self.batch * self.processes
        return Part(name, seconds, passes={"model_forward": trained + looked, "model_backward": trained})

    def regular(self, strategy: Any, interval: float, steps: float) -> int:
        """How often something is done in so many steps by a strategy of ``Trainer``."""
        name = str(getattr(strategy, "value", strategy))
        if name == "epoch":
            return math.ceil(steps / self.per_epoch)
        return int(steps // interval) if name == "steps" and interval >= 1 else 0

    def ordinary(self, name: str, steps: float) -> Part:
        """A stage with evaluations and checkpoints as the options say."""
        args = self.trainer.args
        evaluations = self.regular(args.eval_strategy, args.eval_steps or 0, steps)
        return self.part(name, steps, evaluations, 0, self.regular(args.save_strategy, args.save_steps, steps))

    def rank(self) -> list[Part]:
        """Looking for the rank of the head, where that is asked for."""
        model = self.model_args
        trained = model.model is not None or model.undefended_epochs > 0
        low_rank = getattr(self.trainer.model.config, "rank", None) is not None
        if not (trained and low_rank and defense_settings(model).get("rank") is None):
            return []
        images = self.train_images + self.validation
        note = "the features alone; the small heads that are trained on them are not counted"
        return [Part("rank", images * self.rates.image_seconds, passes={"model_forward": images}, note=note)]

    def undefended(self) -> list[Part]:
        """The ordinary fine-tune before the defended one."""
        epochs = self.model_args.undefended_epochs
        return [self.ordinary("undefended", epochs * self.per_epoch)] if epochs > 0 else []

    def stages(self) -> list[Part]:
        """Every stage of the defense."""
        first, *later = self.plan.stages
        parts = [self.ordinary(first.name, first.stop - first.start)]
        return parts + [self.later(stage) for stage in later]

    def later(self, stage: PlannedStage) -> Part:
        """A later stage, evaluated and saved each epoch, and by rule at an end of its own."""
        steps = stage.stop - stage.start
        interval = self.plan.steps_per_epoch or -(-steps // 10)
        also = self.samples if self.adapts else 0
        epochs = math.ceil(steps / interval)
        whole = self.part(stage.name, steps, epochs, also, epochs)
        # Where the stage before ended, the training images are looked at too.
        before = self.looked_at(also)
        least = self.part(stage.name, min(interval, steps), 1, also, 1).seconds if self.adapts else whole.seconds
        passes = {**whole.passes, "model_forward": whole.passes["model_forward"] + also}
        return Part(stage.name, whole.seconds + before, least + before, passes)

    def end(self, test: int) -> Part:
        """Test split and training images, of CALoR before and after adapting; then validation once more."""
        models = 2 if self.adapts else 1
        models += self.model_args.undefended_epochs > 0
        looked = models * (test + self.samples) + self.validation
        return Part("measuring", self.looked_at(looked), passes={"model_forward": looked})

    def disk_bytes(self) -> int:
        """Checkpoints that are kept, and weights."""
        args = self.trainer.args
        saves = sum(self.regular(args.save_strategy, args.save_steps, s.stop - s.start) for s in self.plan.stages)
        kept = saves if args.save_total_limit is None else min(saves, args.save_total_limit + self.adapts)
        folders = 1 + self.adapts + (self.model_args.undefended_epochs > 0)
        return kept * self.rates.checkpoint_bytes + folders * self.rates.model_bytes
