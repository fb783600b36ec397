"""Two-stage training of CALoR: cross-entropy, then confidence adaptation within an accuracy budget."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calor_hf.core.outputs import Stage
from calor_hf.core.report_text import percent
from calor_hf.defenses.calor import reachable_confidence
from calor_hf.modeling.modeling_calor import CALoRForImageClassification
from calor_hf.training.checkpoints import load_weights
from calor_hf.training.measuring import Measured
from calor_hf.training.metrics import classification_metrics, is_correct, true_class_confidence
from calor_hf.training.trainer import DefenseTrainer
from calor_hf.training.underfit import UNDERFITTED, learning_rate_hint

logger = logging.getLogger(__name__)

FIRST_STAGE_FOLDER = "stage-1"
_MEASURED = {"validation_accuracy", "validation_images", "train_confidence_correct"}
_OF_TRAINING = ("accuracy", "confidence_correct", "deviation", "unreached")
_UNREACHED_SHARE = 0.05
_NOTHING_MOVES = 0.95
"""Share of training images out of the adapt loss's reach above which the adapt stage is left out."""


class NotAdaptedError(RuntimeError):
    """The run has no adapted checkpoint: it was stopped before."""


class AccuracyLostError(NotAdaptedError):
    """No checkpoint of the adapt stage kept the accuracy of the first stage."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint as the rule sees it: after ``step`` optimizer steps.

    Attributes:
        accuracy: On the validation split, in [0, 1].
        confidence: Mean probability of the true class over correctly classified training images, in [0, 1].
        deviation: Mean distance of that probability from the target, in [0, 1].
    """

    step: int
    accuracy: float
    confidence: float
    deviation: float = math.nan


@dataclass(frozen=True)
class Selection:
    """Checkpoints seen by the rule so far.

    Attributes:
        reference: End of the first stage, or None before it.
        candidates: Checkpoints of the adapt stage, in order.
        best: The result as it stands, or None if no candidate keeps the accuracy.
        finished: Whether to stop adapting.
        budget: Accuracy that adapting may cost, in [0, 1].
        left_out: Whether there is no adapting, as nearly no training image is within reach of its loss.
    """

    reference: Candidate | None
    candidates: tuple[Candidate, ...]
    best: Candidate | None
    finished: bool
    budget: float
    left_out: bool = False


