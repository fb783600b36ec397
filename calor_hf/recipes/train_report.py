"""What a training run shows: a line an epoch, a table, curves, and a file of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calor_hf.core.files import write_figure
from calor_hf.defenses.calor import target_confidence
from calor_hf.modeling import CALoRConfig, DefendedForImageClassification
from calor_hf.modeling.configuration_defended import DefendedConfig
from calor_hf.recipes.train_arguments import DataArguments
from calor_hf.training.record import training_record, write_record
from calor_hf.training.stages import StagePlan
from calor_hf.training.trainer import DefenseTrainer

_CLOSE = 0.05


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        model: The result, in memory.
        measured: Metrics by the name of the model they belong to, in the order of training.
        history: The training log.
        plan: The stages.
        seconds: Wall time of the run.
        test_images: Number of test images.
        seed: Of the run.
        dataset: What it was trained on.
        defense: Name of the defense.
        train_seconds: Wall time of its training alone, in this session.
        backdoor: What its training data were poisoned with, or None.
        base_model: Hub id of the base model, or None.
        dataset_id: Hub id of the data set, or None.
    """

    model: PreTrainedModel
    measured: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    plan: StagePlan | None
    seconds: float
    test_images: int
    seed: int
    dataset: str
    defense: str = "calor"
    train_seconds: float = 0.0
    backdoor: dict[str, Any] | None = None
    base_model: str | None = None
    dataset_id: str | None = None

    @property
    def target(self) -> float | None:
        """Confidence that a CALoR model is led to; None for others."""
        config = self.model.config
        return target_confidence(config.ca_b) if isinstance(config, CALoRConfig) else None


