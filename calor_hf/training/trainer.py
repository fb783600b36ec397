"""A Trainer whose stages, logs and checkpoints are those of a defense."""

import inspect
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import SequentialLR
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from calor_hf.core.files import check_writable, read_json, saving, weights_digest, write_json
from calor_hf.core.finishing import Finishing
from calor_hf.core.outputs import Forward, Progress, Stage
from calor_hf.core.saved_config import plain_processor
from calor_hf.core.seeding import StepDraws, unchanged_randomness
from calor_hf.core.stop_request import StopRequest
from calor_hf.data.pixel_input import PixelScale
from calor_hf.defenses.base import Defense, mean_over_counted
from calor_hf.defenses.training_run import TrainingRun
from calor_hf.heads.chunked_scores import margins
from calor_hf.heads.features import scores_of
from calor_hf.heads.find_head import find_heads
from calor_hf.hub.push import PushFailedError
from calor_hf.modeling.base_model import defense_of
from calor_hf.training.callbacks import StageCallback, TrainingInterrupted
from calor_hf.training.checkpoints import delete_old_checkpoints, is_complete, last_checkpoint, load_weights, steps_done
from calor_hf.training.checks import (
    bad_weight,
    check_batch,
    check_labels,
    check_learns,
    check_optimizer,
    first_batches,
    not_finite,
    unused_parameters,
)
from calor_hf.training.fields import check_fields, check_read_by_optimizer
from calor_hf.training.metrics import (
    RECORD,
    Measured,
    classification_metrics,
    predicted_classes,
    some_samples,
    training_record,
    write_record,
)
from calor_hf.training.publishing import card_details, publish, write_card
from calor_hf.training.same_run import RUN, about_run, check_same_run
from calor_hf.training.stages import IS_LAST_LAYER, PlannedStage, StagePlan, plan_stages, schedule_of, separate_head

logger = logging.getLogger(__name__)

EVALUATE_AGAIN = "when that is mended, train(resume_from_checkpoint=True) repeats what follows the last checkpoint"
MEASURE_AGAIN = "when that is mended, train(resume_from_checkpoint=True) trains nothing again and measures it"
DEFENSE_STATE = "defense_state.pt"  # in checkpoints; never published
MANY_CLASSES = 10_000
"""From this number of classes on, the scores of a batch take more memory than most models' features."""


