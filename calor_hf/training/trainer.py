"""A Trainer whose stages, logs and checkpoints are those of a defense."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import SequentialLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer import SCHEDULER_NAME

from calor_hf.core.files import read_json, saving, write_json
from calor_hf.core.finishing import Finishing
from calor_hf.core.outputs import LOSS_INPUTS, Forward, Stage
from calor_hf.core.report_text import percent
from calor_hf.core.saved_config import plain_processor
from calor_hf.core.seeding import StepDraws
from calor_hf.core.stop_request import StopRequest
from calor_hf.data.pixel_input import PixelScale
from calor_hf.defenses.base import mean_over_counted
from calor_hf.defenses.training_run import TrainingRun
from calor_hf.heads.chunked_scores import margins
from calor_hf.heads.classifier_head import heads_of
from calor_hf.heads.features import scores_of
from calor_hf.modeling.adapters import without_adapters
from calor_hf.training.before_training import check_run
from calor_hf.training.callbacks import StageCallback, TrainingInterrupted
from calor_hf.training.checkpoints import (
    TRAINER_STATE,
    CheckpointTrainer,
    is_complete,
    last_checkpoint,
    load_weights,
    steps_done,
)
from calor_hf.training.checks import bad_weight, not_finite
from calor_hf.training.fields import check_read_by_optimizer
from calor_hf.training.learning import (
    check_learns,
    check_optimizer,
    freeze,
    in_front_of_heads,
    unused_parameters,
)
from calor_hf.training.measuring import Measured
from calor_hf.training.metrics import (
    classification_metrics,
    fitted_temperature,
    some_samples,
)
from calor_hf.training.parameters import check_parameters
from calor_hf.training.publishing import PublishingTrainer
from calor_hf.training.same_run import RUN, about_run, check_same_run
from calor_hf.training.stages import IS_LAST_LAYER, StagePlan, schedule_of, separate_head
from calor_hf.training.underfit import UNDERFITTED, learning_rate_hint

logger = logging.getLogger(__name__)

EVALUATE_AGAIN = "when that is mended, train(resume_from_checkpoint=True) repeats what follows the last checkpoint"
MEASURE_AGAIN = "when that is mended, train(resume_from_checkpoint=True) trains nothing again and measures it"
DEFENSE_STATE = "defense_state.pt"  # in checkpoints; never published
MOST_SCORES = 2**25
"""Scores that are held at a time to fit a temperature; with more classes, fewer images are used."""
MANY_CLASSES = 10_000
"""From this number of classes on, the scores of a batch take more memory than most models' features."""


