"""What every test stands on: no network, a fixed seed, a batch of images."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports transformers

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    """Four random images as the models of ``tests.tiny_models`` take them, the same in every test."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
