"""What tests of several commands share."""

import pytest
import torch

from tests.attacks.tiny_world import CLASSES
from tests.tiny_models import tiny_base


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny ViT; its image size stands in its configuration."""
    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    tiny_base("vit", CLASSES).save_pretrained(folder)
    return str(folder)
