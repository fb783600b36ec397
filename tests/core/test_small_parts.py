"""Draws by row, whole files, stop requests, joined reconstructions, processes."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate import PartialState

from calor_hf.core.files import write_whole
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.core.seeding import Key, RowDraws, named_rng
from calor_hf.core.stop_request import StopRequest, leave_interrupts_to_parent


def draws(keys: list[Key], seed: int = 0, name: str = "tests/rows", normal: bool = True) -> list[torch.Tensor]:
    made = RowDraws(seed, name, keys, 2, normal, torch.zeros(0, dtype=torch.float64))
    return [made.next() for _ in range(70)]  # more than are made at once


def test_a_row_draws_the_same_whoever_stands_beside_it() -> None:
    together = draws([(1, 0), (1, 1), (4, 0)])
    alone = draws([(4, 0)])
    assert all(torch.equal(row[2:], own) for row, own in zip(together, alone, strict=True))
    assert len({tuple(row[2].tolist()) for row in together}) == 70
    for other in (draws([(4, 0)], seed=1), draws([(4, 0)], name="tests/other"), draws([(4, 1)])):
        assert not torch.equal(other[0], alone[0])


def test_uniform_draws_lie_in_their_range() -> None:
    numbers = torch.cat(draws([(1, 0), (2, 0)], normal=False))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(float(numbers.mean()) - 0.5) < 4 * (1 / 12 / numbers.numel()) ** 0.5


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "a.txt"
    write_whole(file, b"one")
    assert file.read_bytes() == b"one"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"two")
    assert file.read_bytes() == b"one"
    assert [path.name for path in file.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(
    number: signal.Signals, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calor_hf.core.stop_request.SAME_REQUEST", 0.0)  # a launcher's two signals count as one
    before = signal.getsignal(number)
    stop = StopRequest("saving first")
    asked: list[bool] = []
    with pytest.raises(KeyboardInterrupt), stop:  # noqa: PT012
        for _ in range(2):
            asked.append(stop.requested)
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
    with stop:
        asked.append(stop.requested)
    assert asked == [False, True, False]


def test_an_inactive_request_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest("never", active=False):
        assert signal.getsignal(signal.SIGINT) == before


def test_helpers_leave_interrupts_to_the_parent() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        leave_interrupts_to_parent(0)
        os.kill(os.getpid(), signal.SIGINT)  # nothing happens
    finally:
        signal.signal(signal.SIGINT, before)


def part(labels: list[int], value: float) -> Reconstruction:
    count = len(labels)
    filled = torch.full((count, 3, 2, 2), value)
    return Reconstruction(filled, torch.tensor(labels), filled[:, 0, 0], filled[:, 0, 0, 0], Cost(count, 2, 3, 0.5))


def test_parts_join_in_the_order_of_classes() -> None:
    joined = Reconstruction.join([part([5, 5, 2], 0.1), part([3], 0.2), part([2, 2], 0.9)])
    assert joined.labels.tolist() == [2, 3, 5, 5]
    assert joined.scores.tolist() == pytest.approx([0.1, 0.2, 0.1, 0.1])  # of a class that comes twice, the first
    assert joined.cost == Cost(4, 4, 6, 1.0)  # what was thrown away costs nothing
    with pytest.raises(ValueError, match="no reconstructions to join"):
        Reconstruction.join([])


def test_a_process_alone_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(PartialState, "_shared_state", {})  # as in a new process
    state = process_state()
    assert (state.num_processes, state.device.type) == (1, "cpu")


def test_wide_draws_are_made_few_at_a_time_and_are_the_same_numbers() -> None:
    made = RowDraws(1, "tests/wide", [(2, 3)], 20_000, True, torch.zeros(0, dtype=torch.float64))
    expected = named_rng(1, "tests/wide", 2, 3).standard_normal((3, 20_000))
    for draw in range(3):
        assert made.next().tolist() == [expected[draw].tolist()]
    assert made._block.numel() == 20_000
