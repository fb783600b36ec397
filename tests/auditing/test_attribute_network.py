"""The network that reads identities off drawn faces: kept, reproducible, and right about people it never saw."""

from pathlib import Path

import pytest
import torch

from calor_hf import load_synthetic_faces
from calor_hf.auditing import attribute_network as module
from calor_hf.auditing.attribute_network import attribute_network
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import sample_identities
from calor_hf.metrics.identity_match import matched


def test_it_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FACES", 40)
    monkeypatch.setattr(module, "EPOCHS", 1)
    images = torch.rand(2, 3, 48, 48)
    first, _ = attribute_network(tmp_path / "one.safetensors").outputs(images)
    again, _ = attribute_network(tmp_path / "two.safetensors").outputs(images)
    torch.testing.assert_close(first, again)
    monkeypatch.setattr(module, "_train", None)
    kept, _ = attribute_network(tmp_path / "one.safetensors").outputs(images)
    assert torch.equal(first, kept)
    assert first.shape == (2, 24)


@pytest.mark.slow
def test_it_knows_people_it_never_saw(tmp_path: Path) -> None:
    images, labels = labeled_pixels(load_synthetic_faces(64, 4, 64, split="test"), 64)
    identity, _ = attribute_network(tmp_path / "network.safetensors").outputs(images)
    assert matched(identity, labels, sample_identities(64)).mean() >= 0.85  # by chance 0.016
