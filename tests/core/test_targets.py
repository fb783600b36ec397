"""Views of a target: what each hides, and what it counts."""

import pytest
import torch
from torch import Tensor, nn

from calor_hf.targets.base import LabelTarget, ScoreTarget
from calor_hf.targets.module_target import ModuleTarget


def white_box() -> ModuleTarget:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 3))
    return ModuleTarget(net, 3, 4, head="1")


def test_head_of_features_is_the_call() -> None:
    target, images = white_box(), torch.rand(5, 3, 4, 4)
    assert target.features(images).shape == (5, 48)
    assert torch.equal(target.head(target.features(images)), target(images))


@pytest.mark.parametrize("view", [ScoreTarget, LabelTarget])
def test_views_show_answers_and_count_images(view: type) -> None:
    target = white_box()
    images = torch.rand(5, 3, 4, 4, requires_grad=True)
    seen = view(target)
    answers: Tensor = seen(images)
    seen(images[:2])
    assert seen.queries == 7
    assert (seen.num_classes, seen.image_size) == (3, (4, 4))
    expected = target(images).softmax(dim=1)
    if view is ScoreTarget:
        assert torch.allclose(answers, expected)
        assert not answers.requires_grad
    else:
        assert torch.equal(answers, expected.argmax(dim=1))
        assert answers.dtype == torch.int64


@pytest.mark.parametrize("view", [ScoreTarget, LabelTarget])
def test_no_attribute_leads_to_the_network(view: type) -> None:
    seen = view(white_box())
    for name in ("module", "head", "features", "target", "dtype"):
        assert not hasattr(seen, name)
    assert not any(isinstance(value, nn.Module | ModuleTarget) for value in vars(seen).values())
