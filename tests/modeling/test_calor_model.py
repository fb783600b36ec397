"""A CALoR model around every kind of base: built, run, trained, saved, loaded."""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    BertConfig,
    PreTrainedModel,
    ViTForImageClassification,
)

from calor_hf import CALoRConfig, CALoRForImageClassification, DefendedForImageClassification
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.modeling import DefendedImageClassifierOutput
from calor_hf.modeling import base_model as modeling
from tests.tiny_models import FEATURES, HEAD_PATHS, KINDS, tiny_base

LABELS = torch.tensor([0, 3, 9, 3])
NAMES = {index: f"identity {chr(97 + index)}" for index in range(10)}


def defended(kind: str, rank: int = 3, **settings: Any) -> CALoRForImageClassification:
    return CALoRForImageClassification.from_base(tiny_base(kind), rank=rank, **settings)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


# ------------------------------------------------------------------------------------------- every kind of base


@pytest.mark.parametrize("kind", KINDS)
def test_forward_gives_scores_features_and_the_sum_of_the_loss_terms(kind: str, images: Tensor) -> None:
    model = defended(kind)
    out = model(pixel_values=images, labels=LABELS)
    assert isinstance(out, DefendedImageClassifierOutput)
    assert out.logits is not None
    assert out.features is not None
    assert out.loss is not None
    assert out.loss_terms is not None
    assert out.logits.shape == (4, 10)
    assert out.features.shape == (4, FEATURES[kind])
    assert torch.equal(model.classification_head(out.features), out.logits)
    assert list(out.loss_terms) == ["confidence_adaptation"]
    assert out.loss.shape == ()
    assert out.loss == sum(out.loss_terms.values())
    p = out.logits.double().softmax(1)[torch.arange(4), LABELS]
    assert out.loss.item() == pytest.approx((p**8 * p.log()).mean().item(), rel=1e-4)
    assert list(model(images)) == ["logits", "features"]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_the_base(kind: str, images: Tensor) -> None:
    base = tiny_base(kind)
    with torch.no_grad():
        logits = base(images).logits
        classifier = base.get_submodule(HEAD_PATHS[kind])
        model = CALoRForImageClassification.from_base(base, rank=3)
        torch.testing.assert_close(classifier(model(images).features), logits)


