"""A saved model with a training record and an audit, made in a moment: the files count, not the weights in them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from calor_hf.core.files import processor_digest, weights_digest
from calor_hf.core.report import LeakageReport, NetworkInfo
from calor_hf.defenses.calor import CALoRDefenseConfig
from tests.auditing.small_report import small_report

SETTINGS = CALoRDefenseConfig(rank=4).to_dict()
MEASURED = {
    "before adapting": {"accuracy": 0.8125, "nll": 0.4321, "ece": 0.0567, "confidence": 0.9, "train_accuracy": 0.9876,
                        "train_confidence_correct": 0.9712},
    "result": {"accuracy": 0.8, "nll": 0.4567, "ece": 0.0789, "confidence": 0.8, "train_accuracy": 0.9753,
               "train_confidence_correct": 0.8765, "validation_accuracy": 0.79},
}  # fmt: skip
METHOD = "Low-rank head and ``confidence`` adaptation (Yu et al., 2024).\n\nMore.\n\nSource:\n    Yu, arXiv:2410.05814."
JUNK = (
    "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "trainer_state.json",
    "defense_state.pt", "events.out.tfevents.1", "model.bin", "pytorch_model.bin", "photo of Ada.png", "notes.txt",
    "helper.py", ".env", "training-images.json", "report.json", "grid.png", "all_results.json",
    "runs/now/events.out.tfevents.1", "checkpoint-8/model.safetensors", "checkpoint-8/optimizer.pt",
    "stage-1/model.safetensors", "stage-1/config.json", "undefended/model.safetensors", "audit/report.json",
    "audit/plg/reconstructions.safetensors", "private/ada.png", "global_step8/zero_states.pt",
)  # fmt: skip


def saved_model(folder: Path, names: tuple[str, ...] = ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")) -> Path:
    """A folder as ``calor-hf train`` leaves it, of a model of four people."""
    folder.mkdir(parents=True)
    config = {
        "architectures": ["CALoRForImageClassification"],
        "model_type": "calor",
        "base_class": "ResNetForImageClassification",
        "base_config": {"model_type": "resnet", "_name_or_path": "my/folders/base"},
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "defense": "calor",
        "defense_settings": SETTINGS,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "curves.png").write_bytes(b"picture")
    record(folder)
    return folder


def record(folder: Path, **changes: Any) -> None:
    """Write ``metrics.json``."""
    content = {
        "version": "0.1.0", "defense": "calor", "settings": SETTINGS, "seed": 42, "images": 640, "split": "test",
        "train_seconds": 61.5, "peak_memory_bytes": 1, "dataset": "my/folders/faces", "dataset_id": None,
        "base_model": "someone/base", "backdoor": None, "measured": MEASURED, "target_confidence": 0.8824969,
        "classes": 4, "parameters": 1234, "wall_seconds": 70.0, "steps": {"fit": 100, "adapt": 50},
        "weights": weights_digest(folder),
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(content | changes))


def audit_of(model: Path, folder: Path, drawn: bool = False, **changes: Any) -> LeakageReport:
    """Write the audit of a model: ``report.json`` and an image of the strongest attack's reconstructions."""
    report = small_report(**changes)
    target = dataclasses.replace(
        report.target, settings=SETTINGS, weights=weights_digest(model), processor=processor_digest(model),
        name="my/folders/model",
    )  # fmt: skip
    # A name proves nothing: a folder of photographs may be called so.
    data = dataclasses.replace(report.data, name="synthetic faces", drawn=drawn)
    networks = {role: NetworkInfo(f"RegNet (my/folders/{role})", one.accuracy) for role, one in report.networks.items()}
    report = dataclasses.replace(report, target=target, data=data, networks=networks)
    (folder / "adaptive").mkdir(parents=True)
    (folder / "adaptive" / "grid.png").write_bytes(b"faces")
    report.save(folder / "report.json")
    return report


def with_junk(folder: Path) -> Path:
    """Put next to a model what training and audits leave there, and what a person keeps."""
    for name in JUNK:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")
    return folder
