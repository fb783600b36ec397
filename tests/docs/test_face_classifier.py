"""The face network of benchmarks/real_defenses.py as an image classifier; its weights are not in this repository."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.face_classifier import FaceClassifier, FaceConfig, face_classifier, face_processor
from benchmarks.mobilefacenet import Embedding
from calor_hf import HFTarget
from calor_hf.modeling import defend
from tests.docs.blocks import ROOT

FACES = Path(os.environ.get("CALOR_FACES", ROOT.parent / "shared" / "data"))


def test_features_skip_the_network_and_noise_is_added_in_training() -> None:
    torch.manual_seed(0)
    model, x = FaceClassifier(FaceConfig(num_labels=3)), torch.randn(2, 128)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        "classifier.weight", "classifier.bias"
    }  # fmt: skip
    model.eval()
    seen = model(x).logits
    torch.testing.assert_close(seen, model.classifier(4 * x))
    torch.testing.assert_close(seen, model(x[..., None, None]).logits)
    assert not torch.allclose(seen, model.train()(x).logits)
    assert not model.body.training


@pytest.mark.skipif(not (FACES / "evaluators").is_dir(), reason="face networks are not here; set CALOR_FACES")
def test_defended_network_survives_saving_and_sees_as_the_embedding(tmp_path: Path) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = defend(face_classifier(FACES, 3, projection=True), "bido", layers=("classifier",)).eval()
    model.save_pretrained(tmp_path)
    face_processor().save_pretrained(tmp_path)
    target = HFTarget.from_pretrained(str(tmp_path))
    loaded: Any = target.module
    with torch.no_grad():
        torch.testing.assert_close(target.features(images), 4 * Embedding(FACES, "A")(images))
        torch.testing.assert_close(target(images), model(pixel_values=2 * images - 1).logits)
    assert not any(weight.requires_grad for weight in loaded.backbone.body.parameters())