@pytest.mark.parametrize("stage", ["fit", "adapt"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_backbone_and_head(kind: str, stage: str, images: Tensor) -> None:
    model = defended(kind).train()
    model.stage = stage
    model(images, labels=LABELS).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    missing = [name for name, grad in grads.items() if grad is None]
    assert missing in ([], ["backbone.dinov2.embeddings.mask_token"])
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)
    for part in ("backbone.", "classification_head.down.", "classification_head.up."):
        assert any(grad is not None and grad.abs().max() > 0 for n, grad in grads.items() if n.startswith(part))
    first = next(name for name, p in model.backbone.named_parameters() if p.ndim == 4)  # the layer next to the pixels
    grad = grads[f"backbone.{first}"]
    assert grad is not None
    assert grad.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_reloads_bit_equal_without_searching(
    kind: str, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = defended(kind, input_norm="batchnorm").train()
    model(images)  # moves the running statistics
    model.eval()
    with torch.no_grad():
        logits = model(images).logits
    model.save_pretrained(tmp_path)

    def search(*_: Any) -> None:
        raise AssertionError("loading searched for the head")

    monkeypatch.setattr(modeling, "find_heads", search)
    for loader in (CALoRForImageClassification, AutoModelForImageClassification):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is CALoRForImageClassification
        assert not loaded.training
        assert same_weights(loaded, model)
        with torch.no_grad():
            assert torch.equal(loaded(images).logits, logits)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_config_json_alone_rebuilds_the_architecture(kind: str, images: Tensor, tmp_path: Path) -> None:
    model = defended(kind, activation="sigmoid", bias=False, input_norm="batchnorm", id2label=NAMES)
    model.config.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, CALoRConfig)
    assert config.head_paths == [HEAD_PATHS[kind]]
    assert config.id2label == NAMES
    for rebuilt in (AutoModelForImageClassification.from_config(config), CALoRForImageClassification(config)):
        rebuilt.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(rebuilt.eval()(images).logits, model(images).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_base_checkpoint_keeps_its_weights_and_takes_any_number_of_labels(
    kind: str, images: Tensor, tmp_path: Path
) -> None:
    base = tiny_base(kind)
    base.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model = CALoRForImageClassification.from_pretrained(tmp_path, num_labels=7, rank=2)
    assert type(model.backbone) is type(base)
    assert not model.training
    assert model.config.num_labels == 7
    assert model(images).logits.shape == (4, 7)
    kept = {n: v for n, v in base.state_dict().items() if not n.startswith(f"{HEAD_PATHS[kind]}.")}
    found = model.backbone.state_dict()
    assert list(found) == list(kept)
    assert all(torch.equal(found[name], value) for name, value in kept.items())


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in ("resnet", "vit", "swin") else pytest.mark.slow) for kind in KINDS]
)
def test_compile_and_export_give_the_same_scores(kind: str, images: Tensor) -> None:
    model = defended(kind)
    with torch.no_grad():
        logits = model(images).logits
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(pixel_values=images).logits, logits)
        exported = torch.export.export(model, (images,)).module()
        torch.testing.assert_close(exported(images).logits, logits)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_tuples_and_hidden_states_are_those_of_the_base(kind: str, images: Tensor) -> None:
    base = tiny_base(kind)
    expected = base(images, output_hidden_states=True).hidden_states
    model = CALoRForImageClassification.from_base(base, rank=3)
    found = model(images, output_hidden_states=True).hidden_states
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    out = model(images, labels=LABELS)
    loss, logits, features, terms = model(images, labels=LABELS, return_dict=False)
    assert torch.equal(loss, out.loss)
    assert torch.equal(logits, out.logits)
    assert torch.equal(features, out.features)
    assert list(terms) == ["confidence_adaptation"]
    assert len(model(images, return_dict=False)) == 2
    model.config.return_dict = False
    assert isinstance(model(images), tuple)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_head_and_loss_in_float32(kind: str, images: Tensor, tmp_path: Path) -> None:
    defended(kind).save_pretrained(tmp_path)
    for loader in (CALoRForImageClassification, AutoModelForImageClassification):
        model = loader.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {p.dtype for p in model.classification_head.parameters()} == {torch.float32}
        assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
        out = model(images.bfloat16(), labels=LABELS)
        assert (out.features.dtype, out.logits.dtype, out.loss.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    model.save_pretrained(tmp_path / "half")
    again = CALoRForImageClassification.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert {p.dtype for p in again.classification_head.parameters()} == {torch.float32}
    assert same_weights(again, model)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_base_gets_a_float32_head(kind: str, images: Tensor, tmp_path: Path) -> None:
    tiny_base(kind).save_pretrained(tmp_path)
    model = CALoRForImageClassification.from_pretrained(tmp_path, rank=2, dtype=torch.bfloat16)
    assert {p.dtype for p in model.classification_head.parameters()} == {torch.float32}
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert model(images.bfloat16()).logits.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_float32_scores_and_loss(kind: str, images: Tensor) -> None:
    model = defended(kind).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images, labels=LABELS)
    assert (out.logits.dtype, out.loss.dtype) == (torch.float32, torch.float32)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ------------------------------------------------------------------------------------------------- from a base


def test_from_base_shares_the_weights_and_takes_the_classifier() -> None:
    base = tiny_base("vit").train()
    model = CALoRForImageClassification.from_base(base, rank=3)
    assert model.backbone is base
    assert isinstance(base.classifier, nn.Identity)
    assert model.training
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert (model.config.rank, model.config.base_class) == (3, "ViTForImageClassification")
    with pytest.raises(ValueError, match=r"expected a linear layer .* at 'classifier' of .*, found NoHead"):
        CALoRForImageClassification.from_base(base, rank=3)