class DefenseTrainer(CheckpointTrainer, PublishingTrainer):
    """``Trainer`` for defended models and, as the reference, for ordinary ones.

    - The stages are those of the model's defense; an ordinary model has one, cross-entropy. The stage is a function of
      ``state.global_step``, so a resumed run continues where it was. A stage starts with a fresh optimizer state.
    - Each loss term, ``stage`` (its number, from 1), ``confidence`` (mean probability of the true class over the
      training batches) and ``accuracy`` are logged with ``loss``.
    - The result of :meth:`train` is measured, and :meth:`save_model` writes the record of the run, ``metrics.json``,
      next to the weights; the model card quotes it.
    - A loss that is not finite stops the run with :class:`~calor_hf.training.checks.NonFiniteLossError`, before
      anything more is saved; so does a weight that is not, before an evaluation, a checkpoint or the end.
    - Weights that the loss does not depend on are frozen while training (DistributedDataParallel with gradient
      checkpointing would wait for their gradients forever).
    - Problems that would stop the run later are found before the first step: labels, a batch of each stage, the
      optimizer, and ``compute_metrics``, which is called once on the validation split.
    - Plans, checkpoints, measurements and pushes are those of its base classes, one file each.

    Args:
        args: As for ``Trainer``; ``head_learning_rate`` of ``CALoRTrainingArguments`` is that of a head that the
            defense added.
        class_weights: (classes,) weight of each class in the loss, or None.
        test_dataset: Images that the result is measured on. None means ``eval_dataset``.
        kwargs: As for ``Trainer``; :data:`~calor_hf.training.parameters.PARAMETERS` lists the differences.

    Raises:
        TypeError: a model or data that cannot be trained on.
        ValueError: a parameter that contradicts the stages or their losses.
    """

    loss_is_scaled_for_ga = False  # every loss here is a mean over its batch (4.57 reads model_accepts_loss_kwargs)
    processing_class: Any

    def __init__(
        self, *args: Any, class_weights: Tensor | None = None, test_dataset: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.processing_class = plain_processor(self.processing_class)  # timm's saves nothing
        if self.compute_metrics is None and not self.args.batch_eval_metrics:
            self.compute_metrics = classification_metrics
        self.model_accepts_loss_kwargs = False
        self.test_dataset = test_dataset
        self._running: dict[str, list[Tensor]] = defaultdict(list)
        self._parts_of_step = 0
        self.class_weights = None if class_weights is None else class_weights.float().to(self.args.device)
        self._given_optimizer = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None
        self._take_model()
        check_parameters(self)
        self._stage_callback = StageCallback(self)
        self.add_callback(self._stage_callback)

    def _take_model(self) -> None:
        """Prepare the model for its training; ``model_init`` makes a new one for each."""
        if not isinstance(self.bare_model, PreTrainedModel):
            raise TypeError(
                f"model must be an image classification model of transformers, got {type(self.bare_model).__name__}"
            )
        config, chunk = self.bare_model.config, getattr(self.args, "class_chunk", None)
        if not config.return_dict:
            raise ValueError("the model's config has return_dict=False; set it to True, as losses read outputs by name")
        self._batch_norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        self._frozen_batch_norms: list[_BatchNorm] = []
        self._evaluated_at = self._saved_at = -1
        if self.own_loss:
            self.bare_model.class_weights = self.class_weights
            self.bare_model.score_in_chunks(chunk)
            if chunk is None and config.num_labels >= MANY_CLASSES and self.defense.log_odds_suffice:
                logger.info("%d classes: class_chunk=4096 (--class-chunk 4096) saves memory", config.num_labels)
        elif chunk is not None:
            raise ValueError(
                "class_chunk needs a defended model; DefendedForImageClassification.from_base(model, 'none') is one "
                "with no defense"
            )

    @property
    def bare_model(self) -> Any:
        """The model, or the one inside a ``PeftModel``, on which attributes have to be set."""
        return without_adapters(self.model)

    # Loading and optimizing

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops and is_training  # the Trainer's evaluations drop images, too
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

    def get_train_dataloader(self) -> Any:
        """As ``Trainer.get_train_dataloader``, with the defense's batches, if it draws its own."""
        loader, args = super().get_train_dataloader(), self.args
        samples = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
        own = self.defense.batches(samples, self._train_batch_size, args.gradient_accumulation_steps)
        if own is None:
            return loader
        return self.accelerator.prepare(
            DataLoader(
                loader.dataset, batch_sampler=cast(Any, own), collate_fn=loader.collate_fn,
                num_workers=args.dataloader_num_workers, pin_memory=args.dataloader_pin_memory,
                persistent_workers=args.dataloader_persistent_workers,
            )
        )  # fmt: skip

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.create_optimizer``, with groups of the head's own if it learns at another rate.

        Raises:
            ValueError: the optimizer that was passed does not train this model, or not at ``learning_rate``, of which
                later stages take a fraction.
        """
        if not self._given_optimizer:
            check_read_by_optimizer(self.args, self.model)
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._given_optimizer and not self.is_sharded:
            staged = self.plan is not None and any(stage.learning_rate for stage in self.plan.stages)
            check_optimizer(optimizer, self.model, self.args.learning_rate if staged else None)
        own_rate = getattr(self.args, "head_learning_rate", None) if self.defense.own_head else None
        last_alone = self.own_loss and getattr(self.args, "adapt_only_last_layer", False)
        if (last_alone or own_rate) and not any(IS_LAST_LAYER in group for group in optimizer.param_groups):
            separate_head(optimizer, self.bare_model.classification_head, own_rate)
        return optimizer

    # Training

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train every stage, or continue in the stage in which a run was interrupted; then measure the result.

        Arguments are those of ``Trainer.train``; ``resume_from_checkpoint`` is the path of a checkpoint, or True for
        the last complete one in ``output_dir``. A stage in progress may be given more epochs than it was begun with.
        The objective of a ``trial`` is that of the result.

        Raises:
            TrainingInterrupted: Ctrl-C; the message names the checkpoint.
            NonFiniteLossError: the loss or a weight became NaN or infinite.
            FinishingError: the last evaluation, or measuring the result, failed; the model is saved in ``output_dir``.
            ValueError: there is no checkpoint to resume from, or it belongs to another run; a label outside the model's
                classes; a weight of the head, or everything in front of it, cannot learn.
        """
        result = self.train_stages(resume_from_checkpoint, trial, *args, **kwargs)
        if trial is not None:
            self.objective = self.compute_objective(self.evaluate())
            return result
        finishing = Finishing(f"the model is trained and saved in {self.args.output_dir}", MEASURE_AGAIN)
        with finishing.step("measuring it"):
            self.measure_result()
        if finishing.failed:
            self.save_model(_internal_call=True)
        finishing.end()
        return result

    def train_stages(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As :meth:`train`, without measuring the result."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
        result, finished = None, False
        if resume_from_checkpoint:
            if not is_complete(Path(resume_from_checkpoint)):
                raise ValueError(
                    f"{resume_from_checkpoint} holds no complete checkpoint; pass the path of one, or True for the "
                    "last one in output_dir"
                )
            self.check_resumes(resume_from_checkpoint, steps_done(resume_from_checkpoint))
            finished = self.was_finished(resume_from_checkpoint)
        if finished:
            logger.info("%s: training had ended; nothing left to train", resume_from_checkpoint)
            load_weights(self.model, str(resume_from_checkpoint))
        else:
            result = self._run_stages(resume_from_checkpoint, trial, *args, **kwargs)
        self.load_result()
        self.end_stage(cast(StagePlan, self.plan).stages[-1])
        return result

    def end_stage(self, stage: Stage) -> None:
        """Rescale the scores as ``stage`` asks for, before the first step of the next one or at the end of training.

        Checkpoints of the stage are not rescaled: a run that is resumed from one is rescaled then.
        """
        if stage.rescale_to is None:
            return
        fit = partial(fitted_temperature, confidence=stage.rescale_to)
        with self.all_scores():  # in parts of the classes there is no temperature
            found = self.measure_training_images(fit, max(64, MOST_SCORES // self.model.config.num_labels))
        with torch.no_grad():
            parts: list[Any] = heads_of(self.bare_model.classification_head)
            for weight in [weight for part in parts for weight in part.last_layer.parameters()]:
                weight.div_(found["temperature"])
        self.log(found)
        logger.info(
            "scores divided by the temperature %.4g: mean confidence of correctly classified training images %.4f "
            "before, %.4f after; training accuracy %s, as before",
            *(found["temperature"], found["confidence_before"], found["confidence_after"]),
            percent(found["rescaled_accuracy"], 2),
        )

    @contextmanager
    def all_scores(self) -> Iterator[None]:
        """Score all classes at once, whatever ``class_chunk`` says."""
        chunk, self.bare_model.class_chunk = self.bare_model.class_chunk, None
        try:
            yield
        finally:
            self.bare_model.class_chunk = chunk

    def check_resumes(self, place: str | Path, step: int | None) -> None:
        """Refuse to go on, after ``step`` steps, with the run in ``place``, if it was another one.

        A ``place`` without a description, as the Trainer of transformers writes it, is taken as it is, with a warning.

        Raises:
            ValueError: as :func:`~calor_hf.training.same_run.check_same_run`.
        """
        if not (Path(place) / RUN).is_file():
            logger.warning("%s does not say which run it belongs to; going on with it unchecked", place)
            return
        self.planned_values()
        check_same_run(Path(place), self._about_run(cast(StagePlan, self.plan)), step)

    def _about_run(self, plan: StagePlan) -> dict[str, Any]:
        return about_run(self.model, self.args, {"train": self.train_dataset, "validation": self.eval_dataset}, plan)

    def was_finished(self, checkpoint: str) -> bool:
        """Whether the run that ``checkpoint`` belongs to has no step left; reads its state."""
        self.planned_values()
        state = read_json(Path(checkpoint) / TRAINER_STATE, {"log_history": list, "global_step": int})
        self.state.log_history, self.state.global_step = state["log_history"], state["global_step"]
        done: bool = self.state.global_step >= cast(StagePlan, self.plan).total_steps
        return done and not (self.is_sharded or self.args.load_best_model_at_end)

    def load_result(self) -> None:
        """Load the checkpoint that is the result, if it is not the last one."""

    def _run_stages(self, resume_from_checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        stop = self._stage_callback.stop = StopRequest("saving after this step", active=self.args.world_size == 1)
        with stop:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        self.train_seconds = time.perf_counter() - begin
        self._delete_old_checkpoints()  # a process that was killed at that may have left some
        if stop.requested:
            step, total = self.state.global_step, self.state.max_steps
            raise TrainingInterrupted(
                f"stopped in stage '{self.progress().stage}' after step {step} of {total}; checkpoint in "
                f"{self.checkpoint_folder(step)}"
            )
        return result

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # From here on the model is that of model_init, and the arguments are those of the trial.
        self._take_model()
        self._first_bad_step = torch.full((), -1, device=self.args.device)
        self._running.clear()  # auto_find_batch_size begins anew
        check_run(self)
        with self.at_work():
            return super()._inner_training_loop(*args, **kwargs)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Begin the defense and freeze the weights that do not learn; free them again afterwards."""
        model, head_only = self.bare_model, getattr(self.args, "head_only", False)
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        try:
            if self.own_loss:
                self.defense.begin(self._training_run())
                model.in_training_run = True
            self._head_alone = head_only or not all(weight.requires_grad for weight in learning)
            if head_only:
                body, self._frozen_batch_norms = in_front_of_heads(model)
                freeze(body)
            unused = [] if self.is_sharded else self._unused_parameters()
            self._unused = {id(weight) for weight in unused}
            freeze(unused)
            yield
        finally:
            for weight in learning:
                weight.requires_grad_(True)
            if self.own_loss:
                model.in_training_run = False

    def _training_run(self) -> TrainingRun:
        def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            if self._given_optimizer and self.optimizer is not None:
                given: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
                group = {**given.defaults, "params": parameters}  # not all are arguments of the class
                return cast(torch.optim.Optimizer, type(given)([group], lr=given.defaults["lr"]))
            cls, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, self.model)
            group = {"params": parameters, "weight_decay": self.args.weight_decay}
            return cast(torch.optim.Optimizer, cls([group], **options))

        return TrainingRun(
            model=self.bare_model,
            scale=PixelScale.of(self.processing_class),
            seed=self.args.seed,
            make_optimizer=make_optimizer,
            learning_rate=lambda: self.optimizer.param_groups[0]["lr"],
            sum_over_processes=lambda value: self.accelerator.reduce(value, reduction="sum"),
            log=lambda name, value: self._running[name].append(value.detach().float()),
            processes=self.args.world_size,
        )

    def _unused_parameters(self) -> list[nn.Parameter]:
        samples = some_samples(self.train_dataset, 2 * self.args.world_size)
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed
            batch = next(iter(self.get_test_dataloader(samples)))
        inputs = self._prepare_inputs({name: value for name, value in batch.items() if name not in LOSS_INPUTS})
        with self.compute_loss_context_manager():
            return unused_parameters(self.model, inputs)

    def check_learns(self) -> None:
        """Call :func:`~calor_hf.training.learning.check_learns`; a backbone frozen by the defense passes."""
        of_others = any(name in self.args.optim for name in ("layerwise", "lomo"))
        if not (self.is_sharded or of_others):  # their optimizers do not hold the model's weights
            check_learns(self.bare_model, self.optimizer, self._unused, self._head_alone)

    # Loss

    def show_progress(self) -> None:
        """Set the stage of the model to that of the next step."""
        if self.own_loss:
            self.bare_model.progress = self.progress()

    def begin_step(self) -> None:
        """Start an optimizer step: the next batch is its first."""
        self._parts_of_step = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.training_step``; counts the batches that an optimizer step accumulates."""
        result = super().training_step(*args, **kwargs)
        self._parts_of_step += 1
        if self.own_loss:
            self.defense.on_gradients(self.current_gradient_accumulation_steps, self.accelerator.sync_gradients)
        return result

    def draws_of_batch(self, count: int, part: int) -> StepDraws:
        """Random numbers of the ``count`` samples of a batch, the one with number ``part`` in its optimizer step."""
        args = self.args
        return StepDraws.of_batch(
            seed=args.seed, step=self.state.global_step, count=count, batch_size=self._train_batch_size,
            part=part, parts=args.gradient_accumulation_steps, process=args.process_index, processes=args.world_size,
        )  # fmt: skip

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the current stage: the defended model's own, or cross-entropy on an ordinary model's logits."""
        labels = inputs.get("labels")
        count = None if labels is None else len(labels)
        if model.training and self.plan is not None:
            fixed = self.plan.at(self.state.global_step).fixed_batch_norm
            for module in self._batch_norms if fixed else self._frozen_batch_norms:
                module.eval()
        if self.own_loss:
            progress = self.bare_model.progress = self.progress(of_last_step=not model.training)
            if model.training and labels is not None:
                draws = self.draws_of_batch(len(labels), self._parts_of_step)
                inputs = self.defense.on_batch(inputs, draws, progress)
                labels = inputs["labels"]
        if self.own_loss or labels is None:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            terms = outputs.loss_terms if self.own_loss else {}
        else:
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            out = Forward(scores_of(outputs).float(), labels, class_weights=self.class_weights)
            terms = self.defense.loss(out, self.progress())
            loss = torch.stack(list(terms.values())).sum()
        if model.training and labels is not None:
            seen = outputs.margins if self.own_loss else None
            if seen is None:
                logits = scores_of(outputs).detach()
                seen = margins(logits[:count].float(), labels[:count]) if labels.ndim == 1 else {}
            self._note(loss, terms, seen, labels[:count])
        return (loss, outputs) if return_outputs else loss

    # Logging

    @torch.no_grad()
    def _note(self, loss: Tensor, terms: dict[str, Tensor], seen: dict[str, Tensor], labels: Tensor) -> None:
        """Keep what :meth:`log` and :meth:`check_finite` read, on the device, so that nothing waits for it."""
        bad = ~torch.isfinite(loss.detach()) & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(bad, self.state.global_step + 1, self._first_bad_step)
        for name, value in terms.items():
            self._running[name].append(value.detach().float())
        if seen:
            self._running["confidence"].append(mean_over_counted((-seen["log_odds"]).sigmoid(), labels))
            self._running["accuracy"].append(mean_over_counted((seen["best_rival"] < 0).float(), labels))

    def check_finite(self, weights: bool) -> None:
        """Raise :class:`NonFiniteLossError` if a loss so far was not finite, or, with ``weights``, a weight is not."""
        step, bad = int(self._first_bad_step), None
        if step < 0 and weights and (bad := bad_weight(self.model, self._batch_norms)):
            step = self.state.global_step
        if step < 0:
            return
        what = f"the loss is not finite at step {step}" if bad is None else f"{bad} is not finite after step {step}"
        stage = self.plan.at(step - 1).name if self.plan is not None else self.stages()[0].name
        raise not_finite(what, stage, str(self.run_folder))

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

    def measure(self, dataset: Any, split: str) -> Measured:
        """As ``MeasuringTrainer.measure``, with a hint if the model is under-fitted and frozen features do better."""
        measured = super().measure(dataset, split)
        (result,) = measured.metrics.values()
        if result["train_accuracy"] < UNDERFITTED and (hint := learning_rate_hint(self, dataset, result["accuracy"])):
            right = percent(result["train_accuracy"])
            logger.warning("the model is under-fitted, with %s training accuracy; %s", right, hint)
        return measured

    # Evaluations and checkpoints on the way

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self.settle():
            stops = self.control.should_training_stop
            super()._maybe_log_save_evaluate(*args, **kwargs)
            self.control.should_training_stop |= stops  # callbacks may return a new control

    def settle(self) -> bool:
        """Settle what follows a step or an epoch, after all callbacks; return whether anything does.

        Training ends with the plan or after a signal. The steps of :meth:`is_checkpoint_step` are evaluated and saved,
        a run of several stages that ends early is saved, nothing is done twice, and nothing that is not finite is
        saved.
        """
        step, control, stop = self.state.global_step, self.control, self._stage_callback.stop
        control.should_training_stop |= stop.requested or (self.plan is not None and step >= self.plan.total_steps)
        ended = control.should_training_stop and (stop.requested or self.is_unfinished())
        if stop.requested and self._saved_at == step:  # the epoch did not end
            return False
        if self.is_checkpoint_step(step):
            control.should_log = control.should_evaluate = True
        control.should_save |= ended or self.is_checkpoint_step(step)
        control.should_evaluate &= self._evaluated_at != step
        control.should_save &= self._saved_at != step
        matters = control.should_evaluate or control.should_save or control.should_training_stop
        if matters or control.should_log or self.args.device.type == "cpu":
            # On an accelerator this waits for it, so not at every step.
            self.check_finite(weights=matters)
        return True

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        step = self.state.global_step
        finishing = Finishing(f"the model after the last step is saved in {self.args.output_dir}", EVALUATE_AGAIN)
        with finishing.step("evaluating it"):
            metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
            self._evaluated_at = step
            if self.is_checkpoint_step(step):
                self.evaluate_candidate()
        for error in finishing.failed.values():
            is_last = self.plan is not None and step >= self.plan.total_steps and self.hp_search_backend is None
            if not is_last or isinstance(error, FloatingPointError):  # not of numbers to be saved
                raise error
            self.save_model(_internal_call=True)
        finishing.end()
        return metrics

    def evaluate_candidate(self) -> None:
        """Measure what the choice of the result needs, at the steps of :meth:`is_checkpoint_step`."""

    def _determine_best_metric(self, *args: Any, **kwargs: Any) -> bool:
        is_best = super()._determine_best_metric(*args, **kwargs)
        if self.is_checkpoint_step(self.state.global_step):  # whatever save_strategy and callbacks say
            self.control.should_save = is_best = True
        return bool(is_best)

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As ``Trainer.save_model``; after :meth:`train` with the record of the run, ``metrics.json``.

        Checkpoints get ``run.json``, what the run is about, by which a resume is checked.

        Raises:
            NotSavedError: the disk is full or cannot be written to.
        """
        folder = Path(output_dir or self.args.output_dir)
        with saving(folder):
            super().save_model(output_dir, _internal_call=True)
            if not _internal_call:
                self.save_record(folder)
            elif self.plan is not None and self.args.should_save:
                write_json(folder / RUN, self._about_run(self.plan))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def hyperparameter_search(self, hp_space: Any = None, compute_objective: Any = None, **kwargs: Any) -> Any:
        """As ``Trainer.hyperparameter_search``; the objective is that of each trial's result.

        A trial without a result is an error, which ``catch=(NotAdaptedError,)`` counts as a failed trial.

        Raises:
            ValueError: no ``compute_objective``.
        """
        if compute_objective is None:
            raise ValueError(
                "compute_objective is needed: the default adds up all metrics, better ones and worse ones; pass e.g. "
                "compute_objective=lambda metrics: metrics['eval_accuracy'] with direction='maximize'"
            )
        return super().hyperparameter_search(hp_space, compute_objective, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.defense.state_dict()
        if state and self.args.should_save:
            torch.save(state, Path(output_dir) / DEFENSE_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint and not self.is_sharded and not (Path(checkpoint) / SCHEDULER_NAME).is_file():
            raise ValueError(
                f"{checkpoint} has no optimizer and no schedule (save_only_model), so its stage cannot go on; train "
                "again, or pass an earlier checkpoint"
            )
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and isinstance(self.lr_scheduler, SequentialLR) and self.plan is not None:
            # By the arguments of now: the stages may be longer, and have other rates, than when it was saved.
            self.lr_scheduler = schedule_of(self.plan, self.optimizer, self.args, steps_done(checkpoint))
        path = Path(checkpoint or "") / DEFENSE_STATE
        if self.own_loss and checkpoint and path.is_file():
            self.defense.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
