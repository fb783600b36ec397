"""Fixtures of tests of several commands."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch

from calor_hf.data import loading
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.recipes import train
from tests.attacks.tiny_world import CLASSES
from tests.tiny_models import tiny_base


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny ViT; its image size stands in its configuration."""
    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    tiny_base("vit", CLASSES).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session", autouse=True)
def _faces_are_drawn_once() -> Iterator[None]:
    """Every training of a few drawn people draws the same images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "load_synthetic_faces", cache(load_synthetic_faces))
        yield


@pytest.fixture(autouse=True)
def _briefly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings neither time their steps beforehand nor draw curves, which takes longer; with ``whole_run`` they do."""
    if "whole_run" not in request.fixturenames:
        monkeypatch.setattr(train, "estimate_seconds", lambda trainer: 60.0)
        monkeypatch.setattr(train, "draw_curves", lambda trainer, record, path: path.touch())


@pytest.fixture
def whole_run() -> None:
    """Leave nothing out of a training."""
