"""Errors as a user sees them: ours in words, anything else as the report of a fault."""

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils.data import DataLoader, Dataset

from calor_hf.cli._command import run_command
from calor_hf.cli.main import COMMANDS
from calor_hf.cli.main import main as calor_hf
from calor_hf.core.files import read_json, reading
from calor_hf.core.own_errors import is_own
from calor_hf.data.augment import augmentation_for
from calor_hf.defenses import DEFENSES


def caught(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("no error")


def unreadable(raising: Callable[[], object]) -> None:
    with reading("the model in here"):
        raising()


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")


def full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors")


class Unknown(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        augmentation_for("spin", 8)
        return index


OWN: dict[str, tuple[Callable[[], object], int, str]] = {
    "ours": (lambda: augmentation_for("spin", 8), 2, "unknown augmentation 'spin'"),
    "ours, KeyError": (lambda: DEFENSES.get("calorr"), 2, "Did you mean 'calor'?"),
    "another's about a file": (lambda: unreadable(lambda: json.loads("{")), 2, "the model in here cannot be read: Exp"),
    "no file": (lambda: Path("/no/such/file").read_text(), 2, "No such file or directory: '/no/such/file'"),
    "disk": (full_disk, 2, "'out/model.safetensors'; make room"),
    "memory": (run_out_of_memory, 2, "not enough memory (tried to allocate 2.00 GiB); pass a smaller batch"),
    "weights": (lambda: safetensors.torch.load(b"123"), 2, "a file of weights is damaged or cut off"),
    "library": (lambda: __import__("no_such_library"), 2, "No module named 'no_such_library'"),
    "worker": (lambda: list(DataLoader(Unknown(), num_workers=1)), 2, "train: unknown augmentation 'spin'"),
}
FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "torch": (lambda: torch.ones(2) @ torch.ones(3), "RuntimeError: "),
    "ValueError of a library": (lambda: json.loads("{"), "JSONDecodeError: Expecting property name"),
    "ValueError of Python at our line": (lambda: augmentation_for([], 8), "TypeError: "),  # type: ignore[arg-type]
    "nothing said": (lambda: vars(Unknown)["loss"], "KeyError: 'loss'"),
    "unpickled": (lambda: pickle.loads(b"x"), "UnpicklingError: "),
    "a name of ours": (lambda: __import__("calor_hf.no_such"), "No module named 'calor_hf.no_such'"),
}


@pytest.mark.parametrize("name", OWN)
def test_errors_for_the_user_are_one_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    call, status, message = OWN[name]
    assert run_command("train", lambda _: call(), []) == status
    shown = capsys.readouterr().err
    assert shown.startswith("calor-hf train: ")
    assert message in shown
    assert "Traceback" not in shown
    assert "fault" not in shown


@pytest.mark.parametrize("name", FAULTS)
def test_anything_else_is_the_report_of_a_fault(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    call, last = FAULTS[name]
    words = ["--hub-token", "hf_secret", "--hub_token=hf_secret", "--output-dir", "my run"]
    assert run_command("train", lambda _: call(), words) == 70
    shown = capsys.readouterr().err
    first, error, please, command, versions = shown.strip().splitlines()
    assert "stopped by a fault" in first
    assert last in error
    assert "with --traceback" in please
    assert command == "  calor-hf train --hub-token ... --hub_token=... --output-dir 'my run'"
    assert "hf_secret" not in shown
    assert "transformers" in versions


def test_a_raise_of_ours_is_told_from_an_error_at_our_line(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_text("{")
    assert is_own(caught(lambda: read_json(tmp_path / "damaged")))
    assert not is_own(caught(lambda: read_json(tmp_path / "missing")))  # raised by Python, for the user by its kind
    assert not is_own(ValueError("never raised"))


@pytest.mark.parametrize("command", COMMANDS)
def test_traceback_is_for_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*_: object) -> None:
        json.loads("{")  # an error of another library

    # Whatever the command calls first, after the check of its words.
    monkeypatch.setattr("calor_hf.cli.main.check_usage", lambda *_: None)
    monkeypatch.setattr("calor_hf.cli._command.read_options", fault)
    monkeypatch.setattr("calor_hf.cli.train.parse", fault)
    called = [command, "deal"] if command == "decoys" else [command]
    for words, seen in (([], False), (["--traceback"], True)):
        assert calor_hf([*called, *words]) == 70
        shown = capsys.readouterr().err
        assert ("Traceback (most recent call last)" in shown) == seen
        assert f"calor-hf {' '.join(called)}: stopped by a fault" in shown
