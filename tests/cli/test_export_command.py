"""`calor-hf export`: a file that gives what model and image processor give."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calor_hf.cli.main import main
from calor_hf.modeling import defend
from tests.tiny_models import tiny_base
from tests.training.small_task import image_processor

onnx, onnxruntime = (
    pytest.importorskip(name, reason="ONNX needs the extra calor-hf[onnx]") for name in ("onnx", "onnxruntime")
)


@torch.no_grad()
def test_onnx_of_images_gives_what_processor_and_model_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = defend(tiny_base("vit"), "calor", rank=3, id2label={index: f"person {index}" for index in range(10)})
    model.save_pretrained(tmp_path / "model")
    image_processor().save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--images", "--output", str(tmp_path / "model.onnx")]
    assert main(words) == 0
    assert "largest difference of a logit: " in capsys.readouterr().out

    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    expected = model(**image_processor()([Image.fromarray(image) for image in pixels], return_tensors="pt")).logits
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    images = (pixels / 255).astype(np.float32).transpose(0, 3, 1, 2)
    found = session.run(["logits"], {"images": images})[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)

    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert about["input"] == "images: RGB images in [0, 1], (batch, 3, 32, 32); normalized inside"
    assert json.loads(about["mean"]) == [0.5, 0.5, 0.5]
    assert b"person 3" not in (tmp_path / "model.onnx").read_bytes()  # names of classes are people's

    before = (tmp_path / "model.onnx").read_bytes()
    assert main(words) == 2
    assert "is there already; choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").read_bytes() == before


def test_model_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "none"), "--output", str(tmp_path / "model.onnx")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
