from typing import Any

import numpy as np
import pytest
import torch

from calor_hf import load_synthetic_faces
from calor_hf.data.face_renderer import CHUNK, IDENTITY_NAMES, NUISANCE_NAMES, render_faces
from calor_hf.data.synthetic_faces import drawn_identities, sample_identities, sample_nuisances


def numbers(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    identity = torch.rand(count, len(IDENTITY_NAMES), generator=generator, dtype=dtype) * 1.8 - 0.9
    nuisance = torch.rand(count, len(NUISANCE_NAMES), generator=generator, dtype=dtype) * 1.8 - 0.9
    return identity, nuisance


def test_images_are_in_range_and_independent_of_the_batch() -> None:
    identity, nuisance = numbers(CHUNK + 3)
    images = render_faces(identity, nuisance, 32)
    assert images.shape == (CHUNK + 3, 3, 32, 32)
    assert 0 <= images.min() <= images.max() <= 1
    for index in (0, CHUNK, CHUNK + 2):
        alone = render_faces(identity[index : index + 1], nuisance[index : index + 1], 32)
        torch.testing.assert_close(alone[0], images[index], rtol=0, atol=1e-5)


def shifted(
    inputs: tuple[torch.Tensor, torch.Tensor], which: int, step: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    identity, nuisance = inputs
    return (identity + step, nuisance) if which == 0 else (identity, nuisance + step)


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_reaches_every_number_and_agrees_with_differences(which: int) -> None:
    inputs = numbers(6, torch.float64)
    inputs[which].requires_grad_()
    weights = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((render_faces(*inputs, 24) * weights).sum(), inputs[which])
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().amax(dim=0) > 1e-3).all()
    with torch.no_grad():
        for column in range(gradient.shape[1]):
            step = torch.zeros_like(inputs[which])
            step[:, column] = 1e-6
            up, down = (render_faces(*shifted(inputs, which, sign * step), 24) for sign in (1, -1))
            slope = ((up - down) * weights).sum(dim=(1, 2, 3)) / 2e-6
            torch.testing.assert_close(slope, gradient[:, column], rtol=1e-3, atol=1e-3)


def test_more_people_keep_the_first_ones() -> None:
    assert torch.equal(sample_identities(5), sample_identities(9)[:5])
    assert not torch.equal(sample_identities(5), sample_identities(5, seed=1))
    first, more = sample_nuisances(3, 4), sample_nuisances(3, 8)
    assert torch.equal(first, more[:4])


def test_streams_and_splits_are_disjoint() -> None:
    private, public = sample_identities(200), sample_identities(200, stream="public")
    assert torch.cdist(private, public).min() > 0.5
    train, test = sample_nuisances(0, 50), sample_nuisances(0, 50, split="test")
    assert torch.cdist(train, test).min() > 0.1


def test_splits_show_the_same_people_in_other_pictures() -> None:
    train, test = load_synthetic_faces(3, 2, 16), load_synthetic_faces(3, 2, 16, split="test")
    assert train["label"] == test["label"] == [0, 0, 1, 1, 2, 2]
    assert train.features["label"].names == ["identity_000", "identity_001", "identity_002"]
    for left, right in zip(train["image"], test["image"], strict=True):
        assert left.size == (16, 16)
        assert not np.array_equal(left, right)
    np.testing.assert_array_equal(train[3]["image"], load_synthetic_faces(5, 2, 16)[3]["image"])


def test_pictures_are_those_of_the_numbers() -> None:
    row = load_synthetic_faces(2, 3, 16)[4]
    expected = render_faces(sample_identities(2)[1:], sample_nuisances(1, 3)[1:2], 16)[0]
    np.testing.assert_allclose(np.asarray(row["image"]) / 255, expected.permute(1, 2, 0), atol=0.51 / 255)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_identities": 0}, "num_identities must be a whole number >= 1, got 0"),
        ({"images_per_identity": 0}, "images_per_identity must be a whole number >= 1"),
        ({"image_size": 8}, "image_size must be a whole number >= 16, got 8"),
        ({"split": "dev"}, "unknown split 'dev'; pass one of train, validation, test"),
        ({"stream": "secret"}, "unknown stream 'secret'"),
    ],
)
def test_bad_arguments_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_synthetic_faces(**wrong)  # type: ignore[arg-type]


def test_wrong_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected identity \(2, 24\)"):
        render_faces(torch.zeros(2, 3), torch.zeros(2, 13))


def test_drawn_faces_are_known_by_drawing_them_again() -> None:
    faces = load_synthetic_faces(3, 4, 16, seed=5, split="test", stream="public")
    truth = sample_identities(3, 5, "public")
    for kept in (faces, faces.shuffle(seed=0), faces.train_test_split(0.3, seed=0)["train"]):
        found = drawn_identities(kept)
        assert found is not None
        assert torch.equal(found, truth)

    def flipped(row: dict[str, Any], index: int) -> dict[str, Any]:
        return {"image": row["image"].transpose(0)} if index == 10 else row

    def moved(row: dict[str, Any]) -> dict[str, Any]:
        return {"label": (row["label"] + 1) % 3}

    mirrored, permuted = faces.map(flipped, with_indices=True), faces.map(moved)
    for others in (mirrored, permuted):
        assert others.info.description == faces.info.description  # the record alone is not believed
        assert drawn_identities(others) is None
    assert drawn_identities(mirrored, [0, 1]) is not None
    faces.info.description = "synthetic faces"
    assert drawn_identities(faces) is None