class DefenseTrainer(Trainer):
    """``Trainer`` for defended models and, as the reference, for ordinary ones.

    - The stages are those of the model's defense; an ordinary model has one, cross-entropy. The stage is a function of
      ``state.global_step``, so a resumed run continues where it was. A stage starts with a fresh optimizer state.
    - Each loss term, ``stage`` (its number, from 1), ``confidence`` (mean probability of the true class over the
      training batches) and ``accuracy`` are logged with ``loss``.
    - The result of :meth:`train` is measured, and :meth:`save_model` writes the record of the run, ``metrics.json``,
      next to the weights; the model card quotes it.
    - A push happens once training has ended, and holds the model, its image processor and its card alone.
    - Old checkpoints are deleted in the order of steps. Checkpoints are read with ``from_pretrained`` and strictly.
      (The Trainer of transformers 5.23 reads the file raw and drops renamed weights: most of ViT, Swin, BEiT and
      DINOv2.)
    - A loss that is not finite stops the run with :class:`~calor_hf.training.checks.NonFiniteLossError`, before
      anything more is saved; so does a weight that is not, before an evaluation, a checkpoint or the end.
    - Weights that the loss does not depend on are frozen while training (DistributedDataParallel with gradient
      checkpointing would wait for their gradients forever).
    - All processes evaluate the model that is saved: the first one's, whose batch norms have seen other images.
    - What would stop the run later is looked for before the first step: labels, a batch of each stage, the optimizer,
      and ``compute_metrics``, which is called once on the validation split.
    - Results are chosen and measured by the trainer's own metrics: ``compute_metrics`` and
      ``preprocess_logits_for_metrics`` only say what is logged.

    Args:
        args: As for ``Trainer``; ``head_learning_rate`` of ``CALoRTrainingArguments`` is that of a head that the
            defense put in.
        class_weights: (classes,) weight of each class in the loss, or None.
        test_dataset: Images that the result is measured on. None means ``eval_dataset``.
        kwargs: As for ``Trainer``; :data:`~calor_hf.training.parameters.PARAMETERS` lists the differences.

    Raises:
        TypeError: a model or data that cannot be trained on.
        ValueError: a parameter that contradicts the stages or their losses.
    """

    loss_is_scaled_for_ga = False  # every loss here is a mean over its batch (4.57 reads model_accepts_loss_kwargs)
    lr_scheduler: Any
    processing_class: Any
    compute_metrics: Any
    preprocess_logits_for_metrics: Any

    def __init__(
        self, *args: Any, class_weights: Tensor | None = None, test_dataset: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.processing_class = plain_processor(self.processing_class)  # timm's saves nothing
        if self.compute_metrics is None and not self.args.batch_eval_metrics:
            self.compute_metrics = classification_metrics
        self.model_accepts_loss_kwargs = False
        self.test_dataset = test_dataset
        self.measured: Measured | None = None
        self._measured_versions: list[int] = []
        self.train_seconds = 0.0
        self.plan: StagePlan | None = None
        self._running: dict[str, list[Tensor]] = defaultdict(list)
        self._parts_of_step = 0
        self._evaluated_at = self._saved_at = -1
        self._class_weights = None if class_weights is None else class_weights.float().to(self.args.device)
        self._given_optimizer = self.optimizer is not None or self.optimizer_cls_and_kwargs is not None
        self._take_model()
        self._check_parameters()
        self._stage_callback = StageCallback(self)
        self.add_callback(self._stage_callback)

    def _take_model(self) -> None:
        """Prepare the model for its training; ``model_init`` makes a new one for each."""
        if not isinstance(self.bare_model, PreTrainedModel):
            raise TypeError(
                f"model must be an image classification model of transformers, got {type(self.bare_model).__name__}"
            )
        if not self.bare_model.config.return_dict:
            raise ValueError("the model's config has return_dict=False; set it to True, as losses read outputs by name")
        self._own_loss = isinstance(getattr(self.model, "defense", None), Defense)  # else cross-entropy
        self._batch_norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        if self._own_loss:
            self.bare_model.class_weights = self._class_weights
        score_in_chunks(self.bare_model, getattr(self.args, "class_chunk", None))

    def _check_parameters(self) -> None:
        check_fields(self.args)
        classes, weights = self.model.config.num_labels, self._class_weights
        if classes < 2:
            raise ValueError(f"the model must have at least 2 classes, got {classes}; pass num_labels=")
        if weights is not None and tuple(weights.shape) != (classes,):
            raise ValueError(f"class_weights must have shape ({classes},), a weight per class, got {weights.shape}")
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func would replace the loss that is the defense; leave it out (class_weights= weighs "
                "classes, and a loss of your own is a registered defense), or train an undefended model with Trainer"
            )
        if self.lr_scheduler is not None and len(self.stages()) > 1:
            raise ValueError(
                "the scheduler in optimizers= does not know the stages, which have learning rates of their own; pass "
                "optimizers=(optimizer, None), and lr_scheduler_type for the first stage"
            )
        for name in ("train_dataset", "eval_dataset", "test_dataset"):
            data = getattr(self, name)
            if isinstance(data, str) or (isinstance(data, dict) and name != "eval_dataset"):
                raise TypeError(f"{name} must be one data set, got {type(data).__name__}")

    @property
    def bare_model(self) -> Any:
        """The model, or the one inside a ``PeftModel``, on which attributes have to be set."""
        inside = getattr(self.model, "get_base_model", None)
        return self.model if inside is None else inside()

    @property
    def defense(self) -> Defense[Any]:
        """The model's defense; for an ordinary model ``none``."""
        return defense_of(self.model)

    # Stages

    def stages(self) -> list[Stage]:
        """Stages of the model's defense; one for an ordinary model."""
        return self.defense.stages(self.args)

    def set_initial_training_values(self, args: Any, dataloader: Any, *rest: Any) -> tuple[Any, ...]:
        """Lengthen the training that the arguments describe to all stages of the plan."""
        values = list(super().set_initial_training_values(args, dataloader, *rest))
        try:
            sized = len(dataloader) > 0
        except TypeError:
            sized = False
        self.plan = plan_stages(self.stages(), int(values[1]) if sized else None)
        total = self.plan.total_steps
        values[0] = total  # a limit: epochs that a callback ends early are made up for
        if not sized:  # one endless epoch
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

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> Any:
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops and is_training  # the Trainer's evaluations drop images, too
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.create_optimizer``, with groups of the head's own if it learns at another rate.

        Raises:
            ValueError: the optimizer that was passed does not train this model, or not at ``learning_rate``, of which
                later stages take a fraction.
        """
        if not self._given_optimizer:
            check_read_by_optimizer(self.args, self.model)
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._given_optimizer and self._reads_plain_checkpoints(None):
            staged = self.plan is not None and any(stage.learning_rate for stage in self.plan.stages)
            check_optimizer(optimizer, self.model, self.args.learning_rate if staged else None)
        own_rate = getattr(self.args, "head_learning_rate", None) if self.defense.own_head else None
        last_alone = self._own_loss and getattr(self.args, "adapt_only_last_layer", False)
        if (last_alone or own_rate) and not any(IS_LAST_LAYER in group for group in optimizer.param_groups):
            separate_head(optimizer, self.bare_model.classification_head, own_rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The user's schedule over the first stage, then each later stage's own constant learning rate."""
        plan, drops = self.plan, getattr(self.args, "lr_drop_epochs", None)
        if self.lr_scheduler is not None or plan is None or (len(plan.stages) == 1 and not drops):
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = schedule_of(plan, optimizer or self.optimizer, self.args)
        self._created_lr_scheduler = True
        return self.lr_scheduler

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

    # Training

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train every stage, or continue in the stage in which a run was interrupted; then measure the result.

        Arguments are those of ``Trainer.train``; ``resume_from_checkpoint`` is the path of a checkpoint, or True for
        the last complete one in ``output_dir``. A stage in progress may be given more
        epochs than it was begun with. The objective of a ``trial`` is that of the result.

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
        result = None
        if resume_from_checkpoint and not is_complete(Path(resume_from_checkpoint)):
            raise ValueError(
                f"{resume_from_checkpoint} holds no complete checkpoint; pass the path of one, or True for the last "
                "one in output_dir"
            )
        if resume_from_checkpoint:
            self.check_resumes(resume_from_checkpoint, steps_done(resume_from_checkpoint))
        if resume_from_checkpoint and self.was_finished(resume_from_checkpoint):
            logger.info("%s: training had ended by rule; nothing left to train", resume_from_checkpoint)
        else:
            result = self._run_stages(resume_from_checkpoint, trial, *args, **kwargs)
        self.load_result()
        return result

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
        """Whether the run that ``checkpoint`` belongs to had ended before its last planned step."""
        return False

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
        self._evaluated_at = self._saved_at = -1
        self._running.clear()  # auto_find_batch_size begins anew
        self.check_run()
        with self.at_work():
            return super()._inner_training_loop(*args, **kwargs)

    def check_run(self) -> None:
        """Look for what would stop the run after its first step.

        Raises:
            ValueError: labels, batches, callbacks or metrics that cannot be trained with.
            OSError: the output folder is a file, or not to be written to.
        """
        if self.args.should_save:
            check_writable(self.run_folder)
        if self.train_dataset is None or (hasattr(self.train_dataset, "__len__") and not len(self.train_dataset)):
            raise ValueError("train_dataset must hold images: confidence is measured on them, too; pass some")
        check_fields(self.args)  # a trial has others
        self.planned_values()
        stages, callbacks = cast(StagePlan, self.plan).stages, self.callback_handler.callbacks
        if self._stage_callback not in callbacks:
            raise ValueError("StageCallback was removed, and without it there are no stages; leave it in")
        if len(stages) > 1 and any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
            raise ValueError(
                f"EarlyStoppingCallback compares metrics across the stages {', '.join(stage.name for stage in stages)},"
                " and would end training before the last one; leave it out, and give the first stage its length "
                "(num_train_epochs): the last one ends by rule"
            )
        classes = self.model.config.num_labels
        splits = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else (self.eval_dataset,)
        for dataset in (self.train_dataset, self.test_dataset, *splits):
            check_labels(dataset, classes)
        with unchanged_randomness():
            for stage in stages:
                self._check_batches(stage)
            self.model.eval()  # a collator may ask
            for name in self._eval_names():
                split = name or "validation"
                check_batch(first_batches(self.get_eval_dataloader(name), split)[0], classes, split)
            self._check_metrics()

    def _check_batches(self, stage: PlannedStage) -> None:
        """Compute the loss of a later stage for soft labels, which not every loss knows."""
        later = stage.start > 0
        self.model.train()
        if self._own_loss:
            self.bare_model.progress = Progress.at_end(stage.name)  # a collator may ask
        # Whether images are mixed is often drawn per batch.
        for batch in first_batches(self.get_train_dataloader(), "training", 4 if later else 1):
            check_batch(batch, self.model.config.num_labels, "training", soft=True)
            if later and batch["labels"].is_floating_point():
                with torch.no_grad(), self.compute_loss_context_manager():
                    super().compute_loss(self.model.eval(), self._prepare_inputs(batch))

    def _eval_names(self) -> list[str | None]:
        """Names of the evaluation data; None is that of a single data set."""
        if isinstance(self.eval_dataset, dict):
            return list(self.eval_dataset)
        return [] if self.eval_dataset is None else [None]

    def _check_metrics(self) -> None:
        """Evaluate once, if what is evaluated is not known."""
        own = self.compute_metrics is classification_metrics and self.preprocess_logits_for_metrics is None
        best = self.args.metric_for_best_model
        if (own and best is None) or self.eval_dataset is None or not self._reads_plain_checkpoints(None):
            return
        found: dict[str, Any] = {}
        for name in self._eval_names():
            loader, prefix = self.get_eval_dataloader(name), "eval" if name is None else f"eval_{name}"
            try:
                found |= self.evaluation_loop(loader, "Evaluation", metric_key_prefix=prefix).metrics
                json.dumps(found, sort_keys=True)
            except Exception as error:
                raise ValueError(
                    f"compute_metrics fails on the validation split: {type(error).__name__}: {error}; it must return a "
                    "dictionary of names and numbers"
                ) from error
        if best is not None and f"eval_{best.removeprefix('eval_')}" not in found:
            raise ValueError(
                f"metric_for_best_model={best} is not measured; pass one of "
                f"{', '.join(sorted(name.removeprefix('eval_') for name in found))}"
            )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Begin the defense and freeze the weights that do not learn; free them again afterwards."""
        learning = [weight for weight in self.bare_model.parameters() if weight.requires_grad]
        try:
            if self._own_loss:
                self.defense.begin(self._training_run())
                self.bare_model.in_training_run = True
            self._frozen_by_defense = not all(weight.requires_grad for weight in learning)
            unused = self._unused_parameters()
            self._unused = {id(weight) for weight in unused}
            for weight in unused:
                weight.requires_grad_(False)
            yield
        finally:
            for weight in learning:
                weight.requires_grad_(True)
            if self._own_loss:
                self.bare_model.in_training_run = False

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
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.train_dataset is None:
            return []
        samples = some_samples(self.train_dataset, 2 * self.args.world_size)
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed
            batch = next(iter(self.get_test_dataloader(samples)))
        inputs = self._prepare_inputs({name: value for name, value in batch.items() if name != "labels"})
        with self.compute_loss_context_manager():
            return unused_parameters(self.model, inputs)

    def check_learns(self) -> None:
        """Refuse, before the first step, a run in which the head, or everything in front of it, cannot learn.

        A backbone that the defense itself freezes passes.

        Raises:
            ValueError: as :func:`~calor_hf.training.checks.check_learns`.
        """
        of_others = any(name in self.args.optim for name in ("layerwise", "lomo"))
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or of_others:
            return  # their optimizers do not hold the model's weights
        model, paths = self.bare_model, ["classification_head"]
        if not self._own_loss:
            with unchanged_randomness():  # the class is built anew
                paths = find_heads(type(model), model.config)
        heads = {path: model.get_submodule(path) for path in paths}
        of_heads = {id(weight) for head in heads.values() for weight in head.parameters()}
        rest = [] if self._frozen_by_defense else [one for one in model.parameters() if id(one) not in of_heads]
        check_learns(heads, rest, self.optimizer, self._unused)

    # Loss

    def show_progress(self) -> None:
        """Set the stage of the model to that of the next step."""
        if self._own_loss:
            self.bare_model.progress = self.progress()

    def begin_step(self) -> None:
        """Start an optimizer step: the next batch is its first."""
        self._parts_of_step = 0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.training_step``; counts the batches that an optimizer step accumulates."""
        result = super().training_step(*args, **kwargs)
        self._parts_of_step += 1
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
        if self._own_loss:
            progress = self.bare_model.progress = self.progress(of_last_step=not model.training)
            if model.training and labels is not None:
                draws = self.draws_of_batch(len(labels), self._parts_of_step)
                inputs = self.defense.on_batch(inputs, draws, progress)
                labels = inputs["labels"]
        if model.training and self.plan is not None and self.plan.at(self.state.global_step).fixed_batch_norm:
            for module in self._batch_norms:
                module.eval()
        if self._own_loss or labels is None:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            terms = outputs.loss_terms if self._own_loss else {}
        else:
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
            out = Forward(scores_of(outputs).float(), labels, class_weights=self._class_weights)
            terms = self.defense.loss(out, self.progress())
            loss = torch.stack(list(terms.values())).sum()
        if model.training and labels is not None:
            seen = outputs.margins if self._own_loss else None
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

    def is_unfinished(self) -> bool:
        """Whether a run of several stages has steps left."""
        plan = self.plan
        return plan is not None and len(plan.stages) > 1 and self.state.global_step < plan.total_steps

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

    # Measuring

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As ``Trainer.get_eval_dataloader``.

        Raises:
            ValueError: there is no data set of that name.
        """
        if isinstance(eval_dataset, str) and eval_dataset not in self._eval_names():
            known = ", ".join(map(repr, filter(None, self._eval_names()))) or "no name"
            raise ValueError(f"eval_dataset must be a data set or {known}, got {eval_dataset!r}")
        return super().get_eval_dataloader(eval_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.evaluation_loop``, of the model that is saved: with the first process's batch norms."""
        if self.args.world_size > 1:
            broadcast([buffer for module in self._batch_norms for buffer in module.buffers()])
        return super().evaluation_loop(*args, **kwargs)

    def measure_result(self) -> None:
        """Measure the result on the test split if there is one, else on the validation split, if that is possible."""
        data = self.test_dataset if self.test_dataset is not None else self.eval_dataset
        if isinstance(self.model, PreTrainedModel) and data is not None and not isinstance(data, dict):
            self.measured = self.measure(data, "validation" if self.test_dataset is None else "test")
            self._measured_versions = self._versions()

    def measure(self, dataset: Any, split: str) -> Measured:
        """Metrics of the result on ``dataset``, and its accuracy and confidence on training images."""
        name = self.model.config.defense if self._own_loss else "undefended"
        metrics, *classes = self._measure(dataset)
        return Measured(split, {name: metrics}, *classes)

    def _measure(self, dataset: Any) -> tuple[dict[str, float], list[int], list[int]]:
        """Metrics of the model as it is; label and predicted class of each image."""
        with self._own_metrics(classification_metrics):
            found = self.predict(dataset, metric_key_prefix="test")
        kept = {name: found.metrics[f"test_{name}"] for name in ("accuracy", "nll", "ece", "confidence")}
        training = self.measure_training_images()
        kept |= {f"train_{name}": training[name] for name in ("accuracy", "confidence_correct")}
        return kept, found.label_ids[found.label_ids >= 0].tolist(), predicted_classes(found).tolist()

    @contextmanager
    def _own_metrics(self, metrics: Callable[[Any], dict[str, float]]) -> Iterator[None]:
        """Evaluate with ``metrics``, whatever the user's evaluations look like."""
        of_args = {
            "batch_eval_metrics": False, "prediction_loss_only": False, "include_for_metrics": [],
            "eval_do_concat_batches": True, "bf16_full_eval": False, "fp16_full_eval": False,
        }  # fmt: skip
        own: list[tuple[Any, str, Any]] = [(self.args, name, value) for name, value in of_args.items()]
        own += [(self, "compute_metrics", metrics), (self, "preprocess_logits_for_metrics", None)]
        usual = [(place, name, getattr(place, name)) for place, name, _ in own]
        try:
            for place, name, value in own:
                setattr(place, name, value)
            yield
        finally:
            for place, name, value in usual:
                setattr(place, name, value)

    def measure_training_images(
        self, metrics: Callable[[Any], dict[str, float]] = classification_metrics
    ) -> dict[str, float]:
        """``metrics`` over training images in evaluation mode, without augmentation if the data can do without.

        At most ``confidence_samples`` of them (2048 with plain ``TrainingArguments``) are used, evenly spread.
        """
        samples = some_samples(self.train_dataset, getattr(self.args, "confidence_samples", 2048))
        # Not get_eval_dataloader: with persistent workers that returns the validation split's.
        return self.measure_images(self.get_test_dataloader(samples), metrics)

    def measure_images(
        self, loader: Any, metrics: Callable[[Any], dict[str, float]] = classification_metrics
    ) -> dict[str, float]:
        """``metrics`` over the batches of ``loader``, in evaluation mode."""
        with self._own_metrics(metrics):
            found = self.evaluation_loop(loader, "Images", metric_key_prefix="own").metrics
        return {name.removeprefix("own_"): value for name, value in found.items() if name != "own_loss"}

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
                self._save_record(folder)
            elif self.plan is not None and self.args.should_save:
                write_json(folder / RUN, self._about_run(self.plan))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save_record(self, folder: Path) -> None:
        if self.measured is None or self._versions() != self._measured_versions or not self.args.should_save:
            return
        file, weights = folder / RECORD, weights_digest(folder)
        if file.is_file() and read_json(file, {"weights?": str | None}).get("weights") == weights:
            return  # perhaps with entries that only its writer knew
        write_record(folder, self.record(self.measured))

    def record(self, measured: Measured, **about: Any) -> dict[str, Any]:
        """Numbers of the finished run, as ``metrics.json`` holds them; ``about`` as for :func:`training_record`."""
        done, seed, seconds = self.state.global_step, self.args.seed, self.train_seconds
        return training_record(self.model, self.plan, done, measured, seed=seed, train_seconds=seconds, **about)

    def _versions(self) -> list[int]:
        # torch counts changes in place: weights that were changed after the measurement are not what it is about.
        return [weight._version for weight in self.model.parameters()]

    def save_state(self) -> None:
        """As ``Trainer.save_state``; raises ``NotSavedError`` if the disk is full or cannot be written to."""
        with saving(self.args.output_dir):
            super().save_state()

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

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.defense.state_dict()
        if state and self.args.should_save:
            torch.save(state, Path(output_dir) / DEFENSE_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint and self._reads_plain_checkpoints(None) and not (Path(checkpoint) / SCHEDULER_NAME).is_file():
            raise ValueError(
                f"{checkpoint} has no optimizer and no schedule (save_only_model), so its stage cannot go on; train "
                "again, or pass an earlier checkpoint"
            )
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint and isinstance(self.lr_scheduler, SequentialLR) and self.plan is not None:
            # By the arguments of now: the stages may be longer, and have other rates, than when it was saved.
            self.lr_scheduler = schedule_of(self.plan, self.optimizer, self.args, steps_done(checkpoint))
        path = Path(checkpoint or "") / DEFENSE_STATE
        if self._own_loss and checkpoint and path.is_file():
            self.defense.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    # Publishing

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publish the model, its image processor and its card in one commit; all processes have to call it.

        Arguments are those of ``Trainer.push_to_hub``, with ``private`` (None means ``hub_private_repo``) and those of
        :meth:`create_model_card`. When this returns, the push has ended, whatever ``blocking`` says.

        Returns:
            The commit; None in other processes than the first, and during training (with a warning).

        Raises:
            PermissionError: the Hub refuses.
            PushFailedError: the Hub cannot be reached; its content is untouched, and the same call again continues.
        """
        if self.is_in_train and not getattr(self.args, "push_unfinished", False):
            logger.warning("not pushed: training is not over, so the model is not defended yet")
            return None
        folder = Path(self.args.output_dir)
        self.save_model(_internal_call=True)
        self._save_record(folder)
        if not self.is_world_process_zero():
            return None
        options = {"token": token, "revision": revision, "private": private}
        return self._publish(folder, commit_message or "End of training", options, kwargs)

    def create_model_card(self, **kwargs: Any) -> None:
        """Write ``README.md`` into the output folder, or bring it up to date.

        Arguments are those of ``Trainer.create_model_card``, with the limits of
        :func:`~calor_hf.training.publishing.card_details`.
        """
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            write_card(folder, self.model, card_details(folder.absolute().name, **kwargs))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        unfinished = getattr(self.args, "push_unfinished", False) and self.args.hub_strategy != HubStrategy.END
        if not unfinished or not self.is_world_process_zero():
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._publish(Path(checkpoint_folder), message, {}, {"tags": ["unfinished-training"]})
        except PushFailedError as error:
            logger.warning("%s", error)

    def _publish(self, folder: Path, message: str, options: dict[str, Any], details: dict[str, Any]) -> Any:
        own = getattr(self, "hub_model_id", None) or self.args.hub_model_id
        repo = own or Path(self.args.output_dir).absolute().name
        about = card_details(repo, repo, **details)
        return publish(folder, self.model, about, self.args, repo=repo, message=message, **options)


def score_in_chunks(model: Any, classes: int | None) -> None:
    """Let ``model`` score that many classes at a time if labels are given. None means all at once.

    Raises:
        ValueError: the model is not defended, or needs all scores.
    """
    if hasattr(model, "score_in_chunks"):
        model.score_in_chunks(classes)
        if classes is None and model.config.num_labels >= MANY_CLASSES and model.defense.log_odds_suffice:
            logger.info("%d classes: class_chunk=4096 (--class-chunk 4096) saves memory", model.config.num_labels)
    elif classes is not None:
        raise ValueError(
            "class_chunk needs a defended model; DefendedForImageClassification.from_base(model, 'none') is one with "
            "no defense"
        )