class CALoRTrainer(DefenseTrainer):
    """Train a :class:`CALoRForImageClassification`: stage ``fit`` (cross-entropy), then ``adapt``.

    After each epoch of the adapt stage the confidence of training images is measured. The stage stops by rule, and the
    model that :meth:`train` leaves behind is the checkpoint chosen by :func:`select_adapted`. The model at the end of
    the first stage is kept in ``output_dir/stage-1``.

    Arguments are those of ``DefenseTrainer``; ``args`` are
    :class:`~calor_hf.training.arguments.CALoRTrainingArguments`, and ``eval_dataset`` has to be a validation split, not
    the test split: the checkpoint is chosen on it.

    Raises:
        TypeError: the model is not a CALoR model.
        ValueError: the arguments have no stages.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.bare_model, CALoRForImageClassification):
            raise TypeError(
                f"CALoRTrainer trains CALoRForImageClassification models, got {type(self.bare_model).__name__}; make "
                "one with CALoRForImageClassification.from_base(model)"
            )
        self.stages()  # refuses arguments without them

    @property
    def target(self) -> float:
        """Confidence e^(−1/b) that the adapt stage leads to."""
        return float(self.bare_model.defense.target_confidence)

    @property
    def sharpness(self) -> float:
        """Sharpness b of the confidence adaptation, a setting of the model."""
        return float(self.bare_model.defense.config.ca_b)

    def train_stages(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train both stages, or continue an interrupted run; then load the chosen checkpoint.

        Raises:
            AccuracyLostError: no adapted checkpoint keeps the accuracy, and ``accept_unadapted`` is off.
            ValueError: there is no validation split; or what :meth:`DefenseTrainer.train_stages` raises.
        """
        if self.eval_dataset is None or isinstance(self.eval_dataset, dict):
            raise ValueError(
                "CALoRTrainer needs one eval_dataset, a validation split (not the test split): it decides how far "
                "confidence adaptation may go; e.g. train_dataset.train_test_split(0.1)"
            )
        return super().train_stages(resume_from_checkpoint, *args, **kwargs)

    def selection(self) -> Selection:
        """Apply the rule to the run so far."""
        if self.plan is None:
            raise ValueError("train first: the rule reads the training log")
        start = self.plan.stages[-1].start
        steps = [s for s in range(start + 1, self.plan.total_steps + 1) if self.is_checkpoint_step(s)]
        limits = self.target, self.args.confidence_tolerance, self.args.max_accuracy_drop
        at_target = self.plan.stages[0].rescale_to is not None
        return select_adapted(self.state.log_history, start, steps, *limits, at_target)

    def chosen_step(self) -> int | None:
        """Step of the checkpoint that the rule chooses so far."""
        best = self.selection().best if self.plan is not None else None
        return None if best is None else best.step

    def end_stage(self, stage: Stage) -> None:
        """As :meth:`DefenseTrainer.end_stage`; a model that was trained before is measured as the reference first."""
        if stage.name == "fit" and self.selection().reference is None:
            self.evaluate_candidate()
        if stage.name == "fit" or self.chosen_step() is not None:
            super().end_stage(stage)

    def evaluate_candidate(self) -> None:
        """Measure validation accuracy and training confidence, and apply the rule."""
        reachable = reachable_confidence(self.sharpness)

        def of_validation_images(prediction: Any) -> dict[str, float]:
            counted = int((prediction.label_ids >= 0).sum())
            return {"accuracy": classification_metrics(prediction)["accuracy"], "images": counted}

        def of_training_images(prediction: Any) -> dict[str, float]:
            found, confidence = classification_metrics(prediction), true_class_confidence(prediction)
            kept = {name: found[name] for name in ("accuracy", "confidence_correct")}
            right = is_correct(prediction)
            deviation = float(abs(confidence - self.target)[right].mean()) if right.any() else math.nan
            return {**kept, "deviation": deviation, "unreached": float((confidence < reachable).mean())}

        metrics = self.measure_training_images(of_training_images)
        validation = self.measure_images(self.get_eval_dataloader(), of_validation_images)
        of_training = {f"train_{name}": metrics[name] for name in _OF_TRAINING}
        self.log({**of_training, **{f"validation_{name}": validation[name] for name in ("accuracy", "images")}})
        selection = self.selection()
        if selection.candidates:
            self.control.should_training_stop |= selection.finished
            return
        if metrics["unreached"] > 0.5 and self.state.global_step == 0:
            raise ValueError(
                f"{percent(metrics['unreached'])} of the training images are below {reachable:.2f}, where the adapt "
                "loss hardly pulls, so it cannot start from this model; train the first stage (num_train_epochs > 0), "
                "or start from a trained classifier (head_init='svd')"
            )
        self.save_model(str(self._first_stage_folder), _internal_call=True)
        self.control.should_training_stop |= selection.finished
        logger.info(
            "adapt stage %s: mean confidence of correctly classified training images is %.4f, target %.4f; "
            "%s of the training images are below %.2f, where the loss hardly pulls: they stay as they are",
            *("is left out" if selection.left_out else "begins", metrics["confidence_correct"], self.target),
            *(percent(metrics["unreached"]), reachable),
        )
        if metrics["accuracy"] < UNDERFITTED or metrics["unreached"] > _UNREACHED_SHARE:
            hint = learning_rate_hint(self, self.eval_dataset, validation["accuracy"])
            logger.warning(
                "the model is under-fitted: %s training accuracy, %s of the training images out of the adapt "
                "loss's reach. Adapting such a model costs accuracy; %s",
                *(percent(metrics["accuracy"]), percent(metrics["unreached"])),
                hint or "train the first stage longer or raise the rank.",
            )

    def load_result(self) -> None:
        """Load the checkpoint that the rule chose.

        Raises:
            NotAdaptedError: no adapted checkpoint exists or keeps the accuracy, and ``accept_unadapted`` is off.
        """
        selection = self.selection()
        if selection.best is not None:
            load_weights(self.model, self.checkpoint_folder(selection.best.step))
            rescaled = self.stages()[-1].rescale_to is not None
            if not rescaled and abs(selection.best.confidence - self.target) > self.args.confidence_tolerance:
                logger.warning(
                    "the result is not at the target: its training confidence is %.4f, not %.4f; nearer checkpoints "
                    "lost more accuracy than allowed, or the adapt stage was too short (adapt_epochs, "
                    "adapt_learning_rate)",
                    *(selection.best.confidence, self.target),
                )
            return
        if selection.left_out:
            logger.warning(
                "the adapt stage was left out, as nearly no training image is within reach of its loss; the result is "
                "the first stage's, its confidence is not adapted"
            )
            load_weights(self.model, self._first_stage_folder)
            return
        reference, step, total = selection.reference, self.state.global_step, self.state.max_steps
        if reference is None or not selection.candidates:
            kind = NotAdaptedError
            message = (
                f"training ended in stage '{self.progress().stage}' after step {step} of {total}, before an adapted "
                f"checkpoint: a callback stopped it, or a stream had no more data; the last checkpoint is "
                f"{self.checkpoint_folder(step)}"
            )
            remedy = "Continue with train(resume_from_checkpoint=True) without that callback"
        else:
            kind = AccuracyLostError
            accuracies = ", ".join(percent(c.accuracy, 2) for c in selection.candidates)
            message = (
                f"no adapted checkpoint keeps the accuracy: {percent(reference.accuracy, 2)} after the first stage, at "
                f"most {100 * selection.budget:.2f} points may be lost, after adapting: {accuracies}. The first "
                f"stage's model is in {self._first_stage_folder}"
            )
            remedy = (
                "Train the first stage longer, raise the rank, lower adapt_learning_rate, adapt only the last layer "
                "(--adapt-only-last-layer), allow a larger max_accuracy_drop"
            )
        if not self.args.accept_unadapted:
            raise kind(f"{message}. {remedy}, or take the unadapted model with accept_unadapted (--accept-unadapted)")
        logger.warning("%s; accept_unadapted: the result is the first stage's, its confidence is not adapted", message)
        if reference is not None:
            load_weights(self.model, self._first_stage_folder)

    def measure(self, dataset: Any, split: str) -> Measured:
        """Metrics of the first stage's model, if it was finished, and of the result, whose weights the model keeps."""
        result, *classes = self.measure_split(dataset)
        if self.selection().reference is None:
            return Measured(split, {"result": result}, *classes)
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        load_weights(self.model, self._first_stage_folder)
        before, *_ = self.measure_split(dataset)
        self.model.load_state_dict(kept)
        return Measured(split, {"before adapting": before, "result": result}, *classes)

    def record(self, measured: Measured, **about: Any) -> dict[str, Any]:
        """As :meth:`DefenseTrainer.record`, and whether the result is an adapted model."""
        return super().record(measured, adapted=self.chosen_step() is not None, **about)

    def was_finished(self, checkpoint: str) -> bool:
        """As :meth:`DefenseTrainer.was_finished`, or whether the adapt stage had ended by rule at ``checkpoint``."""
        return super().was_finished(checkpoint) or self.selection().finished

    @property
    def _first_stage_folder(self) -> Path:
        return self.run_folder / FIRST_STAGE_FOLDER


