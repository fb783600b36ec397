"""LoRA adapters on a defended model: trained in both stages, saved, loaded, merged."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf import CALoRForImageClassification, CALoRTrainer
from calor_hf.modeling import DefendedForImageClassification, defend, lora_config
from tests.tiny_models import tiny_base
from tests.training.small_task import Patterns, arguments, config

peft = pytest.importorskip("peft", reason="adapters need the extra calor-hf[peft]")
# peft asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")


def scores(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(pixel_values=images).logits
    return logits


def test_adapter_is_trained_in_both_stages_saved_loaded_and_merged(tmp_path: Path, images: Tensor) -> None:
    CALoRForImageClassification.from_config(config("vit"), rank=3, ca_b=4.0).save_pretrained(tmp_path / "base")

    def base() -> DefendedForImageClassification:
        return CALoRForImageClassification.from_pretrained(tmp_path / "base")

    model = peft.get_peft_model(base(), lora_config(base(), r=4))
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "classification_head.modules_to_save" in name for name in trainable)
    args = arguments(tmp_path / "run", num_train_epochs=2, adapt_epochs=2)
    trainer = CALoRTrainer(model=model, args=args, train_dataset=Patterns(64, 1), eval_dataset=Patterns(30, 2))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "stage" in entry]
    assert {(entry["stage"], "cross_entropy" in entry, "confidence_adaptation" in entry) for entry in logged} == {
        (1, True, False),
        (2, False, True),
    }
    assert trainer.target == pytest.approx(math.exp(-1 / 4))
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == trainable
    trained = scores(model, images)
    assert not torch.allclose(trained, scores(base(), images))
    for name, weight in base().state_dict().items():  # what has no adapter is as it was
        kept = [
            value
            for key, value in model.get_base_model().state_dict().items()
            if key.replace(".base_layer", "") == name
        ]
        assert name.startswith("classification_head.") or torch.equal(kept[0], weight)

    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter")
    assert torch.equal(scores(loaded, images), trained)

    merged = loaded.merge_and_unload()
    assert type(merged) is CALoRForImageClassification
    merged.save_pretrained(tmp_path / "merged")
    again = CALoRForImageClassification.from_pretrained(tmp_path / "merged")
    assert again.state_dict().keys() == base().state_dict().keys()
    torch.testing.assert_close(scores(again, images), trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("defense", ["calor", "mid", "none"])
def test_statistics_and_head_travel_with_the_adapter(defense: str, images: Tensor, tmp_path: Path) -> None:
    own: dict[str, dict[str, Any]] = {
        "calor": {"input_norm": "batchnorm", "rank": 3},
        "mid": {"sample_at_eval": False},
    }
    settings = own.get(defense, {})
    defend(tiny_base("resnet"), defense, **settings).save_pretrained(tmp_path / "base")
    kind = CALoRForImageClassification if defense == "calor" else DefendedForImageClassification

    def base() -> DefendedForImageClassification:
        return kind.from_pretrained(tmp_path / "base")

    model = peft.get_peft_model(base(), lora_config(base(), r=2)).train()
    model.in_training_run = True
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    for _ in range(2):
        model(pixel_values=images, labels=torch.tensor([0, 3, 9, 3])).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter")
    assert torch.equal(scores(loaded, images), scores(model, images))
    assert not torch.allclose(scores(model, images), scores(base(), images))


def test_backbone_without_layers_that_take_an_adapter_is_refused() -> None:
    model = CALoRForImageClassification.from_base(tiny_base("vit"), rank=3)
    model.backbone = nn.Identity()
    with pytest.raises(ValueError, match="has neither linear layers nor convolutions; pass target_modules="):
        lora_config(model)