def test_head_is_the_one_that_was_asked_for() -> None:
    head = defended("vit", rank=4, activation="relu", bias=False, input_norm="batchnorm").classification_head
    assert isinstance(head, LowRankHead)
    assert head.down.weight.shape == (4, 16)
    assert "down.bias" not in dict(head.named_parameters())
    assert head.activation == "relu"
    assert isinstance(head.norm, nn.BatchNorm1d)


def test_head_depends_on_the_seed_alone() -> None:
    base = tiny_base("vit")
    heads = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        heads.append(CALoRForImageClassification.from_base(copy.deepcopy(base), rank=3).classification_head)
    assert same_weights(heads[0], heads[1])
    assert not same_weights(heads[0], heads[2])


def test_rank_left_out_is_a_quarter_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="calor_hf"):
        model = CALoRForImageClassification.from_base(tiny_base("vit"))
    assert model.config.rank == 2  # min(16 features, 10 classes) // 4
    assert "rank not given: 2, a quarter of min(16 features, 10 classes)" in caplog.text


@pytest.mark.parametrize("rank", [0, -3, 11])
def test_impossible_rank_is_refused_before_anything_happens(rank: int) -> None:
    base = tiny_base("vit")
    before = str(base.config)
    limit = r"between 1 and 10 \(the smaller of 16 features and 10 classes\)" if rank > 0 else "a whole number >= 1"
    with pytest.raises(ValueError, match=rf"{limit}, got {rank}"):
        CALoRForImageClassification.from_base(base, rank=rank)
    assert isinstance(base.classifier, nn.Linear)
    assert str(base.config) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "gelu"}, "unknown activation 'gelu'; pass one of"),
        ({"input_norm": "layernorm"}, "unknown input_norm 'layernorm'; pass None or 'batchnorm'"),
        ({"head_init": "pca"}, "unknown head_init 'pca'; pass 'random' or 'svd'"),
        ({"head_init": "svd", "num_labels": 7}, r"copies the trained classifier \(16 features, 10 classes\)"),
        ({"head_init": "svd", "calibration": []}, "no images to compute features of"),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b"}}, "num_labels=3, but the label names given are 2"),
        ({"head": "fc"}, "has no module 'fc'; its last linear layers: .*classifier"),
        ({"head": "vit"}, "expected a linear layer or 1x1 convolution at 'vit'.*found ViTModel"),
    ],
)
def test_failing_leaves_the_base_as_it_was(settings: dict[str, Any], message: str, images: Tensor) -> None:
    base = tiny_base("vit")
    before, config = base(images).logits, str(base.config)
    with pytest.raises(ValueError, match=message):
        CALoRForImageClassification.from_base(base, rank=3, **settings)
    assert torch.equal(base(images).logits, before)
    assert str(base.config) == config


def test_full_rank_gets_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"rank 10 is the full rank of 16 features and 10 classes.*try rank=2"):
        defended("vit", rank=10)


def test_head_may_be_named() -> None:
    assert defended("resnet", head="classifier.1").config.head_paths == ["classifier.1"]


def test_the_class_that_a_checkpoint_names_is_built_not_the_first_of_its_type(tmp_path: Path) -> None:
    tiny_base("DeiTForImageClassificationWithTeacher").save_pretrained(tmp_path)
    model = CALoRForImageClassification.from_pretrained(tmp_path, rank=2)
    assert type(model.backbone).__name__ == "DeiTForImageClassificationWithTeacher"
    assert model.config.head_paths == ["cls_classifier", "distillation_classifier"]


def test_models_without_a_classifier_are_refused() -> None:
    with pytest.raises(ValueError, match="no classifier head found in ViTModel"):
        CALoRForImageClassification.from_base(tiny_base("vit").vit)


