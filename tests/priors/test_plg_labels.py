"""Which public images PLG takes for which class."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from calor_hf.priors.plg import PseudoLabelled, top_images
from calor_hf.targets.module_target import ModuleTarget
from tests.priors.small_prior import CLASSES, Pictures, tiny_prior, tiny_target


class Scored(Dataset[Tensor]):
    """Images of one pixel whose channels are the logits."""

    def __init__(self, logits: list[list[float]]) -> None:
        self.images = torch.tensor(logits).view(-1, 3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def as_they_are() -> ModuleTarget:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    flat[1].weight.data, flat[1].bias.data = torch.eye(3), torch.zeros(3)
    return ModuleTarget(flat, 3, 1)


def test_top_images_worked_by_hand() -> None:
    # Rows are logits. By probability, image 3 is no one's first although its logits are the largest of all.
    images = Scored([[2, 0, 0], [0, 2, 0], [0, 0, -9], [9, 9, 9], [3, 0, 0]])
    chosen = top_images(images, as_they_are(), top=2)
    # Class 0: e³/(e³+2) = 0.91, then e²/(e²+2) = 0.79; class 1: 0.79, then 1/(2+e⁻⁹) = 0.49998;
    # class 2: 1/3, then 1/(2+e²) = 0.107 of images 0 and 1, before 1/(2+e³) = 0.045.
    assert chosen[:2].tolist() == [[4, 0], [1, 2]]
    assert chosen[2, 0] == 3
    assert int(chosen[2, 1]) in (0, 1)


def test_top_images_against_a_plain_sort_in_any_batch_size() -> None:
    images, target = Pictures(), tiny_target()
    with torch.no_grad():
        scores = [target(image[None]).softmax(dim=1)[0].tolist() for image in images.images]
    best = [sorted(range(len(images)), key=lambda i, c=c: -scores[i][c])[:7] for c in range(CLASSES)]  # type: ignore[misc]
    assert top_images(images, target, top=7).tolist() == best
    assert top_images(images, target, top=7, batch_size=3).tolist() == best


def test_an_image_may_serve_several_classes() -> None:
    # Two images, two a class: every class takes both.
    assert top_images(Scored([[1, 0, 0], [0, 1, 2]]), as_they_are(), top=2).tolist() == [[0, 1], [1, 0], [1, 0]]


def test_index_to_image_and_label() -> None:
    images = Pictures()
    data = PseudoLabelled(images, torch.tensor([[4, 2], [2, 9], [0, 1]]))
    found = [(image, label) for image, label in (data[index] for index in range(len(data)))]
    assert [label for _, label in found] == [0, 0, 1, 1, 2, 2]
    for (image, _), wanted in zip(found, [4, 2, 2, 9, 0, 1], strict=True):
        assert torch.equal(image, images.images[wanted])


def test_data_of_the_prior_are_the_top_images() -> None:
    images, target = Pictures(), tiny_target()
    data = tiny_prior("plg").data(images, target)
    chosen = top_images(images, target, top=7)
    assert len(data) == 7 * CLASSES  # type: ignore[arg-type]
    image, label = data[15]
    assert label == 2
    assert torch.equal(image, images.images[int(chosen[2, 1])])


def test_fewer_images_than_a_class_is_given_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 7 public images for each class to choose from, got 6"):
        tiny_prior("plg").data(Pictures(6), tiny_target())


def test_the_target_labels_in_evaluation_mode_and_keeps_its_own() -> None:
    target = tiny_target()
    expected = top_images(Pictures(), target, top=7)
    statistics = {name: value.clone() for name, value in target.module.named_buffers()}
    target.module.train()
    assert torch.equal(top_images(Pictures(), target, top=7), expected)
    assert all(torch.equal(value, statistics[name]) for name, value in target.module.named_buffers())
    assert target.module.training
