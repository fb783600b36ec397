"""Backbones of timm, through the wrapper of transformers. ``.ci/timm`` runs this where timm can be imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel, pipeline

from calor_hf import CALoRForImageClassification
from calor_hf.heads.classifier_head import MeanOfHeads
from calor_hf.heads.find_head import find_heads

timm_error = "no error"
try:
    import timm  # noqa: F401
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification
except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
    timm_error = f"{type(error).__name__}: {error}"

pytestmark = pytest.mark.skipif(timm_error != "no error", reason=f"timm does not import here ({timm_error})")

# One linear layer, a 1x1 convolution, and two heads.
MODELS = {
    "resnet18": (["timm_model.fc"], 64),
    "vit_tiny_patch16_224": (["timm_model.head"], 224),
    "mobilenetv3_small_050": (["timm_model.classifier"], 64),
    "convnext_atto": (["timm_model.head.fc"], 64),
    "resnetv2_50": (["timm_model.head.fc"], 64),
    "dla34": (["timm_model.fc"], 64),
    "dpn48b": (["timm_model.classifier"], 64),
    "deit_tiny_distilled_patch16_224": (["timm_model.head", "timm_model.head_dist"], 224),
    "crossvit_tiny_240": (["timm_model.head.0", "timm_model.head.1"], 240),
}


def base_of(architecture: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=architecture, num_labels=10)
    model: PreTrainedModel = TimmWrapperForImageClassification(config).eval()
    return model


@pytest.mark.parametrize("architecture", MODELS)
def test_heads_are_found_replaced_trained_saved_and_loaded(architecture: str, tmp_path: Path) -> None:
    paths, side = MODELS[architecture]
    base = base_of(architecture)
    assert find_heads(type(base), base.config) == paths
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    model = CALoRForImageClassification.from_base(base, rank=3).eval()
    assert isinstance(model.classification_head, MeanOfHeads) == (len(paths) > 1)
    out = model(pixel_values=images, labels=torch.tensor([0, 9]))
    assert out.logits.shape == (2, 10)
    assert torch.equal(model.classification_head(out.features), out.logits)
    out.loss.backward()
    assert all(weight.grad is not None for weight in model.classification_head.parameters())
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(pixel_values=images).logits
        for kind in (CALoRForImageClassification, AutoModelForImageClassification):
            again = kind.from_pretrained(tmp_path).eval()
            assert torch.equal(again(pixel_values=images).logits, expected)


@pytest.mark.parametrize("architecture", ["resnetv2_50", "deit_tiny_distilled_patch16_224", "crossvit_tiny_240"])
@pytest.mark.filterwarnings("ignore:rank 10 is the full rank")
def test_svd_keeps_the_scores_of_unusual_heads(architecture: str) -> None:
    base = base_of(architecture)
    for path in MODELS[architecture][0]:  # timm starts some classifiers with zeros
        torch.nn.init.normal_(base.get_submodule(path).get_parameter("weight"), std=0.1)
    images = torch.randn(4, 3, MODELS[architecture][1], MODELS[architecture][1])
    with torch.no_grad():
        before = base(pixel_values=images).logits
        model = CALoRForImageClassification.from_base(
            base, rank=10, head_init="svd", calibration=images, activation="identity"
        ).eval()
        torch.testing.assert_close(model(pixel_values=images).logits, before, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("defense", ["calor", "none"])
def test_train_audit_export_and_pipeline_by_command_line(defense: str, tmp_path: Path) -> None:
    pretrained = {
        "architecture": "resnet18", "input_size": [3, 64, 64], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center",
    }  # fmt: skip
    config = TimmWrapperConfig(architecture="resnet18", num_labels=10, pretrained_cfg=pretrained)
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path / "base")

    def calor_hf(*words: str, status: int = 0) -> None:
        command = [str(Path(sys.executable).with_name("calor-hf")), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == status, done.stderr[-3000:]

    short = ["--num-train-epochs", "5", "--use-cpu"]  # enough to know the faces, as an audit wants
    faces = ["--num-identities", "4", "--report-to", "none"]
    adapt = ["--adapt-epochs", "1", "--max-accuracy-drop", "100", "--accept-unadapted"] if defense == "calor" else []
    calor_hf("train", "--model", "base", "--defense", defense, *short, *adapt, *faces, "--output-dir", "trained")
    audit = ["--attacks", "plg", "--classes", "0-1", "--images-per-class", "1", "--budget", "0.005"]
    calor_hf("audit", "trained", *audit, "--output-dir", "audit", status=4)  # two people: no power
    calor_hf("export", "trained", "--images", "--output", "trained.onnx")
    assert (tmp_path / "audit" / "report.html").is_file()

    # The saved processor makes what timm's does, and pipeline reads it.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    made = [
        AutoImageProcessor.from_pretrained(tmp_path / name)(image, return_tensors="pt")["pixel_values"]
        for name in ("base", "trained")
    ]
    torch.testing.assert_close(made[1], made[0], atol=0.02, rtol=0)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "trained").eval()
    with torch.no_grad():
        expected = model(pixel_values=made[1]).logits.softmax(1).max().item()
    found = pipeline("image-classification", str(tmp_path / "trained"), device="cpu")(image)
    assert found[0]["score"] == pytest.approx(expected, abs=1e-4)
