"""The features of benchmarks/handcrafted.py, by hand on made-up images."""

import torch

from benchmarks.handcrafted import Handcrafted, binary_patterns, gradient_histograms


def test_pattern_of_a_bright_right_column() -> None:
    patch = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.5, 1.0], [0.0, 0.0, 1.0]])
    # Right, and between the corners on the right and the center, 0.75: bits 0, 1 and 7. There are 29 uniform
    # patterns below 128, then come 128 and 129.
    assert binary_patterns(patch.view(1, 1, 3, 3), 1)[0, 1, 1] == 31
    checkers = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.6, 1.0], [0.0, 1.0, 0.0]])
    # The corners' points have 2 * 0.207 + 0.086 * 0.6 = 0.47 of it: four changes and more are one bin.
    assert binary_patterns(checkers.view(1, 1, 3, 3), 1)[0, 1, 1] == 58


def test_gradients_of_ramps() -> None:
    ramp = torch.linspace(0, 1, 32).square().expand(1, 3, 32, 32)  # of square roots
    across, down = gradient_histograms(ramp)[0], gradient_histograms(ramp.mT)[0]
    assert across.shape == (72, 5, 5)
    expected = torch.zeros(72)
    expected[::18] = 0.5  # four cells, one direction
    torch.testing.assert_close(across, expected.view(-1, 1, 1).expand_as(across))
    expected = torch.zeros(72)
    expected[4::18] = expected[5::18] = 8**-0.5  # a quarter of 18 directions lies between two
    torch.testing.assert_close(down, expected.view(-1, 1, 1).expand_as(down))


def test_people_and_their_mirror_images_are_recognized() -> None:
    people, labels = torch.rand(3, 3, 64, 64), torch.arange(3).repeat(4)
    images = (0.7 * people[labels] + 0.3 * torch.rand(12, 3, 64, 64)).clamp(0, 1)
    model = Handcrafted().fit(images[:9], labels[:9])
    scores = model.scores(images[9:])
    assert scores.argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(model.scores(images[9:].flip(3)), scores, atol=1e-3, rtol=0)