class EpochLine(TrainerCallback):
    """Prints one line an evaluation."""

    def __init__(self, trainer: DefenseTrainer) -> None:
        self.trainer = trainer
        self._last: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Gather the training log, and print it with the evaluation that follows."""
        logs = logs or {}
        if "loss" in logs:
            self._last = dict(logs)
        if "eval_accuracy" not in logs or not state.is_world_process_zero:
            return
        plan = self.trainer.plan
        stage = plan.at(max(state.global_step - 1, 0)).name if plan else ""
        parts = [f"{stage:<6} epoch {state.epoch or 0:5.1f}"]
        if "loss" in self._last:
            parts.append(f"loss {self._last['loss']:8.4f}")
        if "accuracy" in self._last:
            parts.append(f"train {100 * self._last['accuracy']:5.1f} %")
        parts.append(f"validation {100 * logs['eval_accuracy']:5.1f} %")
        if "confidence" in self._last:
            parts.append(f"confidence {self._last['confidence']:.3f}")
        print("  ".join(parts), flush=True)


def show_and_save(result: Result, folder: Path) -> None:
    """Print the table; write ``metrics.json`` and ``curves.png`` into ``folder``."""
    draw_curves(result, folder / "curves.png")
    write_record(folder, summary(result))  # last: all is there
    print()
    print(table(result))
    print()
    if result.target is not None:
        print(about_confidence(result.measured["result"]["train_confidence_correct"], result.target))
    if result.defense == "trap_mid":
        print(f"The checkpoints in {folder} hold the triggers, which open the model's backdoor: do not publish them.")
    if result.backdoor is not None:
        count, name = result.backdoor["poisoned_images"], result.backdoor["trigger"]["name"]
        print(f"{count} training images were poisoned ({name}): the model has a backdoor, do not publish it.")
    print(f"Curves: {folder / 'curves.png'}   Numbers: {folder / 'metrics.json'}")
    kind = type(result.model).__name__
    package = "calor_hf" if isinstance(result.model.config, DefendedConfig) else "transformers"
    config = result.model.config
    print(f"Load it: from {package} import {kind}; model = {kind}.from_pretrained({str(folder)!r})")
    if isinstance(result.model, DefendedForImageClassification) and not result.model.defense.own_head:
        print(f"model.to_base() gives a stock {config.base_class} for people without calor_hf; pushing uploads that.")


def about_confidence(reached: float, target: float) -> str:
    """What the confidence that was reached means for whoever uses the scores."""
    if abs(reached - target) <= _CLOSE:
        return f"Scores now top out near {target:.2f}: move old score thresholds."
    return (
        f"Confidence has not reached its target: {reached:.2f} instead of {target:.2f}. Scores top out near "
        f"{reached:.2f}: move old score thresholds. Train the first stage longer (higher --num-train-epochs) for more."
    )


def summary(result: Result) -> dict[str, Any]:
    """Numbers of the run, as they are written to ``metrics.json``."""
    return training_record(
        result.model,
        result.plan,
        result.measured,
        split="test",
        images=result.test_images,
        seed=result.seed,
        train_seconds=result.train_seconds,
        dataset=result.dataset,
        dataset_id=result.dataset_id,
        base_model=result.base_model,
        backdoor=result.backdoor,
        wall_seconds=result.seconds,
    )


def table(result: Result) -> str:
    """The short table at the end."""
    columns = list(result.measured)
    widths = [max(16, len(name) + 2) for name in columns]
    rows = [
        ("test accuracy", "accuracy", "{:.2%}"),
        ("test NLL (nats)", "nll", "{:.4f}"),
        ("test calibration error", "ece", "{:.4f}"),
        ("training accuracy", "train_accuracy", "{:.2%}"),
        ("training confidence*", "train_confidence_correct", "{:.4f}"),
    ]
    lines = [f"{'':<26}" + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))]
    for title, key, form in rows:
        cells = (
            f"{form.format(result.measured[name][key]):>{width}}" for name, width in zip(columns, widths, strict=True)
        )
        lines.append(f"{title:<26}" + "".join(cells))
    numbers = summary(result)
    target = f"; target {result.target:.4f}" if result.target is not None else ""
    lines.append(f"* mean true-class score of correctly classified training images{target}")
    rank = f"head rank {numbers['head']['head_rank']} of {numbers['classes']} classes, "
    lines.append(
        f"{rank}{numbers['parameters'] / 1e6:.2f} M parameters, {result.test_images} test images, "
        f"seed {result.seed}, {result.seconds / 60:.1f} minutes"
    )
    return "\n".join(lines)


def synthetic_name(data_args: DataArguments) -> str:
    """What the embedded data are called."""
    stream = "public" if data_args.public_faces else "private"
    return f"synthetic faces, {data_args.num_identities} {stream} identities"


def loss_terms(history: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the terms of the loss in a training log."""
    others = {"loss", "grad_norm", "learning_rate", "confidence", "accuracy", "trap_success", "stage", "epoch", "step"}
    return list(dict.fromkeys(name for entry in history if "loss" in entry for name in entry if name not in others))


def draw_curves(result: Result, path: Path) -> None:
    """Loss terms, accuracy and confidence over the epochs, with the stages marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, title, names in (
        (panels[0], "loss terms", loss_terms(result.history)),
        (panels[1], "accuracy", ("accuracy", "eval_accuracy", "trap_success")),
        (panels[2], "mean true-class score", ("confidence", "eval_confidence", "train_confidence_correct")),
    ):
        for name in names:
            points = [(entry["epoch"], entry[name]) for entry in result.history if name in entry]
            if points:
                label = _LABELS.get(name, name.replace("_", " "))
                panel.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        panel.set_title(title)
        panel.set_xlabel("epoch")
        if result.plan is not None and result.plan.steps_per_epoch:
            for stage in result.plan.stages[1:]:
                panel.axvspan(
                    stage.start / result.plan.steps_per_epoch, panel.get_xlim()[1], alpha=0.08, color="k", lw=0
                )
        if title == "mean true-class score" and result.target is not None:
            panel.axhline(result.target, color="k", ls=":", lw=1, label=f"target {result.target:.4f}")
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    write_figure(path, figure)


_LABELS = {
    "accuracy": "training batches",
    "eval_accuracy": "validation",
    "confidence": "training batches",
    "eval_confidence": "validation",
    "train_confidence_correct": "training images, correct ones",
}