def test_checkpoint_without_image_classifier_names_the_remedy(tmp_path: Path) -> None:
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"BertConfig has no image classification model in .*; pass a checkpoint of"):
        CALoRForImageClassification.from_pretrained(tmp_path, rank=2)


def test_class_that_transformers_does_not_have_is_refused(images: Tensor) -> None:
    class OwnViT(ViTForImageClassification):
        pass

    base = OwnViT(tiny_base("vit").config).eval()
    with pytest.raises(ValueError, match="base_class 'OwnViT' is no model class of transformers"):
        CALoRForImageClassification.from_base(base, rank=3)
    assert base(images).logits.shape == (4, 10)


def test_from_config_of_a_base_gives_random_weights(images: Tensor) -> None:
    model = CALoRForImageClassification.from_config(tiny_base("resnet").config, rank=2, num_labels=6)
    assert model(images).logits.shape == (4, 6)


# ---------------------------------------------------------------------------------------------------- labels


def test_label_names_of_the_base_are_kept_and_written_once(tmp_path: Path) -> None:
    base = tiny_base("vit")
    base.config.id2label, base.config.label2id = NAMES, {name: index for index, name in NAMES.items()}
    model = CALoRForImageClassification.from_base(base, rank=3)
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    # Once in id2label and once in label2id, of the outer configuration only.
    assert all(text.count(f'"{name}"') == 2 for name in NAMES.values())
    assert json.loads(text)["base_config"].get("label2id", {"LABEL_0": 0, "LABEL_1": 1}) == {"LABEL_0": 0, "LABEL_1": 1}
    for loader in (CALoRForImageClassification, AutoModelForImageClassification):
        loaded = loader.from_pretrained(tmp_path)
        assert loaded.config.id2label == NAMES
        assert loaded.config.label2id == {name: index for index, name in NAMES.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"id2label": {0: "a", 1: "b", 2: "c"}},
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {"label2id": {"a": 0, "b": 1, "c": 2}},
        {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}},
    ],
)
def test_names_given_set_the_number_of_labels(settings: dict[str, Any], images: Tensor) -> None:
    model = defended("vit", rank=1, **settings)
    assert model.config.num_labels == 3
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model(images).logits.shape == (4, 3)


def test_saved_model_may_get_new_names(tmp_path: Path) -> None:
    defended("vit").save_pretrained(tmp_path)
    assert CALoRForImageClassification.from_pretrained(tmp_path, id2label=NAMES).config.id2label == NAMES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "this is a saved model of the defense 'calor' with rank=3, got rank=4; leave rank out"),
        ({"num_labels": 7}, "this is a saved model of the defense 'calor' with num_labels=10, got num_labels=7"),
        ({"head_init": "svd"}, "calibration, head apply to base checkpoints"),
        ({"head": "classifier"}, "calibration, head apply to base checkpoints"),
    ],
)
def test_saved_model_refuses_another_head(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    defended("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        CALoRForImageClassification.from_pretrained(tmp_path, **settings)


def test_saved_model_takes_the_settings_that_it_has(tmp_path: Path) -> None:
    defended("vit").save_pretrained(tmp_path)
    assert CALoRForImageClassification.from_pretrained(tmp_path, rank=3, num_labels=10).config.rank == 3


# ----------------------------------------------------------------------------------------------- stage and loss


def test_stage_is_the_last_one_and_not_saved(images: Tensor, tmp_path: Path) -> None:
    model = defended("vit")
    assert model.stage == "adapt"
    model.stage = "fit"
    out = model(images, labels=LABELS)
    assert list(out.loss_terms) == ["cross_entropy"]
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits, LABELS))
    model.save_pretrained(tmp_path)
    assert CALoRForImageClassification.from_pretrained(tmp_path).stage == "adapt"


def test_unknown_stage_is_refused() -> None:
    model = defended("vit")
    with pytest.raises(ValueError, match="unknown stage 'adpat'; pass one of fit, adapt"):
        model.stage = "adpat"
    assert model.stage == "adapt"


