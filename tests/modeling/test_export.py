"""Exported files give the scores of the model, for batches of any size."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from calor_hf.modeling import defend, export_model
from calor_hf.modeling import export as export_module
from tests.tiny_models import KINDS, tiny_base
from tests.training.small_task import image_processor

needs_onnx = [
    pytest.importorskip(name, reason="ONNX needs the extra calor-hf[onnx]") for name in ("onnx", "onnxscript")
]
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX needs the extra calor-hf[onnx]")
BATCH = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def onnx_scores(path: Path, name: str) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path))
    assert [entry.name for entry in session.get_inputs()] == [name]
    return torch.from_numpy(session.run(["logits"], {name: BATCH.numpy()})[0])


@torch.no_grad()
def test_program_of_torch_export_reads_any_batch_and_says_what_it_reads(tmp_path: Path) -> None:
    model = defend(tiny_base("vit"), "calor", rank=3)
    path = tmp_path / "new" / "model.pt2"
    assert export_model(model, path, "torch", image_processor()) <= 1e-5
    extra = {"calor_hf.json": ""}
    program = torch.export.load(path, extra_files=extra)
    torch.testing.assert_close(program.module()(BATCH), model(BATCH).logits)
    about = json.loads(extra["calor_hf.json"])
    assert about["input"].startswith("pixel_values: (images in [0, 1] * scale + offset - mean) / std")
    assert [json.loads(about[key]) for key in ("size", "mean", "std")] == [[32, 32], [0.5] * 3, [0.5] * 3]
    assert (about["defense"], about["architecture"]) == ("calor", "ViTForImageClassification")
    assert [file.name for file in path.parent.iterdir()] == ["model.pt2"]


@torch.no_grad()
def test_noise_of_a_stochastic_head_is_kept_in_a_torch_program_and_refused_in_onnx(tmp_path: Path) -> None:
    model = defend(tiny_base("vit"), "mid")
    export_model(model, tmp_path / "model.pt2", "torch")
    module: Any = torch.export.load(tmp_path / "model.pt2").module()
    assert not torch.equal(module(BATCH), module(BATCH))
    with pytest.raises(ValueError, match="this model draws noise for every image, and onnxruntime draws other noise"):
        export_model(model, tmp_path / "model.onnx")


@torch.no_grad()
def test_onnx_file_reads_any_batch_without_a_processor(tmp_path: Path) -> None:
    model = defend(tiny_base("resnet"), "calor", rank=3, input_norm="batchnorm")
    path = tmp_path / "model.onnx"
    assert export_model(model, path, image_size=32) <= 1e-4
    torch.testing.assert_close(onnx_scores(path, "pixel_values"), model(BATCH).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("resnet", "vit")])
def test_every_kind_of_base_is_exported(kind: str, format: str, tmp_path: Path) -> None:
    path = tmp_path / ("model.onnx" if format == "onnx" else "model.pt2")
    assert export_model(defend(tiny_base(kind), "calor", rank=3), path, format, image_size=32) <= 1e-4


@torch.no_grad()
def test_file_with_other_scores_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("what was there")
    monkeypatch.setattr(export_module, "_difference", lambda *_: 0.25)
    with pytest.raises(RuntimeError, match=r"a logit differs by 0.25, allowed are 0.0001; nothing was written"):
        export_model(tiny_base("vit"), path, "torch", overwrite=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["what was there"]


def test_what_cannot_be_exported_is_refused_before_any_work(tmp_path: Path) -> None:
    model = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=0, num_attention_heads=1)).eval()
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="unknown format 'tflite'; pass one of onnx, torch"):
        export_model(model, path, "tflite")
    with pytest.raises(ValueError, match=r"torch.export reads files that end in .pt2 alone, got model.onnx"):
        export_model(model, path, "torch")
    with pytest.raises(ValueError, match="pass one \\(processor=\\)"):
        export_model(model, path, images=True)
    with pytest.raises(ValueError, match=r"the model is in torch.bfloat16; load it in float32"):
        export_model(model.bfloat16(), path)
    with pytest.raises(ValueError, match="choose another architecture"):
        export_model(tiny_base("ImageGPTForImageClassification"), path)
    path.touch()
    with pytest.raises(FileExistsError, match="is there already"):
        export_model(model.float(), path)
