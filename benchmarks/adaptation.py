"""Confidence adaptation on real faces: as cross-entropy leaves the scores, after a temperature, and the latter alone.

The three ways go on from the same model: the small ResNet, trained undefended, then with a low-rank head that starts
from its classifier. Checkpoints are chosen by the trainer's rule, on validation images, with no limit on accuracy.

    python -m benchmarks.adaptation --data DATA --output-dir outputs/adaptation
    python -m benchmarks.adaptation --output-dir outputs/adaptation --table docs/results/adaptation.json

``DATA`` holds the face sets. A finished cell is a file, which the same command does not measure again.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from calor_hf import CALoRTrainer, CALoRTrainingArguments, DefenseTrainer
from calor_hf._version import __version__
from calor_hf.core.files import write_json
from calor_hf.data.loading import Splits, load_splits
from calor_hf.defenses.calor import target_confidence
from calor_hf.metrics.statistics import pooled_interval
from calor_hf.modeling import defend
from calor_hf.recipes.runs import markdown
from calor_hf.recipes.train import datasets_for, load_base
from calor_hf.recipes.train_arguments import ModelArguments
from calor_hf.training.metrics import is_correct, true_class_confidence

SETS = {"bolly100": ("bolly100_64", 40, 32), "orl40": ("orl40_64_gray", 64, 10)}  # folder, side in pixels, rank
EPOCHS = {"bolly100": (20, 5), "orl40": (60, 20)}  # undefended, and with the low-rank head
ADAPT_EPOCHS = 6
B = 8.0
COLUMNS = {
    "test_accuracy": "test accuracy", "train_confidence": "confidence of correct training images",
    "deviation": "mean distance from e^(-1/b)", "ca_loss": "CA loss", "test_nll": "test NLL",
}  # fmt: skip
WAYS = ("cross-entropy", "as_is", "temperature", "temperature, CA")
CONTROL = "temperature"


def arguments(folder: str, seed: int, **changes: Any) -> CALoRTrainingArguments:
    """The library's options for the small ResNet."""
    common = {
        "output_dir": folder, "seed": seed, "learning_rate": 2e-3, "weight_decay": 0.01, "save_total_limit": 1,
        "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 256, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "logging_strategy": "no", "save_strategy": "no", "remove_unused_columns": False, "adapt_epochs": ADAPT_EPOCHS,
        "max_accuracy_drop": 100.0, "confidence_tolerance": 1e-9, "dataloader_pin_memory": False,
    }  # fmt: skip
    return CALoRTrainingArguments(**{**common, **changes})


def measure(trainer: DefenseTrainer, labels: NDArray[np.int64]) -> dict[str, Any]:
    """Numbers of a model as it is, on all plain training images and on the test images."""
    seen: dict[str, Any] = {}

    def keep(prediction: Any) -> dict[str, float]:
        seen["p"] = true_class_confidence(prediction)
        seen["correct"] = is_correct(prediction)
        return {}

    trainer.measure_training_images(keep)
    test = trainer.measure_images(trainer.get_test_dataloader(trainer.test_dataset))
    found = of_training_images(seen["p"], seen["correct"], labels)
    return {**found, "test_accuracy": test["accuracy"], "test_nll": test["nll"]}