def test_strength_and_sharpness_are_saved(images: Tensor, tmp_path: Path) -> None:
    model = defended("vit", ca_a=2.0, ca_b=4.0)
    model.save_pretrained(tmp_path)
    for each in (model, CALoRForImageClassification.from_pretrained(tmp_path)):
        out = each(images, labels=LABELS)
        p = out.logits.double().softmax(1)[torch.arange(4), LABELS]
        assert out.loss.item() == pytest.approx((2 * p**4 * p.log()).mean().item(), rel=1e-4)
        assert math.exp(-1 / each.config.ca_b) == pytest.approx(0.7788, abs=1e-4)


def test_class_weights_count_and_are_not_saved(images: Tensor, tmp_path: Path) -> None:
    model = defended("vit")
    model.stage = "fit"
    model.class_weights = torch.linspace(0.5, 2, 10)
    out = model(images, labels=LABELS)
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits, LABELS, model.class_weights))
    assert "class_weights" not in model.state_dict()
    model.save_pretrained(tmp_path)
    assert CALoRForImageClassification.from_pretrained(tmp_path).class_weights is None


def test_soft_labels_are_refused_while_adapting(images: Tensor) -> None:
    with pytest.raises(ValueError, match="soft labels"):
        defended("vit")(images, labels=torch.full((4, 10), 0.1))


# ------------------------------------------------------------------------------------- what base models can do


def test_pipeline_gives_the_label_names(tmp_path: Path) -> None:
    import numpy as np
    import transformers
    from PIL import Image

    processor_class = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    model = defended("vit", id2label=NAMES)
    model.save_pretrained(tmp_path)
    processor = processor_class(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")(image, top_k=10)
    assert {entry["label"] for entry in found} == set(NAMES.values())
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).logits.softmax(1)[0]
    assert [entry["score"] for entry in found] == pytest.approx(expected.sort(descending=True).values.tolist())
    assert found[0]["label"] == NAMES[int(expected.argmax())]


def enable_checkpointing(model: PreTrainedModel) -> None:
    name = "activation_checkpointing_enable"  # gradient_checkpointing_enable before transformers 5.23
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


def test_gradient_checkpointing_gives_equal_gradients(images: Tensor) -> None:
    model = defended("vit").train()
    # Inside a layer: what is checkpointed is the layer as a whole.
    ends = (".layers.0.attention", ".layer.0.attention")  # since 5.0, and before
    inside = next(module for name, module in model.named_modules() if name.endswith(ends))
    calls: list[str] = []
    inside.register_forward_pre_hook(lambda *_: calls.append("forward"))
    gradients = []
    for enabled in (False, True):
        if enabled:
            enable_checkpointing(model)
        model.zero_grad()
        model(images, labels=LABELS).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(calls) == 3  # one plain pass; one checkpointed pass, and again on the way back
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_gradient_checkpointing_is_refused_where_the_base_refuses_it() -> None:
    for model in (tiny_base("resnet"), defended("resnet")):
        assert not model.supports_gradient_checkpointing
        with pytest.raises(ValueError, match="does not support"):
            enable_checkpointing(model)


def test_attention_implementation_reaches_the_base(images: Tensor, tmp_path: Path) -> None:
    tiny_base("vit").save_pretrained(tmp_path / "base")
    defended("vit").save_pretrained(tmp_path / "saved")
    models = [
        CALoRForImageClassification.from_pretrained(tmp_path / "base", rank=3, attn_implementation="eager"),
        CALoRForImageClassification.from_pretrained(tmp_path / "saved", attn_implementation="eager"),
        AutoModelForImageClassification.from_pretrained(tmp_path / "saved", attn_implementation="eager"),
    ]
    for model in models:
        assert model.backbone.config._attn_implementation == "eager"
        assert len(model(images, output_attentions=True).attentions) == 2
    default = CALoRForImageClassification.from_pretrained(tmp_path / "saved")
    assert default.backbone.config._attn_implementation == "sdpa"
    torch.testing.assert_close(default(images).logits, models[1](images).logits)


