"""Backbones of timm, through the wrapper of transformers. ``.ci/timm`` runs this where timm can be imported."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

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
