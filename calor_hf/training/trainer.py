"""A Trainer whose stages, logs and checkpoints are those of a defense."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from calor_hf.core.outputs import Forward, Progress, Stage
from calor_hf.defenses.base import Defense, mean_over_counted
from calor_hf.defenses.none import NoDefense, NoDefenseConfig
from calor_hf.heads.chunked_scores import margins
from calor_hf.heads.features import scores_of
from calor_hf.training.before_training import check_labels, score_in_chunks, unused_parameters
from calor_hf.training.checkpoints import last_checkpoint
from calor_hf.training.defense_run import draws_of_batch, frozen_parameters, training_run
from calor_hf.training.finite import bad_weight, not_finite
from calor_hf.training.interrupt import InterruptCallback, TrainingInterrupted
from calor_hf.training.metrics import classification_metrics
from calor_hf.training.plan import Plan, make_plan
from calor_hf.training.samples import some_samples
from calor_hf.training.saving import SavingTrainer
from calor_hf.training.schedule import schedule_of, separate_head
from calor_hf.training.stage_callback import StageCallback

DEFENSE_STATE = "defense_state.pt"  # in checkpoints; never published


class DefenseTrainer(SavingTrainer):
    """``Trainer`` for defended models and, as the reference, for ordinary ones.

    - The stages are those of ``model.defense``; an ordinary model has one, cross-entropy. The stage is a function
      of ``state.global_step``, so a resumed run continues where it was. A stage starts with a fresh optimizer state
      and may have its own constant learning rate.
    - Each loss term, ``stage`` (its number, from 1), ``confidence`` (mean probability of the true class over the
      training batches) and ``accuracy`` are logged beside ``loss``.
    - What the defense asks for is done: batches are changed, weights frozen while training, its own state saved with
      checkpoints (in ``defense_state.pt``) and resumed.
    - ``head_learning_rate`` (of ``CALoRTrainingArguments``) is that of a head that the defense put in.
    - What is pushed is finished, and holds model, image processor and card alone.
    - Ctrl-C saves a checkpoint and raises :class:`TrainingInterrupted`.
    - A loss that is not finite stops the run with :class:`NonFiniteLossError`, before anything more is saved; so does
      a weight that is not, where something would be evaluated, saved or handed over.
    - Weights that no loss reaches are frozen while training (DistributedDataParallel with gradient checkpointing waits
      for their gradients in vain).
    - All processes evaluate the model that is saved: the first one's, whose batch norms have seen other images.

    Args:
        args: As for ``Trainer``.
        class_weights: (classes,) weight of each class in the loss, or None.
        kwargs: As for ``Trainer``. ``compute_metrics`` defaults to :func:`classification_metrics`.
    """

    loss_is_scaled_for_ga = False  # every loss here is a mean over its batch (4.57 reads model_accepts_loss_kwargs)
    lr_scheduler: Any
    compute_metrics: Any

    def __init__(self, *args: Any, class_weights: Tensor | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("compute_metrics", classification_metrics)
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.plan: Plan | None = None
        self._interrupt = InterruptCallback()
        self._running: dict[str, list[Tensor]] = defaultdict(list)
        self._own_loss = isinstance(getattr(self.model, "defense", None), Defense)
        self._parts_of_step = 0
        self._batch_norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        self._still: list[nn.Module] = []
        self._class_weights = None if class_weights is None else class_weights.float().to(self.args.device)
        if self._own_loss:
            self.bare_model.class_weights = self._class_weights
        score_in_chunks(self.bare_model, getattr(self.args, "class_chunk", None))
        self.add_callback(self._interrupt)
        self.add_callback(StageCallback(self))

    # Stages

    def stages(self) -> list[Stage]:
        """Stages of the model's defense; one for an ordinary model."""
        defense = self.model.defense if self._own_loss else NoDefense(NoDefenseConfig())
        return cast("list[Stage]", defense.stages(self.args))

    def set_initial_training_values(self, args: Any, dataloader: Any, *rest: Any) -> tuple[Any, ...]:
        """Lengthen the training that the arguments describe to all stages of the plan."""
        values = list(super().set_initial_training_values(args, dataloader, *rest))
        try:
            sized = len(dataloader) > 0
        except TypeError:
            sized = False
        self.plan = make_plan(self.stages(), int(values[1]) if sized else None)
        total = self.plan.total_steps
        if sized:
            values[0] = -(-total // values[1])
        else:  # one endless epoch
            values[1] = total
            if not rest:  # 4.57, which hands over one value more, takes a number here for a sized loader
                values[5] = total * args.gradient_accumulation_steps
        values[3] = values[3] * total / values[-1]
        values[-1] = total
        return tuple(values)

    def planned_values(self) -> tuple[Any, ...]:
        """What :meth:`set_initial_training_values` gives for the arguments as they are; :attr:`plan` is set."""
        rest = inspect.signature(Trainer.set_initial_training_values).parameters.keys() & {"total_train_batch_size"}
        total = [self.get_total_train_batch_size(self.args)] if rest else []
        return self.set_initial_training_values(self.args, self.get_train_dataloader(), *total)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The user's schedule over the first stage, then each later stage's own constant learning rate."""
        plain = self.plan is None or (len(self.plan.stages) == 1 and not getattr(self.args, "lr_drop_epochs", None))
        if self.lr_scheduler is not None or self.plan is None or plain:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = schedule_of(self.plan, optimizer or self.optimizer, self.args)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # Training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train every stage, or go on in the stage where a run was interrupted.

        Args:
            resume_from_checkpoint: Path of a checkpoint, or True for the last complete one in ``output_dir``.
            args: As for ``Trainer.train``.
            kwargs: As for ``Trainer.train``.

        Raises:
            TrainingInterrupted: Ctrl-C; the message says where the checkpoint lies.
            NonFiniteLossError: the loss or a weight became NaN or infinite.
            ValueError: there is no checkpoint to resume from, or a label outside the model's classes.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        self._first_bad_step = torch.full((), -1, device=self.args.device)
        for dataset in (self.train_dataset, self.eval_dataset):
            check_labels(dataset, self.model.config.num_labels)
        self._interrupt.install(self.args.world_size)
        try:
            with self.at_work():
                result = super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._interrupt.remove()
        if self._interrupt.requested:
            path = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            raise TrainingInterrupted(
                f"stopped in stage '{self.progress().stage}' after step {self.state.global_step} of "
                f"{self.state.max_steps}; checkpoint in {path}"
            )
        return result

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Freeze what does not learn and let the defense begin; free the weights again afterwards."""
        frozen = [*(frozen_parameters(self.bare_model) if self._own_loss else []), *self._unused_parameters()]
        for weight in frozen:
            weight.requires_grad_(False)
        if self._own_loss:
            self._still = self.model.defense.still(self.bare_model.backbone)
            self.model.defense.begin(training_run(self))
            self.bare_model.in_training_run = True
        try:
            yield
        finally:
            for weight in frozen:
                weight.requires_grad_(True)
            if self._own_loss:
                self.bare_model.in_training_run = False

    def progress(self, of_last_step: bool = False) -> Progress:
        """Stage of the next step, or of the last one, which an evaluation is about; and how far it has come."""
        if self.plan is None:
            return Progress.at_end(self.stages()[-1].name)
        return self.plan.progress(max(self.state.global_step - of_last_step, 0))

    def is_checkpoint_step(self, step: int) -> bool:
        """Whether to evaluate and save after ``step`` steps: at the ends of stages, and each epoch of a later one."""
        if self.plan is None or step < self.plan.stages[0].stop or len(self.plan.stages) == 1:
            return False
        stage = self.plan.at(step)
        interval = self.plan.steps_per_epoch or -(-(stage.stop - stage.start) // 10)
        return (step - stage.start) % interval == 0 or step == self.plan.total_steps

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the current stage: the defended model's own, or cross-entropy on an ordinary model's logits."""
        labels = inputs.get("labels")
        count = None if labels is None else len(labels)
        if self._own_loss:
            progress = self.bare_model.progress = self.progress(of_last_step=not model.training)
            if model.training and labels is not None:
                draws = draws_of_batch(self, len(labels), self._parts_of_step)
                inputs = self.model.defense.on_batch(inputs, draws, progress)
                labels = inputs["labels"]
        if self._own_loss or labels is None:
            if model.training:
                self._keep_still()
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            terms = outputs.loss_terms if self._own_loss else {}
        else:
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            out = Forward(scores_of(outputs).float(), labels, class_weights=self._class_weights)
            terms = NoDefense(NoDefenseConfig()).loss(out, self.progress())
            loss = torch.stack(list(terms.values())).sum()
        if model.training and labels is not None:
            seen = outputs.margins if self._own_loss else None
            if seen is None:
                logits = scores_of(outputs).detach()
                terms = {**terms, **(self.model.defense.observe(logits, labels) if self._own_loss else {})}
                seen = margins(logits[:count].float(), labels[:count]) if labels.ndim == 1 else {}
            self._note(loss, terms, seen, labels[:count])
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.training_step``; counts the batches that an optimizer step accumulates."""
        result = super().training_step(*args, **kwargs)
        self._parts_of_step += 1
        return result

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.create_optimizer``, with groups of the head's own, where it learns at another rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        own_rate = getattr(self.args, "head_learning_rate", None) if self._own_loss else None
        last_alone = self._own_loss and getattr(self.args, "adapt_only_last_layer", False)
        if is_new and (last_alone or (own_rate and self.model.defense.own_head)):
            rate = own_rate if own_rate and self.model.defense.own_head else self.args.learning_rate
            separate_head(optimizer, self.bare_model.classification_head, rate)
        return optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the named terms and confidence since the last log, the mean over processes."""
        if "loss" in logs and self._running:
            # The stage of the last step done: the next one may open another.
            step = max(self.state.global_step - 1, 0)
            names = sorted(self._running)
            means = torch.stack([torch.stack(self._running[name]).mean() for name in names])
            means = self.accelerator.reduce(means, reduction="mean") if self.args.world_size > 1 else means
            logs = {**logs, **dict(zip(names, means.tolist(), strict=True))}
            if self.plan is not None:
                logs["stage"] = self.plan.stages.index(self.plan.at(step)) + 1
            self._running.clear()
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.evaluation_loop``, of the model that is saved: with the first process's batch norms."""
        if self.args.world_size > 1:
            broadcast([buffer for module in self._batch_norms for buffer in module.buffers()])
        return super().evaluation_loop(*args, **kwargs)

    def measure_training_images(
        self, metrics: Callable[[Any], dict[str, float]] = classification_metrics
    ) -> dict[str, float]:
        """``metrics`` over training images in evaluation mode, without augmentation where the data can do without.

        At most ``confidence_samples`` of them (2048 with plain ``TrainingArguments``) are used, evenly spread.
        """
        samples = getattr(self.args, "confidence_samples", 2048)
        usual, self.compute_metrics = self.compute_metrics, metrics
        try:
            # Not get_eval_dataloader: with persistent workers that returns the validation split's.
            loader = self.get_test_dataloader(some_samples(self.train_dataset, samples))
            output = self.evaluation_loop(loader, "Training images", metric_key_prefix="train")
        finally:
            self.compute_metrics = usual
        own = {name.removeprefix("train_"): value for name, value in output.metrics.items()}
        return {name: value for name, value in own.items() if name not in ("loss", "runtime")}

    def check_finite(self, weights: bool) -> None:
        """Raise :class:`NonFiniteLossError` if a loss so far was not finite, or, with ``weights``, a weight is not."""
        step, bad = int(self._first_bad_step), None
        if step < 0 and weights and (bad := bad_weight(self.model, self._batch_norms)):
            step = self.state.global_step
        if step < 0:
            return
        what = f"the loss is not finite at step {step}" if bad is None else f"{bad} is not finite after step {step}"
        stage = self.plan.at(step - 1).name if self.plan is not None else self.stages()[0].name
        raise not_finite(what, stage, self.args.output_dir)

    def _unused_parameters(self) -> list[torch.nn.Parameter]:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.train_dataset is None:
            return []
        samples = some_samples(self.train_dataset, 2 * self.args.world_size)
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed
            batch = next(iter(self.get_test_dataloader(samples)))
        inputs = self._prepare_inputs({name: value for name, value in batch.items() if name != "labels"})
        with self.compute_loss_context_manager():
            return unused_parameters(self.model, inputs)

    def _keep_still(self) -> None:
        fixed = self.plan is not None and self.plan.at(self.state.global_step).fixed_batch_norm
        for module in self._batch_norms if fixed else self._still:
            module.eval()

    @torch.no_grad()
    def _note(self, loss: Tensor, terms: dict[str, Tensor], seen: dict[str, Tensor], labels: Tensor) -> None:
        # Kept on the device: no waiting for the accelerator until something is logged.
        bad = ~torch.isfinite(loss.detach()) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, self.state.global_step + 1, self._first_bad_step)
        for name, value in terms.items():
            self._running[name].append(value.detach().float())
        if seen:
            self._running["confidence"].append(mean_over_counted((-seen["log_odds"]).sigmoid(), labels))
            self._running["accuracy"].append(mean_over_counted((seen["best_rival"] < 0).float(), labels))

    # Checkpoints

    def begin_step(self) -> None:
        """An optimizer step begins: the next batch is its first."""
        self._parts_of_step = 0

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.model.defense.state_dict() if self._own_loss else {}
        if state and self.args.should_save:
            torch.save(state, Path(output_dir) / DEFENSE_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "") / DEFENSE_STATE
        if self._own_loss and checkpoint and path.is_file():
            self.model.defense.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
