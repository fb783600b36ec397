"""Inputs of the classifier, collected over batches."""

import pytest
import torch
from torch import Tensor, nn

from calor_hf.heads.features import head_inputs
from tests.tiny_models import FEATURES, HEAD_PATHS, KINDS, tiny_base


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_the_classifier_reads(kind: str, images: Tensor) -> None:
    base = tiny_base(kind)
    features = head_inputs(base, [HEAD_PATHS[kind]], [images[:3], images[3:]])
    assert features.shape == (4, FEATURES[kind])
    assert features.dtype == torch.float32
    assert not features.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(base.get_submodule(HEAD_PATHS[kind])(features), base(images).logits)


def test_labels_of_a_batch_are_left_out(images: Tensor) -> None:
    base = tiny_base("vit")
    batch = {"pixel_values": images, "labels": torch.full((4,), 99)}  # a label that the loss would refuse
    assert torch.equal(head_inputs(base, ["classifier"], [batch]), head_inputs(base, ["classifier"], [images]))
    assert set(batch) == {"pixel_values", "labels"}


def test_half_precision_features_come_back_as_float32(images: Tensor) -> None:
    base = tiny_base("vit").to(torch.bfloat16)
    assert head_inputs(base, ["classifier"], [images.bfloat16()]).dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_statistics_stay(training: bool, images: Tensor) -> None:
    base = tiny_base("resnet").train(training)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    head_inputs(base, ["classifier.1"], [images])
    assert base.training == training
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


def test_classifier_and_mode_are_restored_after_an_error(images: Tensor) -> None:
    base = tiny_base("vit").train()
    with pytest.raises(ValueError, match="channel"):
        head_inputs(base, ["classifier"], [images[:, :1]])
    assert base.training
    assert isinstance(base.classifier, nn.Linear)


def test_nothing_to_compute_features_of_is_refused() -> None:
    with pytest.raises(ValueError, match="no images to compute features of"):
        head_inputs(tiny_base("vit"), ["classifier"], [])
