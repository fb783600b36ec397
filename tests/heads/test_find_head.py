"""The classifier is found in every kind of model, and what cannot be found is explained."""

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTModel

from calor_hf.heads.find_head import HeadSlot, check_heads, find_heads, put_back_heads, take_out_heads
from tests.tiny_models import EVERY, FEATURES, HEAD_PATHS, KINDS, TWO_HEADS, tiny_base, tiny_inputs


@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_classifier(kind: str) -> None:
    base = tiny_base(kind)
    before = base.config.to_dict()
    paths = find_heads(type(base), base.config)
    assert paths == [HEAD_PATHS[kind]]
    assert check_heads(base, paths) == [FEATURES[kind]]
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


@pytest.mark.parametrize("class_name", EVERY)
def test_finds_the_heads_of_every_class(class_name: str) -> None:
    base = tiny_base(class_name)
    paths = find_heads(type(base), base.config)
    assert len(paths) == (2 if class_name in TWO_HEADS else 1)
    assert all(width > 0 for width in check_heads(base, paths))


@pytest.mark.parametrize("class_name", TWO_HEADS)
def test_of_two_heads_the_inputs_lie_side_by_side(class_name: str) -> None:
    base, inputs = tiny_base(class_name), tiny_inputs(class_name)
    paths = find_heads(type(base), base.config)
    widths = check_heads(base, paths)
    with torch.no_grad():
        scores = base(**inputs).logits
        heads = take_out_heads(base, paths)
        features = base(**inputs).logits
        parts = features.split(widths, dim=1)
        mean = (heads[0](parts[0]) + heads[1](parts[1])) / 2
        torch.testing.assert_close(mean, scores)
        put_back_heads(base, paths, heads)
        assert torch.equal(base(**inputs).logits, scores)


def test_slot_of_a_convolution_pads_the_channels() -> None:
    # The second of three, two channels wide: one zero in front, three behind, times three.
    slot = HeadSlot([1, 2, 3], 1, channels_first=True)
    assert slot(torch.tensor([[[[1.0]], [[2.0]]]])).flatten().tolist() == [0, 3, 6, 0, 0, 0]
    assert HeadSlot([1, 2, 3], 1)(torch.tensor([[1.0, 2.0]])).tolist() == [[0, 3, 6, 0, 0, 0]]


def test_no_head_names_the_remedy() -> None:
    backbone = ViTModel(tiny_base("vit").config)
    assert find_heads(ViTModel, backbone.config) == []
    with pytest.raises(ValueError, match=r'no classifier head found in ViTModel: .*; pass head="name\.of\.linear"'):
        check_heads(backbone, [])


def test_wrong_path_lists_the_last_linear_layers() -> None:
    with pytest.raises(ValueError, match=r"ViTForImageClassification has no module 'fc'; its last .*, classifier"):
        check_heads(tiny_base("vit"), ["fc"])


def test_layer_that_is_not_linear_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"expected a linear layer or 1x1 convolution at 'classifier' of ResNet.*, found Sequential",
    ):
        check_heads(tiny_base("resnet"), ["classifier"])


@pytest.mark.parametrize("kind", KINDS)
def test_taken_out_head_turns_the_features_into_the_logits(kind: str, images: Tensor) -> None:
    base = tiny_base(kind)
    with torch.no_grad():
        logits = base(images).logits
        (head,) = take_out_heads(base, [HEAD_PATHS[kind]])
        features = base(images).logits
    assert isinstance(base.get_submodule(HEAD_PATHS[kind]), nn.Identity)
    assert features.shape == (4, FEATURES[kind])
    assert torch.equal(head(features), logits)