def of_training_images(p: NDArray[Any], correct: NDArray[np.bool_], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Numbers of all plain training images, from their true-class probability."""
    target = target_confidence(B)
    loss = p**B * np.log(p)
    return {
        "train_confidence": float(p[correct].mean()), "train_accuracy": float(correct.mean()),
        "deviation": float(abs(p - target)[correct].mean()), "ca_loss": float(loss.mean()),
        "deviation_by_person": by_person(abs(p - target), correct, labels),
        "ca_loss_by_person": by_person(loss, np.ones_like(correct), labels),
    }  # fmt: skip


def by_person(values: NDArray[Any], rows: NDArray[np.bool_], labels: NDArray[np.int64]) -> list[float]:
    """Mean of the chosen rows of each person; 0 for a person without any."""
    kept = [rows & (labels == person) for person in range(int(labels.max()) + 1)]
    return [round(float(values[one].sum() / max(1, one.sum())), 5) for one in kept]


def cell(name: str, splits: Splits, seed: int) -> dict[str, Any]:
    """Train one model with cross-entropy, and go on from it in each way."""
    (_, side, rank), (undefended, low_rank), begin = SETS[name], EPOCHS[name], time.perf_counter()
    torch.manual_seed(seed)
    base, processor = load_base(ModelArguments(), splits)
    processor.size = {"height": side, "width": side}
    data = datasets_for(splits, processor, "flip", seed)
    labels = np.asarray(data["train"].images["label"])
    common: dict[str, Any] = {
        "data_collator": default_collate, "train_dataset": data["train"], "eval_dataset": data["validation"],
        "test_dataset": data["test"], "processing_class": processor,
    }  # fmt: skip
    found: dict[str, Any] = {}

    def train(way: str, model: Any, **changes: Any) -> DefenseTrainer:
        kind = CALoRTrainer if type(model).__name__.startswith("CALoR") else DefenseTrainer
        with tempfile.TemporaryDirectory() as folder:
            args = arguments(folder, seed, confidence_samples=len(labels), **changes)
            trainer: DefenseTrainer = kind(model=model, args=args, **common)
            trainer.train_stages()
        found_here = measure(trainer, labels)
        found_here["log"] = [
            {key: entry[key] for key in entry if key.startswith(("train_confidence", "validation_acc", "temperature"))}
            for entry in trainer.state.log_history
            if "validation_accuracy" in entry or "temperature" in entry or "train_confidence_correct" in entry
        ]
        found_here["seconds"] = time.perf_counter() - begin
        found[way] = found_here
        print(name, seed, way, {k: v for k, v in found_here.items() if not isinstance(v, list)}, flush=True)
        return trainer

    train("undefended", base, num_train_epochs=undefended)
    plain = data["train"].without_augmentation()
    calibration = [default_collate([plain[i]]) for i in range(0, len(plain), max(1, len(plain) // 512))]
    start = defend(base, "loft", rank=rank, head_init="svd", calibration=calibration)
    weights = train("cross-entropy", start, num_train_epochs=low_rank).model.state_dict()

    def again(defense: str, **settings: Any) -> Any:
        model = defend(load_base(ModelArguments(), splits)[0], defense, rank=rank, **settings)
        model.load_state_dict(weights)
        return model

    train("as_is", again("calor"), num_train_epochs=0, adapt_learning_rate=2e-4)
    model = again("temperature", low_rank=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DefenseTrainer(model=model, args=arguments(folder, seed, confidence_samples=len(labels)), **common)
        trainer.end_stage(trainer.stages()[0])
    found["temperature"] = measure(trainer, labels) | {"log": trainer.state.log_history}
    train("temperature, CA", again("calor", ca_start="temperature"), num_train_epochs=0)
    return found


def table(cells: dict[str, Any], ways: Sequence[str] = WAYS, changed: Sequence[str] = WAYS[3:]) -> str:
    """One row per set and way, the mean over trainings; then the change by adaptation after the temperature."""
    rows, changes = [], []
    for name in SETS:
        runs = [found for key, found in cells.items() if key.startswith(f"{name}-")]
        if not runs:
            continue
        for way in ("undefended", *ways):
            means = [f"{np.mean([run[way][key] for run in runs]):.4f}" for key in COLUMNS]
            rows.append([name, str(len(runs)), way, *means])
        for way in changed:
            for key in ("deviation", "ca_loss", "test_accuracy"):
                if f"{key}_by_person" in runs[0][way]:
                    after, before = (np.array([run[one][f"{key}_by_person"] for run in runs]) for one in (way, CONTROL))
                    mean, low, high = pooled_interval(after - before)
                    changes.append([name, way, COLUMNS[key], f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"])
    head = markdown(["set", "trainings", "way", *COLUMNS.values()], rows)
    change = "change by CA after the temperature, 95 % interval over people and trainings"
    return f"{head}\n\n{markdown(['set', 'way', 'measure', change], changes)}"


def gathered(folder: Path, output: Path) -> dict[str, Any]:
    """Cells of a folder by name, also written into one JSON file."""
    cells = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    write_json(output, {"version": __version__, "cells": cells})
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cells that are not there yet, or print the table of those that are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation")
    parser.add_argument("--data", type=Path, help="folder of the face sets")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", type=Path, help="write all cells into this file, and print the table")
    options = parser.parse_args(argv)
    if options.table is not None:
        print(table(gathered(options.output_dir, options.table)))
        return
    if options.data is None or not options.data.is_dir():
        parser.error(f"--data must be the folder of the face sets, got {options.data}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.sets:
            file = options.output_dir / f"{name}-seed{seed}.json"
            if not file.is_file():
                write_json(file, cell(name, load_splits(str(options.data / SETS[name][0])), seed))


if __name__ == "__main__":
    main()
