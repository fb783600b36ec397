"""Saved models loaded by people who have transformers alone: the same scores as with calor_hf."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

from calor_hf import DEFENSES, CALoRForImageClassification
from calor_hf.modeling import DefendedForImageClassification, defend, save_standalone
from calor_hf.modeling.modeling_standalone import HEADS
from calor_hf.modeling.released import MODELING_FILE
from tests.tiny_models import tiny_base
from tests.training.small_task import image_processor

CODE = MODELING_FILE.name
# Name of the case: base, defense, its settings.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{f"vit-{name}": ("vit", name, {}) for name in DEFENSES.names()},
    "resnet-calor": ("resnet", "calor", {"input_norm": "batchnorm"}),
    "swin-calor": ("swin", "calor", {"activation": "relu", "bias": False}),
    "teacher-calor": ("DeiTForImageClassificationWithTeacher", "calor", {"activation": "identity"}),
    "teacher-mid": ("DeiTForImageClassificationWithTeacher", "mid", {}),
    "teacher-decoys": ("DeiTForImageClassificationWithTeacher", "decoys", {"k": 3, "rank": 5}),
    "vit-mid-mean": ("vit", "mid", {"sample_at_eval": False}),
    "vit-loft-sigmoid": ("vit", "loft", {"activation": "sigmoid", "rank": 5}),
    "vit-calor-own-head": ("vit", "calor", {"low_rank": False}),
}
WITH_PROCESSOR = ("vit-calor", "vit-bido")


def scores(model: Any, images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)  # for a head that draws noise
    logits: torch.Tensor = model(images).logits
    return logits


@torch.no_grad()
def save_case(folder: Path, base: str, defense: str, settings: dict[str, Any], images: torch.Tensor) -> None:
    """Model in ``folder``, what it gives with calor_hf in ``folder/expected``."""
    model = defend(tiny_base(base), defense, **settings).train()
    model(images)  # moves the running statistics
    model.eval()
    processor = image_processor() if folder.name in WITH_PROCESSOR else None
    save_standalone(model, folder, processor=processor)
    expected = {"images": images, "logits": scores(model, images)}
    expected["hidden"] = model(images, output_hidden_states=True).hidden_states[-1].contiguous()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected["autocast"] = scores(model, images)
    (folder / "expected").mkdir()
    if (folder / CODE).exists():
        half = type(model).from_pretrained(folder, dtype=torch.bfloat16)
        expected["half"] = scores(half, images.bfloat16())
    save_file(expected, folder / "expected" / "outputs.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "expected" / "image.png")


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder of the saved models, and what a process without calor_hf found in each."""
    folder = tmp_path_factory.mktemp("saved")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for name, (base, defense, settings) in CASES.items():
        torch.manual_seed(0)
        save_case(folder / name, base, defense, settings, images)
    save_case(folder / "damaged", "vit", "calor", {}, images)
    weights = load_file(folder / "damaged" / "model.safetensors")
    del weights["classification_head.up.bias"]
    save_file(weights, folder / "damaged" / "model.safetensors", metadata={"format": "pt"})
    script = Path(__file__).with_name("without_calor_hf.py")
    names = [str(folder / name) for name in [*CASES, "damaged"]]
    cache = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-I", str(script), *names], env=os.environ | cache, cwd=folder, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return folder, json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_same_without_calor_hf(name: str, elsewhere: tuple[Path, dict[str, Any]]) -> None:
    folder, report = elsewhere
    found = report[name]
    base, defense, settings = CASES[name]
    own_head = defense in ("calor", "loft", "mid", "decoys") and settings.get("low_rank", True)
    assert "error" not in found, found
    assert (folder / name / CODE).exists() == own_head
    for key in ("logits", "hidden_states", "from config.json"):
        assert found[key] <= 1e-6, key
    assert found.get("compiled", 0) <= 1e-6
    if own_head:
        assert found["class"] == (
            "CALoRForImageClassification" if defense == "calor" else "DefendedForImageClassification"
        )
        for key in ("autocast", "half", "saved again", "evaluation loss"):
            assert found[key] <= 1e-6, key
        assert set(found["float32"]) == {"torch.float32"}
        assert (folder / name / "again" / CODE).read_bytes() == MODELING_FILE.read_bytes()
        assert found["training"] == "the losses of the defense are not in this file; train the model with calor_hf"
    else:
        assert found["class"] == type(tiny_base(base)).__name__


@pytest.mark.parametrize("name", WITH_PROCESSOR)
def test_pipeline_gives_the_same_without_calor_hf(name: str, elsewhere: tuple[Path, dict[str, Any]]) -> None:
    folder, report = elsewhere
    here = pipeline("image-classification", model=str(folder / name))(
        str(folder / name / "expected" / "image.png"), top_k=10
    )
    assert [entry["label"] for entry in report[name]["pipeline"]] == [entry["label"] for entry in here]
    for there, entry in zip(report[name]["pipeline"], here, strict=True):
        assert there["score"] == pytest.approx(entry["score"], abs=1e-6)


def test_missing_weight_is_refused(elsewhere: tuple[Path, dict[str, Any]]) -> None:
    assert elsewhere[1]["damaged"]["error"] == (
        "RuntimeError: the saved weights are not those of this model: {'missing_keys': "
        "['classification_head.up.bias']}; fetch its files again"
    )


@pytest.mark.parametrize("name", ["vit-calor", "vit-mid"])
def test_own_class_wins_where_calor_hf_is_imported(
    name: str, elsewhere: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = elsewhere[0] / name
    expected = load_file(folder / "expected" / "outputs.safetensors")
    for again in (folder, folder / "again"):  # as we saved it, and as those without calor_hf did
        model = AutoModelForImageClassification.from_pretrained(again, trust_remote_code=True)
        assert torch.equal(scores(model, expected["images"]), expected["logits"])
        if transformers.__version__.startswith("4."):
            pytest.skip("transformers 4 takes the class of the file even so; its scores are the same")
        assert type(model).__module__.startswith("calor_hf.")
    model.save_pretrained(tmp_path)  # without the file, so nothing may name it
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_file_needs_torch_and_transformers_alone() -> None:
    found = set()
    for node in ast.walk(ast.parse(MODELING_FILE.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).partition(".")[0])
    assert found == {"collections", "typing", "torch", "transformers"}


def test_model_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    model = CALoRForImageClassification.from_base(tiny_base("vit"), rank=3)
    save_standalone(model, tmp_path)
    with pytest.raises(FileExistsError, match="holds a model already; choose another folder, or pass overwrite=True"):
        save_standalone(model, tmp_path)
    save_standalone(model, tmp_path, overwrite=True)


def test_head_that_the_file_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(HEADS, "mid")
    model = DefendedForImageClassification.from_base(tiny_base("vit"), "mid")
    with pytest.raises(ValueError, match=rf"the defense 'mid' has a head of its own that {CODE} does not know"):
        save_standalone(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
