"""Measuring a result, the same way whatever the user's evaluations look like, and its record."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from calor_hf._version import __version__
from calor_hf.core.files import read_json, weights_digest, write_json
from calor_hf.core.peak_memory import peak_memory_bytes
from calor_hf.heads.rank_audit import rank_audit
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.training.metrics import classification_metrics, predicted_classes, some_samples
from calor_hf.training.stages import StagedTrainer

RECORD = "metrics.json"


@dataclass(frozen=True)
class Measured:
    """Metrics of a trained model.

    Attributes:
        split: Split that they were measured on: ``test`` or ``validation``.
        metrics: By the name of the model they belong to, in the order of training: the result is the last.
        labels: Class of each image of the split.
        predictions: Class that the result predicts for it.
    """

    split: str
    metrics: dict[str, dict[str, float]]
    labels: list[int]
    predictions: list[int]


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``metrics.json`` into the folder of a saved model, with the digest of the weights that it is about."""
    write_json(folder / RECORD, {**record, "weights": weights_digest(folder)}, indent=2)


class MeasuringTrainer(StagedTrainer):
    """``Trainer`` that measures its result with metrics of its own, and keeps the record.

    ``compute_metrics`` and ``preprocess_logits_for_metrics`` only say what is logged. All processes evaluate the model
    that is saved: the first one's, whose batch norms have seen other images.
    """

    compute_metrics: Any
    preprocess_logits_for_metrics: Any
    test_dataset: Any = None
    measured: Measured | None = None
    train_seconds = 0.0
    _measured_versions: Sequence[int] = ()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As ``Trainer.get_eval_dataloader``.

        Raises:
            ValueError: there is no data set of that name.
        """
        if isinstance(eval_dataset, str) and eval_dataset not in self.eval_names():
            known = ", ".join(map(repr, filter(None, self.eval_names()))) or "no name"
            raise ValueError(f"eval_dataset must be a data set or {known}, got {eval_dataset!r}")
        return super().get_eval_dataloader(eval_dataset)

    def eval_names(self) -> list[str | None]:
        """Names of the evaluation data; None is that of a single data set."""
        if isinstance(self.eval_dataset, dict):
            return list(self.eval_dataset)
        return [] if self.eval_dataset is None else [None]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.evaluation_loop``, with the first process's batch norms."""
        if self.args.world_size > 1:
            norms = (module for module in self.model.modules() if isinstance(module, _BatchNorm))
            broadcast([buffer for module in norms for buffer in module.buffers()])
        return super().evaluation_loop(*args, **kwargs)

    def measure_training_images(
        self, metrics: Callable[[Any], dict[str, float]] = classification_metrics, limit: int | None = None
    ) -> dict[str, float]:
        """``metrics`` over training images in evaluation mode, without augmentation if the data support that.

        At most ``limit`` and ``confidence_samples`` of them (2048 with plain ``TrainingArguments``) are used, evenly
        spread.
        """
        count = getattr(self.args, "confidence_samples", 2048)
        samples = some_samples(self.train_dataset, count if limit is None else min(count, limit))
        # Not get_eval_dataloader: with persistent workers that returns the validation split's.
        return self.measure_images(self.get_test_dataloader(samples), metrics)

    def measure_images(
        self, loader: Any, metrics: Callable[[Any], dict[str, float]] = classification_metrics
    ) -> dict[str, float]:
        """``metrics`` over the batches of ``loader``, in evaluation mode."""
        with self._own_metrics(metrics):
            found = self.evaluation_loop(loader, "Images", metric_key_prefix="own").metrics
        return {name.removeprefix("own_"): value for name, value in found.items() if name != "own_loss"}

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

    def measure_split(self, dataset: Any) -> tuple[dict[str, float], list[int], list[int]]:
        """Metrics of the model as it is; label and predicted class of each image."""
        with self._own_metrics(classification_metrics):
            found = self.predict(dataset, metric_key_prefix="test")
        kept = {name: found.metrics[f"test_{name}"] for name in ("accuracy", "nll", "ece", "confidence")}
        training = self.measure_training_images()
        kept |= {f"train_{name}": training[name] for name in ("accuracy", "confidence_correct")}
        return kept, found.label_ids[found.label_ids >= 0].tolist(), predicted_classes(found).tolist()

    def measure_result(self) -> None:
        """Measure the result on the test split if there is one, else on the validation split, if that is possible."""
        data = self.test_dataset if self.test_dataset is not None else self.eval_dataset
        if isinstance(self.model, PreTrainedModel) and data is not None and not isinstance(data, dict):
            self.measured = self.measure(data, "validation" if self.test_dataset is None else "test")
            self._measured_versions = self._versions()

    def measure(self, dataset: Any, split: str) -> Measured:
        """Metrics of the result on ``dataset``, and its accuracy and confidence on training images."""
        name = self.model.config.defense if self.own_loss else "undefended"
        metrics, *classes = self.measure_split(dataset)
        return Measured(split, {name: metrics}, *classes)

    def save_record(self, folder: Path) -> None:
        """Write ``metrics.json`` into the folder of the measured model, if it is not there."""
        if self.measured is None or self._versions() != self._measured_versions or not self.args.should_save:
            return
        file, weights = folder / RECORD, weights_digest(folder)
        if file.is_file() and read_json(file, {"weights?": str | None}).get("weights") == weights:
            return  # perhaps with entries that only its writer knew
        write_record(folder, self.record(self.measured))

    def record(self, measured: Measured, **about: Any) -> dict[str, Any]:
        """Numbers of the finished run, as ``metrics.json`` holds them.

        Args:
            measured: Metrics of the result.
            about: Entries that only the caller knows: ``dataset`` (its name, or ""), ``drawn`` (whether this library
                drew the images), ``dataset_id`` and ``base_model`` (Hub ids or None), ``backdoor``, ``wall_seconds``.
        """
        model, config, plan = self.model, self.model.config, self.plan
        done = self.state.global_step  # a rule may end the last stage early
        known = isinstance(config, DefendedConfig)
        return {
            "version": __version__,
            "defense": config.defense if known else "none",
            "settings": dict(config.defense_settings) if known else {},
            "head": dataclasses.asdict(rank_audit(model)),
            "peak_memory_bytes": peak_memory_bytes(),
            "dataset": "",
            "drawn": False,
            "dataset_id": None,
            "base_model": None,
            "backdoor": None,
            "seed": self.args.seed,
            "train_seconds": self.train_seconds,
            "split": measured.split,
            "images": len(measured.labels),
            "measured": measured.metrics,
            "target_confidence": self.defense.target_confidence,
            "classes": config.num_labels,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "wall_seconds": self.train_seconds,
            "steps": {one.name: max(0, min(one.stop, done) - one.start) for one in (plan.stages if plan else ())},
            **about,
        }

    def _versions(self) -> list[int]:
        # torch counts changes in place: weights that were changed after the measurement are not what it is about.
        return [weight._version for weight in self.model.parameters()]
