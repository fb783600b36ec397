"""Two-stage training of CALoR: cross-entropy, then confidence adaptation within an accuracy budget."""

import logging
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from calor_hf.core.files import read_json
from calor_hf.defenses.calor import reachable_confidence
from calor_hf.modeling.modeling_calor import CALoRForImageClassification
from calor_hf.training.checkpoints import TRAINER_STATE, load_weights
from calor_hf.training.metrics import classification_metrics, true_class_confidence
from calor_hf.training.record import Measured
from calor_hf.training.selection import Selection, select_adapted
from calor_hf.training.trainer import DefenseTrainer

logger = logging.getLogger(__name__)

FIRST_STAGE_FOLDER = "stage-1"
_UNDERFITTED_ACCURACY = 0.9
_UNREACHED_SHARE = 0.05


class AccuracyLostError(RuntimeError):
    """No checkpoint of the adapt stage kept the accuracy of the first stage."""


class CALoRTrainer(DefenseTrainer):
    """Train a :class:`CALoRForImageClassification`: stage ``fit`` (cross-entropy), then ``adapt``.

    After each epoch of the adapt stage the confidence of training images is measured (evaluation mode; without
    augmentation where the training data have ``without_augmentation()``). The stage stops by rule, and the model that
    :meth:`train` leaves behind is the checkpoint chosen by :func:`~calor_hf.training.selection.select_adapted`. The
    model at the end of the first stage is kept in ``output_dir/stage-1``.

    ``eval_dataset`` has to be a validation split, not the test split: the checkpoint is chosen on it.

    Args:
        args: As for ``Trainer``; the arguments are :class:`~calor_hf.training.arguments.CALoRTrainingArguments`.
        kwargs: As for :class:`~calor_hf.training.trainer.DefenseTrainer`.

    Raises:
        TypeError: the model is not a CALoR model.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.bare_model, CALoRForImageClassification):
            raise TypeError(
                f"CALoRTrainer trains CALoRForImageClassification models, got {type(self.bare_model).__name__}; make "
                "one with CALoRForImageClassification.from_base(model)"
            )

    @property
    def target(self) -> float:
        """Confidence e^(−1/b) that the adapt stage leads to."""
        return float(self.bare_model.defense.target_confidence)

    @property
    def sharpness(self) -> float:
        """Sharpness b of the confidence adaptation, a setting of the model."""
        return float(self.bare_model.defense.config.ca_b)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train both stages, or continue an interrupted run; then load the chosen checkpoint and measure it.

        Raises:
            AccuracyLostError: no adapted checkpoint keeps the accuracy, and ``accept_unadapted`` is off.
            ValueError: there is no validation split, or no checkpoint to resume from.
            TrainingInterrupted: Ctrl-C.
        """
        if self.eval_dataset is None or isinstance(self.eval_dataset, dict):
            raise ValueError(
                "CALoRTrainer needs one eval_dataset, a validation split (not the test split): it decides how far "
                "confidence adaptation may go; e.g. train_dataset.train_test_split(0.1)"
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As ``Trainer.evaluate``; in the adapt stage, training confidence is measured and the rule applied too."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self.is_in_train and self.is_checkpoint_step(self.state.global_step):
            self._evaluate_adapting()
        return metrics

    def selection(self) -> Selection:
        """Apply the rule to the run so far."""
        if self.plan is None:
            raise ValueError("train first: the rule reads the training log")
        start = self.plan.stages[-1].start
        steps = [s for s in range(start + 1, self.plan.total_steps + 1) if self.is_checkpoint_step(s)]
        return select_adapted(
            self.state.log_history,
            start,
            steps,
            self.target,
            self.args.confidence_tolerance,
            self.args.max_accuracy_drop,
            len(self.eval_dataset),
        )

    def _evaluate_adapting(self) -> None:
        metrics = self.measure_training_images(self._training_image_metrics)
        self.log({f"train_{name}": value for name, value in metrics.items()})
        selection = self.selection()
        if not selection.candidates:
            self._announce(metrics)
            self.save_model(str(self._first_stage_folder), _internal_call=True)
            return
        if selection.best is not None:
            self.state.best_global_step = selection.best.step  # this checkpoint is kept when others are deleted
        if selection.finished:
            self.control.should_training_stop = True

    def _training_image_metrics(self, prediction: Any) -> dict[str, float]:
        found = classification_metrics(prediction)
        unreached = (true_class_confidence(prediction) < reachable_confidence(self.sharpness)).mean()
        kept = {name: found[name] for name in ("accuracy", "confidence_correct")}
        return {**kept, "unreached": float(unreached)}

    def _announce(self, metrics: dict[str, float]) -> None:
        logger.info(
            "adapt stage begins: mean confidence of correctly classified training images is %.4f, target %.4f; "
            "%.1f %% of the training images are below %.2f, where the loss hardly pulls: they stay as they are",
            metrics["confidence_correct"],
            self.target,
            100 * metrics["unreached"],
            reachable_confidence(self.sharpness),
        )
        if metrics["accuracy"] < _UNDERFITTED_ACCURACY or metrics["unreached"] > _UNREACHED_SHARE:
            logger.warning(
                "the model is under-fitted: %.1f %% training accuracy, %.1f %% of the training images out of the adapt "
                "loss's reach. Adapting such a model costs accuracy; train the first stage longer or raise the rank.",
                100 * metrics["accuracy"],
                100 * metrics["unreached"],
            )

    def load_result(self) -> None:
        """Load the checkpoint that the rule chose.

        Raises:
            AccuracyLostError: no checkpoint keeps the accuracy, and ``accept_unadapted`` is off.
        """
        selection = self.selection()
        if selection.best is not None:
            load_weights(self.model, self._checkpoint(selection.best.step))
            if abs(selection.best.confidence - self.target) > self.args.confidence_tolerance:
                logger.warning(
                    "the result is not at the target: its training confidence is %.4f, not %.4f; nearer checkpoints "
                    "lost more accuracy than allowed, or the adapt stage was too short (adapt_epochs, "
                    "adapt_learning_rate)",
                    selection.best.confidence,
                    self.target,
                )
            return
        reference = selection.reference
        accuracies = ", ".join(f"{100 * c.accuracy:.2f}" for c in selection.candidates) or "none evaluated"
        message = (
            f"no adapted checkpoint keeps the accuracy: {100 * reference.accuracy if reference else 0:.2f} % after the "
            f"first stage, at most {100 * selection.budget:.2f} points may be lost, after adapting: {accuracies} %. "
            f"The first stage's model is in {self._first_stage_folder}"
        )
        if not self.args.accept_unadapted:
            raise AccuracyLostError(
                f"{message}. Train the first stage longer, raise the rank, lower adapt_learning_rate, adapt only the "
                "last layer (--adapt-only-last-layer), allow a larger max_accuracy_drop, or take the unadapted model "
                "with accept_unadapted (--accept-unadapted)"
            )
        logger.warning("%s; accept_unadapted: it is the result, its confidence is not adapted", message)
        load_weights(self.model, self._first_stage_folder)

    def measure(self, dataset: Any, split: str) -> Measured:
        """Metrics of the first stage's model and of the result, whose weights the model keeps."""
        result, *classes = self._measure(dataset)
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        load_weights(self.model, self._first_stage_folder)
        before, *_ = self._measure(dataset)
        self.model.load_state_dict(kept)
        return Measured(split, {"before adapting": before, "result": result}, *classes)

    def was_finished(self, checkpoint: str) -> bool:
        """Whether the adapt stage had ended by rule at ``checkpoint``."""
        self.planned_values()
        state = read_json(Path(checkpoint) / TRAINER_STATE, {"log_history": list, "global_step": int})
        self.state.log_history, self.state.global_step = state["log_history"], state["global_step"]
        return self.selection().finished

    def _checkpoint(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"

    @property
    def _first_stage_folder(self) -> Path:
        return Path(self.args.output_dir) / FIRST_STAGE_FOLDER


TRAINERS: dict[type[Any], type[DefenseTrainer]] = {CALoRForImageClassification: CALoRTrainer}
"""Trainers of model classes that need more than :class:`DefenseTrainer`."""


def trainer_class(model: Any) -> type[DefenseTrainer]:
    """Trainer class for a model."""
    return TRAINERS.get(type(model), DefenseTrainer)
