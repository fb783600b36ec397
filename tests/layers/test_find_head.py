"""The classifier is found in every kind of model, and what cannot be found is explained."""

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTModel

from calor_hf.layers.find_head import check_heads, find_heads, take_out_head
from tests.tiny_models import FEATURES, HEAD_PATHS, KINDS, tiny_base


@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_classifier(kind: str) -> None:
    base = tiny_base(kind)
    before = base.config.to_dict()
    paths = find_heads(type(base), base.config)
    assert paths == [HEAD_PATHS[kind]]
    assert check_heads(base, paths) == FEATURES[kind]
    assert base.config.to_dict() == before
    assert base.config.num_labels == 10


@pytest.mark.parametrize("num_labels", [1, 2, 7, 11])
def test_any_number_of_labels_will_do(num_labels: int) -> None:
    base = tiny_base("vit", num_labels)
    assert find_heads(type(base), base.config) == ["classifier"]


def test_finding_neither_needs_memory_nor_moves_the_random_numbers() -> None:
    base = tiny_base("vit")
    before = torch.get_rng_state()
    find_heads(type(base), base.config)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_heads_are_found_and_refused() -> None:
    base = tiny_base("deit_teacher")
    paths = find_heads(type(base), base.config)
    assert paths == ["cls_classifier", "distillation_classifier"]
    with pytest.raises(
        ValueError,
        match=r"WithTeacher has 2 classifier heads \(cls_classifier, distillation_classifier\).*"
        "use the sibling class without distillation head",
    ):
        check_heads(base, paths)


def test_no_head_names_the_remedy() -> None:
    backbone = ViTModel(tiny_base("vit").config)
    assert find_heads(ViTModel, backbone.config) == []
    with pytest.raises(ValueError, match=r'no classifier head found in ViTModel; pass head="name\.of\.linear"'):
        check_heads(backbone, [])


def test_wrong_path_lists_the_last_linear_layers() -> None:
    with pytest.raises(ValueError, match=r"ViTForImageClassification has no module 'fc'; its last .*, classifier"):
        check_heads(tiny_base("vit"), ["fc"])


def test_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected a linear layer at 'classifier' of ResNetForImageClassification, found Sequential"
    ):
        check_heads(tiny_base("resnet"), ["classifier"])


@pytest.mark.parametrize("kind", KINDS)
def test_taken_out_head_turns_the_features_into_the_logits(kind: str, images: Tensor) -> None:
    base = tiny_base(kind)
    with torch.no_grad():
        logits = base(images).logits
        head = take_out_head(base, HEAD_PATHS[kind])
        features = base(images).logits
    assert isinstance(base.get_submodule(HEAD_PATHS[kind]), nn.Identity)
    assert features.shape == (4, FEATURES[kind])
    assert torch.equal(head(features), logits)
