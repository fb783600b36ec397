"""Foundations of every test: no network, a fixed seed, a batch of images."""

import gc
import os
from collections.abc import Generator, Iterator
from importlib.util import find_spec

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports transformers


import pytest
import torch
from torch import Tensor
from torch.utils.data import _utils

from tests.processes.server import Server

# Seconds until the workers of a data loader that is garbage are terminated, by whichever test collects it.
_utils.MP_STATUS_CHECK_INTERVAL = 0.2


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, bool | None, bool | None]:
    """Skip flows and pipelines where the extra that they need is not installed."""
    try:
        return (yield)
    except ImportError as error:
        if find_spec("diffusers") is None and "diffusers" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def always_adapts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the adapt stage of models that learned for a moment, too."""
    monkeypatch.setattr("calor_hf.training.calor_trainer._NOTHING_MOVES", 1.0)


@pytest.fixture
def images() -> Tensor:
    """Four random images as the models of ``tests.tiny_models`` take them, the same in every test."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Operations that repeat bit for bit, errors of those that cannot, and NaN in memory that no one filled."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module", autouse=True)
def _modules_are_no_garbage() -> None:
    """Every Trainer collects garbage at its end, which takes longer than a small training where all of torch is gone
    through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs commands, and tasks of the tests, in processes of their own that need not import everything again."""
    threads = str(torch.get_num_threads())  # sums are rounded alike
    with Server(tmp_path_factory.mktemp("server"), HF_HUB_OFFLINE="1", OMP_NUM_THREADS=threads) as made:
        yield made