def test_attention_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    defended("resnet").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ResNetForImageClassification does not support"):
        CALoRForImageClassification.from_pretrained(tmp_path, attn_implementation="sdpa")


def test_deepcopy_is_a_model_of_its_own(images: Tensor) -> None:
    model = defended("vit")
    twin = copy.deepcopy(model)
    assert same_weights(twin, model)
    assert torch.equal(twin(images).logits, model(images).logits)
    with torch.no_grad():
        next(twin.classification_head.parameters()).zero_()
    twin.config.ca_b = 4.0
    assert not same_weights(twin, model)
    assert (model.config.ca_b, twin.config.ca_b) == (8.0, 4.0)


def test_parameters_are_those_of_the_base_with_a_low_rank_head() -> None:
    base = tiny_base("resnet")
    whole = base.num_parameters()
    model = CALoRForImageClassification.from_base(base, rank=3)
    assert model.num_parameters() == whole - (16 * 10 + 10) + (3 * (16 + 10) + 3 + 10)


# --------------------------------------------------------------------------------------- starting from the SVD


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of one random pattern a class, with noise."""
    patterns = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 10
    return patterns[labels] + torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)), labels


def trained_base(kind: str) -> PreTrainedModel:
    base = tiny_base(kind).train()
    optimizer = torch.optim.Adam(base.parameters(), lr=5e-3)
    for step in range(60):
        images, labels = blobs(40, seed=100 + step)
        base(images, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return base.eval()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:rank 10 is the full rank")
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_svd_of_full_rank_keeps_the_predictions(kind: str) -> None:
    with torch.enable_grad():
        base = trained_base(kind)
    images, labels = blobs(400, seed=1)
    calibration, _ = blobs(100, seed=2)
    before = base(images).logits.argmax(1)
    assert (before == labels).float().mean() > 0.9
    model = CALoRForImageClassification.from_base(base, rank=10, head_init="svd", calibration=calibration)
    kept = (model(images).logits.argmax(1) == before).float().mean().item()
    assert kept >= 0.95


@torch.no_grad()
def test_svd_starts_other_low_rank_heads_alike_and_no_others() -> None:
    images, _ = blobs(20, seed=2)
    start: dict[str, Any] = {"rank": 3, "head_init": "svd", "calibration": images}
    torch.manual_seed(3)
    calor = CALoRForImageClassification.from_base(tiny_base("vit"), **start)
    torch.manual_seed(3)
    loft = DefendedForImageClassification.from_base(tiny_base("vit"), "loft", **start)
    assert same_weights(calor.classification_head, loft.classification_head)
    with pytest.raises(ValueError, match="head_init='svd' starts a low-rank head, and bido has none"):
        DefendedForImageClassification.from_base(tiny_base("vit"), "bido", head_init="svd")


@torch.no_grad()
def test_svd_takes_calibration_in_every_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_base("vit").save_pretrained(tmp_path)
    images, labels = blobs(20, seed=2)
    batches = [{"pixel_values": images[:10], "labels": labels[:10]}, {"pixel_values": images[10:]}]
    heads = [
        CALoRForImageClassification.from_pretrained(
            tmp_path, rank=3, head_init="svd", calibration=calibration
        ).classification_head
        for calibration in (images, {"pixel_values": images, "labels": labels}, batches, iter([images]))
    ]
    for head in heads[1:]:
        torch.testing.assert_close(head.state_dict(), heads[0].state_dict())
    assert "without calibration images" not in caplog.text
    guessed = CALoRForImageClassification.from_pretrained(tmp_path, rank=3, head_init="svd").classification_head
    assert not same_weights(guessed, heads[0])
    assert "without calibration images" in caplog.text