def select_adapted(
    history: Sequence[dict[str, Any]], reference_step: int, candidate_steps: Sequence[int], target: float,
    tolerance: float, max_accuracy_drop: float, at_target: bool = False,
) -> Selection:  # fmt: skip
    """Apply the rule to a training log: a pure function, so that a resumed run decides alike.

    The result is the candidate whose confidence is closest to ``target`` among those whose validation accuracy is
    within ``max(max_accuracy_drop, one standard error)`` of the end of the first stage; candidates within
    ``tolerance`` of the target count as at it, and the most accurate of them wins. If a temperature brings the scores
    ``at_target``, before and after adapting, the candidate whose images deviate least from it wins.

    Accuracy dips in the first epoch of adapting and mostly comes back, so adapting stops when the result has come to
    the target and is as accurate as before; when the last three candidates kept the accuracy but brought no better
    result; or when they all lost too much and it gets worse. It does not begin if nearly no training image is within
    reach of its loss.

    Args:
        history: ``trainer.state.log_history``: entries with ``step``, ``validation_accuracy``, ``validation_images``
            (for the standard error), ``train_confidence_correct`` and ``train_unreached`` count.
        reference_step: Step at which the first stage ended.
        candidate_steps: Steps whose checkpoints may be chosen; evaluations at other steps do not count.
        target: Confidence e^(−1/b).
        tolerance: Distance to the target that counts as none.
        max_accuracy_drop: In points (hundredths).
        at_target: Whether a temperature brings the mean confidence to the target.
    """
    measured = {int(entry["step"]): entry for entry in history if entry.keys() >= _MEASURED}
    reference = _candidate(measured, reference_step)
    candidates = tuple(c for c in (_candidate(measured, step) for step in candidate_steps) if c is not None)
    if reference is None:
        return Selection(None, (), None, finished=False, budget=max_accuracy_drop / 100)
    unreached = 0.0 if at_target else measured[reference_step].get("train_unreached", 0.0)
    if not candidates and unreached > _NOTHING_MOVES:
        return Selection(reference, (), None, finished=True, budget=max_accuracy_drop / 100, left_out=True)

    images = max(1, measured[reference_step]["validation_images"])
    error = math.sqrt(reference.accuracy * (1 - reference.accuracy) / images)
    budget = max(max_accuracy_drop / 100, error)
    kept = [c for c in candidates if c.accuracy >= reference.accuracy - budget - 1e-9]

    def badness(candidate: Candidate) -> tuple[float, float, float]:
        distance = abs(candidate.confidence - target)
        if at_target:  # as each is once the scores are rescaled
            return 0.0, candidate.deviation, distance
        return max(0.0, distance - tolerance), -candidate.accuracy, distance

    best = min(kept, key=badness, default=None)
    recent = candidates[-3:]
    if not any(c in kept for c in recent):
        finished = len(recent) == 3 and recent[-1].accuracy < recent[0].accuracy
    else:
        reached = not at_target and best is not None and badness(best)[0] == 0 and best.accuracy >= reference.accuracy
        finished = reached or best not in recent
    return Selection(reference, candidates, best, finished, budget)


def _candidate(measured: dict[int, dict[str, Any]], step: int) -> Candidate | None:
    if step not in measured:
        return None
    accuracy, confidence = (float(measured[step][name]) for name in ("validation_accuracy", "train_confidence_correct"))
    deviation = float(measured[step].get("train_deviation", math.nan))
    return Candidate(step, accuracy, 0.0 if math.isnan(confidence) else confidence, deviation)


TRAINERS: dict[type[Any], type[DefenseTrainer]] = {CALoRForImageClassification: CALoRTrainer}
"""Trainers of model classes that need more than :class:`DefenseTrainer`."""


def trainer_class(model: Any) -> type[DefenseTrainer]:
    """Trainer class for a model."""
    return TRAINERS.get(type(model), DefenseTrainer)
