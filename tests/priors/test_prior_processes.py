"""Priors in processes of their own: killed and resumed, two at once."""

import json
import signal
from pathlib import Path

import pytest
import torch

from calor_hf.generators import load_generator
from calor_hf.priors import PRIORS, train_prior
from tests.priors.small_prior import SIDE, Pictures, assert_same_weights, precise, read_in_step, tiny_target, train
from tests.priors.test_prior_contract import steps_in
from tests.processes.server import Server

TASK = "tests.priors.small_prior"


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, server: Server) -> None:
    options = {"folder": str(tmp_path), "names": ["ked"], "save_steps": 1, "kill_at": read_in_step("ked", 3)}
    killed = server.task(TASK, options)
    assert killed.status == -signal.SIGKILL, killed.shown[-3000:]
    assert steps_in(tmp_path / "ked") == 2
    assert_same_weights(train("ked", tmp_path / "ked", resume=True), train("ked", tmp_path / "whole"))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    folder = tmp_path_factory.mktemp("two")
    done = server.task(TASK, {"folder": str(folder), "names": PRIORS.names(), "precise": ["gmi", "plg"]}, processes=2)
    assert done.status == 0, done.shown[-3000:]
    return folder


def test_two_processes_end_with_the_same_networks(two_processes: Path) -> None:
    report = json.loads((two_processes / "report.json").read_text())
    assert report["processes"] == 2
    assert report["apart"] == dict.fromkeys(PRIORS.names(), 0.0)
    for name in PRIORS.names():
        assert steps_in(two_processes / name) == 4
        assert all(torch.isfinite(x).all() for x in load_generator(str(two_processes / name)).state_dict().values())


@pytest.mark.parametrize("name", ["gmi", "plg"])
def test_two_processes_equal_one_where_no_norm_looks_at_the_batch(
    name: str, two_processes: Path, tmp_path: Path
) -> None:
    # No discriminator has batch norm; the generator's stands still here. Then only rounding may depend on the
    # processes.
    whole = train_prior(precise(name), Pictures(), tmp_path, target=tiny_target(), device="cpu").state_dict()
    shared = torch.load(two_processes / f"precise {name}" / "checkpoint.pt", weights_only=True)["generator"]
    assert whole.keys() == shared.keys()
    target = tiny_target()
    torch.manual_seed(0)
    start = precise(name).build(SIDE, target).state_dict()
    furthest = max(float((whole[key] - start[key]).abs().max()) for key in whole)
    assert furthest > 1e-4  # four steps of Adam with a rate of 2e-4
    assert max(float((whole[key] - shared[key]).abs().max()) for key in whole) < 1e-7
