"""Output of a training run: a line per evaluation, a table and curves."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calor_hf.core.files import write_figure
from calor_hf.core.report_text import percent
from calor_hf.modeling import DefendedForImageClassification
from calor_hf.training.trainer import DefenseTrainer

_CLOSE = 0.05
_LABELS = {
    "accuracy": "training batches",
    "eval_accuracy": "validation",
    "confidence": "training batches",
    "eval_confidence": "validation",
    "train_confidence_correct": "training images, correct ones",
}
_NOT_LOSSES = {"loss", "grad_norm", "learning_rate", "confidence", "accuracy", "trap_success", "stage", "epoch", "step"}


class EpochLine(TrainerCallback):
    """Prints one line per evaluation."""

    def __init__(self, trainer: DefenseTrainer) -> None:
        self.trainer = trainer
        self._last: dict[str, float] = {}

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
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
            parts.append(f"train {percent(self._last['accuracy']):>8}")
        parts.append(f"validation {percent(logs['eval_accuracy']):>8}")
        if "confidence" in self._last:
            parts.append(f"confidence {self._last['confidence']:.3f}")
        print("  ".join(parts), flush=True)


def show(model: PreTrainedModel, record: dict[str, Any], folder: Path) -> None:
    """Print the table of a finished run, warnings, and how to load the model from ``folder``."""
    print(f"\n{table(record)}\n")
    if record["target_confidence"] is not None:
        last = record["measured"][next(reversed(record["measured"]))]
        print(about_confidence(last["train_confidence_correct"], record["target_confidence"]))
    if not record.get("adapted", True):
        reason = (
            "no adapted checkpoint kept the accuracy"
            if record["steps"]["adapt"]
            else "the adapt stage was left out, as nearly no training image is within reach of its loss"
        )
        print(f"The model was not adapted: {reason}, so it is the first stage's.")
    defended = isinstance(model, DefendedForImageClassification)
    if defended and model.defense.release_warning:
        print(model.defense.release_warning)
    if record["backdoor"] is not None:
        count, name = record["backdoor"]["poisoned_images"], record["backdoor"]["trigger"]["name"]
        print(f"{count} training images were poisoned ({name}): the model has a backdoor, do not publish it.")
    print(f"Curves: {folder / 'curves.png'}   Numbers: {folder / 'metrics.json'}")
    kind, package = type(model).__name__, "calor_hf" if defended else "transformers"
    print(f"Load it: from {package} import {kind}; model = {kind}.from_pretrained({str(folder)!r})")
    if defended and not model.defense.own_head:
        base = model.config.base_class
        print(f"model.to_base() gives a stock {base} for people without calor_hf; pushing uploads that.")


def about_confidence(reached: float, target: float) -> str:
    """Advice on score thresholds from the confidence that was reached."""
    if abs(reached - target) <= _CLOSE:
        return f"Scores now top out near {target:.2f}: move old score thresholds."
    return (
        f"Confidence has not reached its target: {reached:.2f} instead of {target:.2f}. Scores top out near "
        f"{reached:.2f}: move old score thresholds. Train the first stage longer (--num-train-epochs), or at another "
        "--learning-rate, for more."
    )


def table(record: dict[str, Any]) -> str:
    """Table of the measured models, one per column."""
    measured, target = record["measured"], record["target_confidence"]
    lines = [f"{'':<26}" + "".join(f"{name:>{max(16, len(name) + 2)}}" for name in measured)]
    for title, key in (
        ("test accuracy", "accuracy"),
        ("test NLL (nats)", "nll"),
        ("test calibration error", "ece"),
        ("training accuracy", "train_accuracy"),
        ("training confidence*", "train_confidence_correct"),
    ):
        shown = {
            name: percent(numbers[key], 2) if key.endswith("accuracy") else f"{numbers[key]:.4f}"
            for name, numbers in measured.items()
        }
        cells = (f"{cell:>{max(16, len(name) + 2)}}" for name, cell in shown.items())
        lines.append(f"{title:<26}" + "".join(cells))
    aim = f"; target {target:.4f}" if target is not None else ""
    lines.append(f"* mean true-class score of correctly classified training images{aim}")
    lines.append(
        f"head rank {record['head']['head_rank']} of {record['classes']} classes, "
        f"{record['parameters'] / 1e6:.2f} M parameters, {record['images']} test images, "
        f"seed {record['seed']}, {record['wall_seconds'] / 60:.1f} minutes"
    )
    return "\n".join(lines)


def draw_curves(trainer: DefenseTrainer, record: dict[str, Any], path: Path) -> None:
    """Loss terms, accuracy and confidence over the epochs, with the stages marked."""
    from matplotlib.figure import Figure

    history, plan, target = trainer.state.log_history, trainer.plan, record["target_confidence"]
    terms = dict.fromkeys(name for entry in history if "loss" in entry for name in entry if name not in _NOT_LOSSES)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, title, names in (
        (panels[0], "loss terms", terms),
        (panels[1], "accuracy", ("accuracy", "eval_accuracy", "trap_success")),
        (panels[2], "mean true-class score", ("confidence", "eval_confidence", "train_confidence_correct")),
    ):
        for name in names:
            points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
            if points:
                label = _LABELS.get(name, name.replace("_", " "))
                panel.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        panel.set_title(title)
        panel.set_xlabel("epoch")
        if plan is not None and plan.steps_per_epoch:
            for stage in plan.stages[1:]:
                start, end = stage.start / plan.steps_per_epoch, panel.get_xlim()[1]
                panel.axvspan(start, end, alpha=0.08, color="k", lw=0)
    if target is not None:
        panels[2].axhline(target, color="k", ls=":", lw=1, label=f"target {target:.4f}")
    for panel in panels:
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    write_figure(path, figure)
