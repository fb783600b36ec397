"""Mode ranking and attackers with photographs: values by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf.defenses.decoys import DecoyHead
from calor_hf.metrics.mode_ranking import by_place, first_of_class, holm, mode_ranking, mode_statistics
from calor_hf.metrics.photographs import gallery, pool


def test_the_private_identity_is_ranked_by_the_mean_of_its_images() -> None:
    # Class 0: means 3 and 2; class 1: 1 and 4; class 2: a tie. Private are the places 0, 0 and 1.
    scores = by_place(torch.tensor([1.0, 2.0, 5.0, 2.0, 1.0, 4.0, 1.0, 4.0, 7.0, 7.0, 7.0, 7.0]), each=4, k=2)
    assert scores.tolist() == [[3, 2], [1, 4], [7, 7]]
    found = first_of_class("x", scores, torch.tensor([0, 1, 5]), torch.tensor([0, 0, 1]), 12)
    assert found.by_identity == {0: 1.0, 1: 0.0, 5: 0.5}
    assert found.value == 0.5


def test_other_statistics_are_corrected_for_their_number(caplog: pytest.LogCaptureFixture) -> None:
    # In order: 3 · 0.01, then at least that, then at least 2 · 0.02 again.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.7, 0.6]) == [1, 1]
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    known = {
        "log_odds": first.repeat(10, 1),  # ten of ten
        "weight_norm": torch.cat([first.repeat(5, 1), second.repeat(5, 1)]),  # five
        "bias": second.repeat(10, 1),  # none: as telling as ten
    }
    found = mode_ranking(known, torch.arange(10), torch.zeros(10), 20)
    assert [(one.name, one.value) for one in found] == [
        ("mode_ranking", 1), ("mode_ranking[weight_norm]", 0.5), ("mode_ranking[bias]", 0)
    ]  # fmt: skip
    assert found[0].low == pytest.approx(0.025 ** (1 / 10))  # Clopper-Pearson of ten in ten
    assert "p = 1 after Holm's correction for 2" in found[1].note
    assert f"p = {2 * 2 / 2**10:.2g} after" in found[2].note  # both tails, times two statistics
    assert "tells private identities from decoys" in caplog.text
    assert "weight_norm" not in caplog.text


def flat_target(head: DecoyHead) -> Any:
    """A network whose features are the first two numbers of an image."""
    return SimpleNamespace(
        module=nn.Identity(), head=head, device="cpu", dtype=torch.float64, features=lambda x: x.flatten(1)[:, :2]
    )


def two_classes_of_two() -> DecoyHead:
    """Identities 0 to 3 look to the right, up, left and down; the second class is longer."""
    head = DecoyHead(2, 2, k=2).double()
    with torch.no_grad():
        head.last_layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [0.0, -3.0]]))
        head.last_layer.bias.copy_(torch.tensor([0.5, 0.0, 0.0, 0.0]))
    return head


def images_of(*points: tuple[float, float]) -> Tensor:
    images = torch.zeros(len(points), 3, 1, 1)
    images[:, :2, 0, 0] = torch.tensor(points)
    return images


def test_statistics_of_the_weights_and_of_what_was_rebuilt() -> None:
    head = two_classes_of_two()
    images = images_of((3, 0), (0, 1), (4, 0), (-1, 0), (0, -2), (-1, 0))  # places 0, 1, 0 of each class
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = mode_statistics(flat_target(head), images, labels, 2)
    assert found["weight_norm"].tolist() == [[1, 1], [2, 3]]
    assert found["bias"].tolist() == [[0.5, 0], [0, 0]]
    assert found["feature_norm"].tolist() == [[3.5, 1], [1, 2]]
    # (0, 1) scores 0.5, 1, 0 and -3.
    rest = math.exp(0.5) + 1 + math.exp(-3)
    odds = math.log((math.exp(0.5) + math.e) / (1 + math.exp(-3)))
    assert found["log_odds"][0, 1] == pytest.approx(odds)
    p = torch.tensor([math.exp(0.5), math.e, 1, math.exp(-3)]) / (rest + math.e)
    slope = (p - torch.tensor([0.0, 1, 0, 0])).double() @ head.last_layer.weight.detach()
    assert found["gradient_norm"][0, 1] == pytest.approx(-float(slope.norm()), rel=1e-6)
    assert found["loss_under_noise"][0, 1] == pytest.approx(math.log(float(p[1])), abs=0.1)
    assert found["loss_under_noise"][0, 1] != pytest.approx(math.log(float(p[1])), abs=1e-6)
    assert all(scores.shape == (2, 2) for scores in found.values())
    with pytest.raises(ValueError, match="1 images of a class cannot show its 2 identities; rebuild 2 or more"):
        mode_statistics(flat_target(head), images[:2], torch.tensor([0, 1]), 2)


def test_photographs_break_the_bound_and_a_gallery_with_decoys_does_not() -> None:
    target = flat_target(two_classes_of_two())
    labels, private = torch.arange(2), torch.tensor([1, 0])  # up, and left
    right, up, left, down = (torch.tensor([one]) * 3.0 for one in ([1.0, 0], [0, 1], [-1, 0], [0, -1]))
    assert pool(torch.cat([right, down]), target, labels, private, 2).value == 1
    assert pool(torch.cat([up, left]), target, labels, private, 2).value == 0
    strangers = torch.zeros(1, 2)
    assert gallery(torch.cat([up, left, strangers]), target, labels, private, 2).value == 1
    everyone = torch.cat([up, left, strangers, right, down])
    found = gallery(everyone, target, labels, private, 2, with_decoys=True)
    assert (found.name, found.by_identity) == ("gallery_with_decoys", {0: 0, 1: 0})  # the surest photograph: a decoy's
    assert "of 5 of private people, decoys and strangers; by chance 1/2" in found.note
