"""Confidence adaptation on real faces: as cross-entropy leaves the scores, after a temperature, and the latter alone.

The three ways go on from the same model: the small ResNet, trained undefended, then with a low-rank head that starts
from its classifier. Checkpoints are chosen by the trainer's rule, on validation images, with no limit on accuracy.

    python -m benchmarks.adaptation --data DATA --output-dir outputs/adaptation
    python -m benchmarks.adaptation --output-dir outputs/adaptation --table docs/results/adaptation.json

``DATA`` holds the face sets. A finished cell is a file, which the same command does not measure again.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
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


GOES_ON: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "as_is": ("cross-entropy", "calor", {}, {"adapt_learning_rate": 2e-4}),
    "temperature": ("cross-entropy", "temperature", {"low_rank": True}, {}),
    "temperature, CA": ("cross-entropy", "calor", {"ca_start": "temperature"}, {}),
    "undefended, temperature": ("undefended", "temperature", {"low_rank": False}, {}),
    "undefended, temperature, CA": ("undefended", "calor", {"low_rank": False, "ca_start": "temperature"}, {}),
}
"""For each way: the way whose model it goes on from, its defense, and settings of defense and training."""


def trainings(
    splits: Splits, seed: int, side: int, rank: int, epochs: tuple[int, int], ways: Sequence[str] = WAYS[1:]
) -> Iterator[tuple[str, DefenseTrainer]]:
    """Train the small ResNet undefended, then with a low-rank head, and go on from these in each of the ``ways``.

    Args:
        splits: Images.
        seed: Seed of the training.
        side: Side of the images, in pixels.
        rank: Rank of the head.
        epochs: Epochs undefended, and with the low-rank head.
        ways: Keys of :data:`GOES_ON`.

    Returns:
        The trainer of each way, with its finished model.
    """
    torch.manual_seed(seed)
    base, processor = load_base(ModelArguments(), splits)
    processor.size = {"height": side, "width": side}
    data = datasets_for(splits, processor, "flip", seed)
    common: dict[str, Any] = {
        "data_collator": default_collate, "train_dataset": data["train"], "eval_dataset": data["validation"],
        "test_dataset": data["test"], "processing_class": processor,
    }  # fmt: skip

    def train(model: Any, **changes: Any) -> DefenseTrainer:
        kind = CALoRTrainer if type(model).__name__.startswith("CALoR") else DefenseTrainer
        with tempfile.TemporaryDirectory() as folder:
            args = arguments(folder, seed, confidence_samples=len(data["train"]), **changes)
            trainer: DefenseTrainer = kind(model=model, args=args, **common)
            if kind is DefenseTrainer and args.num_train_epochs == 0:
                trainer.end_stage(trainer.stages()[0])
            else:
                trainer.train_stages()
        return trainer

    yield "undefended", train(base, num_train_epochs=epochs[0])
    plain = data["train"].without_augmentation()
    calibration = [default_collate([plain[i]]) for i in range(0, len(plain), max(1, len(plain) // 512))]
    start = defend(copy.deepcopy(base), "loft", rank=rank, head_init="svd", calibration=calibration)
    low_rank = train(start, num_train_epochs=epochs[1])
    yield "cross-entropy", low_rank
    weights = low_rank.model.state_dict()
    for way in ways:
        before, defense, settings, changes = GOES_ON[way]
        if before == "undefended":
            model = defend(copy.deepcopy(base), defense, **settings)
        else:
            model = defend(load_base(ModelArguments(), splits)[0], defense, rank=rank, **settings)
            model.load_state_dict(weights)
        yield way, train(model, num_train_epochs=0, **changes)


def cell(name: str, splits: Splits, seed: int) -> dict[str, Any]:
    """Numbers of a model and of what goes on from it."""
    (_, side, rank), begin, labels = SETS[name], time.perf_counter(), np.asarray(splits.train["label"])
    found: dict[str, Any] = {}
    for way, trainer in trainings(splits, seed, side, rank, EPOCHS[name]):
        found[way] = measure(trainer, labels)
        found[way]["log"] = [
            {key: entry[key] for key in entry if key.startswith(("train_confidence", "validation_acc", "temperature"))}
            for entry in trainer.state.log_history
            if "validation_accuracy" in entry or "temperature" in entry or "train_confidence_correct" in entry
        ]
        found[way]["seconds"] = time.perf_counter() - begin
        print(name, seed, way, {k: v for k, v in found[way].items() if not isinstance(v, list)}, flush=True)
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
