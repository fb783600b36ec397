"""Every image classification class of transformers can be defended, saved, loaded and used."""

from pathlib import Path

import pytest
import torch
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, ShieldGemma2Config

from benchmarks.every_model import COLUMNS, examine
from calor_hf import CALoRForImageClassification, DefendedForImageClassification
from calor_hf.heads.classifier_head import MeanOfHeads
from calor_hf.heads.features import scores_of
from calor_hf.heads.low_rank_head import LowRankHead
from tests.tiny_models import EVERY, TWO_HEADS, tiny_base, tiny_inputs

SLOW = ("PerceiverForImageClassificationFourier",)  # reads 224 pixels whatever its configuration
ALL = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EVERY]
# Their attention biases and batch norms mix types by themselves: the base models fail alike.
NO_PURE_BFLOAT16 = ("LevitForImageClassification", "LevitForImageClassificationWithTeacher")


def test_none_is_forgotten() -> None:
    known = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.values()
    kinds = {kind for entry in known for kind in (entry if isinstance(entry, tuple) else (entry,))}
    names = {kind.__name__ for kind in kinds if kind.__module__.startswith("transformers.")}  # not those registered
    left_out = {
        "DinatForImageClassification",
        "ShieldGemma2ForImageClassification",
        "TimmWrapperForImageClassification",
    }
    former = {"EfficientFormer", "Nat", "ViTHybrid", "Van"}  # left transformers with 5.0
    left_out |= {f"{kind}ForImageClassification{end}" for kind in former for end in ("", "WithTeacher")}
    assert names - left_out == set(EVERY)


@pytest.mark.parametrize("class_name", ALL)
def test_head_forward_backward_reload_auto_class_and_pipeline(class_name: str, tmp_path: Path) -> None:
    assert set(examine(class_name, tmp_path)) == set(COLUMNS)


@pytest.mark.parametrize("class_name", [name for name in EVERY if name not in (*SLOW, *NO_PURE_BFLOAT16)])
def test_float_images_are_cast_to_the_type_of_the_backbone(class_name: str) -> None:
    model = CALoRForImageClassification.from_base(tiny_base(class_name).to(torch.bfloat16), rank=3).eval()
    with torch.no_grad():
        logits = model(**tiny_inputs(class_name)).logits
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("class_name", TWO_HEADS)
def test_two_heads_become_two_low_rank_heads_whose_mean_are_the_scores(class_name: str) -> None:
    model = CALoRForImageClassification.from_base(tiny_base(class_name), rank=3).eval()
    head = model.classification_head
    assert isinstance(head, MeanOfHeads)
    out = model(**tiny_inputs(class_name))
    first, second = out.features.split(head.widths, dim=1)
    one, other = (part for part in head.heads if isinstance(part, LowRankHead))
    assert torch.equal(out.logits, torch.stack([one(first), other(second)]).mean(0))
    assert torch.equal(head.code(out.features), torch.cat([one.code(first), other.code(second)], 1))
    assert head.code(out.features).shape == (4, 6)


UNUSUAL = [name for name in EVERY if name in TWO_HEADS or "Learned" in name or "LCNet" in name]


@pytest.mark.parametrize("class_name", UNUSUAL)
@pytest.mark.filterwarnings("ignore:rank 10 is the full rank")
def test_svd_of_unusual_heads_keeps_the_scores(class_name: str) -> None:
    base, inputs = tiny_base(class_name), tiny_inputs(class_name, 16)
    with torch.no_grad():
        before = base(**inputs)
        before = before["logits"] if "logits" in before else before["last_hidden_state"]
        model = CALoRForImageClassification.from_base(
            base, rank=10, head_init="svd", calibration=inputs, activation="identity"
        )
        torch.testing.assert_close(model.eval()(**inputs).logits, before, atol=1e-5, rtol=1e-4)


def test_shieldgemma2_is_refused() -> None:
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ShieldGemma2Config(
        text_config={**text, "model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8},
        vision_config={**vision, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    with pytest.raises(ValueError, match=r"no classifier head found in ShieldGemma2.*words of a language model"):
        CALoRForImageClassification.from_config(config)


@pytest.mark.parametrize("class_name", ALL)
def test_kept_classifier_gives_the_bases_scores_and_hidden_layers_can_be_measured(class_name: str) -> None:
    base, inputs = tiny_base(class_name), tiny_inputs(class_name)
    with torch.no_grad():
        expected = scores_of(base(**inputs))
        model = DefendedForImageClassification.from_base(base, "bido").eval()
        torch.testing.assert_close(model(**inputs).logits, expected.float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(scores_of(model.to_base().eval()(**inputs)), expected, atol=1e-5, rtol=1e-5)
    out = model.train()(**inputs, labels=torch.arange(4))
    assert set(out.loss_terms) == {"cross_entropy", "input", "label"}
    assert all(term.isfinite() for term in out.loss_terms.values())
    out.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
