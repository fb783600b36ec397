"""A full disk, a folder that is not writable, a clock that is set, requests to stop, and a process of two that dies.

The short version is a moment of each; the slow one some of every kind of work: ``pytest tests/faults -m slow -rP``.
"""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Field
from tests.faults.test_killed import empty_hub, push, pushed
from tests.faults.world import WORKS, differences, result
from tests.processes.moments import DAY, refusal
from tests.processes.server import REPOSITORY, Done, wait_for

MANY = 10
KINDS = [kind for kind in WORKS if kind != "fixed"]  # which is a comparison without tuning
REMEDY = "make room, or allow writing there, and resume"
# Stopped within an epoch, a training has a checkpoint there, and logs the means over the rest of it; stopped at its
# end, the checkpoint there says so.
STOPPED = (
    r"/trainer_state\.json/log_history/\d+/(loss|accuracy|confidence|confidence_adaptation|cross_entropy):"
    r"|/checkpoint-\d+/.* is in one of them only|/TrainerControl/args/should_training_stop:"
)
WRONG_TIME = re.compile(r"(?<![\w.])-\d[\d.,]* ?(s|min|minutes|hours|days?|it/s)\b|[\[<]-\d|\b\d\d:\d\d:\d\d")


def last_line(done: Done) -> str:
    return [line for line in done.shown.splitlines() if line.strip()][-1]


def disk_full(field: Field, kind: str, moment: int) -> None:
    """One line says where and what to do; with room again, nothing finished is done twice."""
    room = field.room(f"{kind}, disk full at {moment}")
    done = field.run(kind, room, at=moment, refused=errno.ENOSPC)
    if done.status == WORKS[kind].status:  # nothing was written from there on
        assert differences(result(room), field.whole(kind)[1]) == [], room
        return
    assert done.status == 2, (room, done.shown[-3000:])
    assert "Traceback" not in done.shown, (room, done.shown[-3000:])
    said = last_line(done)
    assert re.match(rf"calor-hf {WORKS[kind].words.split()[0]}: .*\bout\b", said), (room, said)
    assert REMEDY in said or "pass another one" in said, (room, said)
    again = done.steps + field.goes_on(kind, room).steps - field.whole(kind)[0].steps
    assert 0 <= again <= WORKS[kind].unit, (room, again)


def clock_set(seconds: float) -> Callable[[Field, str, int], None]:
    def trial(field: Field, kind: str, moment: int) -> None:
        """Nothing comes of it."""
        room = field.room(f"{kind}, clock set by {seconds} at {moment}")
        done = field.run(kind, room, at=moment, clock=seconds)
        assert done.status == WORKS[kind].status, (room, done.shown[-3000:])
        assert differences(result(room), field.whole(kind)[1]) == [], room
        assert WRONG_TIME.search(done.shown) is None, (room, WRONG_TIME.search(done.shown))
        assert wrong_times(room) == [], room

    return trial


def wrong_times(room: Path) -> list[str]:
    """Times in what was written that are below zero, or a day; not in what the Trainer of transformers keeps."""
    return [
        f"{path.relative_to(room)}{place}: {value}"
        for path in room.rglob("*.json")
        if path.name != "trainer_state.json"
        for place, value in times(json.loads(path.read_text()))
        if not 0 <= value < DAY / 2
    ]


def times(value: Any, place: str = "") -> list[tuple[str, float]]:
    if not isinstance(value, dict | list):
        timed = isinstance(value, int | float) and re.search("seconds?$|runtime$", place)
        return [(place, value)] if timed else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [found for name, one in pairs for found in times(one, f"{place}/{name}")]


def asked_to_stop(number: int, receiver: str) -> Callable[[Field, str, int], None]:
    def trial(field: Field, kind: str, moment: int) -> None:
        """It saves, says how to go on, and goes on where it was."""
        room = field.room(f"{kind}, {signal.Signals(number).name} at {moment}")
        done = field.run(kind, room, at=moment, number=number, receiver=receiver)
        assert done.status == 130, (room, done.shown[-3000:])
        assert "Traceback" not in done.shown, (room, done.shown[-3000:])
        assert "the same command and --resume" in done.shown or "the same command with --resume" in done.shown, room
        again = done.steps + field.goes_on(kind, room, STOPPED).steps - field.whole(kind)[0].steps
        assert 0 <= again <= WORKS[kind].unit, (room, again)

    return trial


TROUBLES: dict[str, Callable[[Field, str, int], None]] = {
    "disk full": disk_full,
    "clock put on a day": clock_set(DAY),
    "clock put back a day": clock_set(-DAY),
    "SIGINT": asked_to_stop(signal.SIGINT, "all"),  # as a terminal does
    "SIGTERM": asked_to_stop(signal.SIGTERM, "first"),
}
# Each at a share of its run: while the head has no checkpoint yet, in the first save of a prior, and halfway.
SHORT = [
    ("disk full", "training", 0.3), ("disk full", "prior", 0.15), ("clock put back a day", "prior", 0.5),
    ("SIGINT", "audit", 0.5), ("SIGTERM", "training", 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("trouble", "kind", "share"), SHORT)
def test_trouble_once(trouble: str, kind: str, share: float, field: Field) -> None:
    TROUBLES[trouble](field, kind, round(share * field.whole(kind)[0].moments))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("kind", KINDS)
def test_trouble_many_times(trouble: str, kind: str, field: Field) -> None:
    field.many_times(trouble, kind, MANY, lambda moment, _: TROUBLES[trouble](field, kind, moment))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_not_to_be_written_to_is_refused_before_work(kind: str, field: Field) -> None:
    """No one's permissions stop root, so it is a file, and then a file system that refuses."""
    room = field.room(f"{kind} into a file")
    (room / "out").write_text("mine")
    into_a_file = field.run(kind, room)
    assert (room / "out").read_text() == "mine"
    read_only = field.run(kind, field.room(f"{kind}, read only"), at=1, refused=errno.EROFS)
    for done, reason in ((into_a_file, "File exists|Not a directory"), (read_only, "Read-only file system")):
        assert (done.status, done.steps) == (2, 0), done.shown[-3000:]
        said = rf"cannot write to the output folder \(({reason})\); pass another one: 'out"
        assert re.search(said, last_line(done)), done.shown[-3000:]
        assert "Traceback" not in done.shown


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_push_that_is_asked_to_stop_many_times(number: int, field: Field) -> None:
    empty_hub(field)
    _, _, requests = push(field)
    whole = pushed(field)
    for at in range(1, requests + 1):
        for before in (True, False):
            empty_hub(field)
            status, shown, _ = push(field, at, before, number)
            assert status == 130 or (status, at, before) == (0, requests, False), shown
            assert push(field)[0] == 0
            assert pushed(field) == whole
    print(f"push, {signal.Signals(number).name}: {2 * requests} times, each time whole in the end")  # noqa: T201


FULL_DISK = """
import sys, torch
from safetensors.torch import save_file
from calor_hf.core.files import NotSavedError, saving

for save in (save_file, torch.save):
    try:
        with saving("here"):
            save({"weights": torch.zeros(1 << 20)}, sys.argv[1])
    except NotSavedError as error:
        print(error)
"""


@pytest.mark.slow
def test_what_libraries_say(tmp_path: Path) -> None:
    """A disk that is really full, or read-only: what is raised there is known, and is what the tests here raise."""
    script, disk = tmp_path / "script.py", tmp_path / "disk"
    script.write_text(FULL_DISK)
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k tmpfs {disk}"
    allowed = (
        shutil.which("unshare")
        and not subprocess.run(["unshare", "-r", "-m", "sh", "-c", mount], check=False).returncode
    )
    if not allowed:
        pytest.skip("this machine lets no one mount a disk")
    save = f"{sys.executable} {script} {disk}/file"
    words = ["unshare", "-r", "-m", "sh", "-ec", f"{mount}; {save}; rm -f {disk}/*; mount -o remount,ro {disk}; {save}"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    expected = [
        refusal(module, number)
        for number in (errno.ENOSPC, errno.EROFS)
        for module in ("safetensors.torch", "torch.serialization")
    ]
    assert len(lines) == len(expected), done
    for line, error in zip(lines, expected, strict=True):
        assert line.startswith("cannot write here (")
        assert re.sub(r"\d+", "N", str(error)) in re.sub(r"\d+", "N", line)


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def in_two(field: Field, kind: str, room: Path, *more: str, **trouble: Any) -> Done:
    return field.server.launch(TORCHRUN, [*WORKS[kind].given(field.world), *more], room, **trouble)


# State that a killed process had not saved of its random state is drawn anew.
IN_TWO = r"/rng_state_1\.pth is in one of them only"


def one_dies(field: Field, kind: str, moment: int) -> dict[str, Any]:
    """Its launch ends with an error within a minute, no one is left, and it goes on in two; what is there then."""
    room = field.room(f"{kind}, one of two dies at {moment}")
    done = in_two(field, kind, room, at=moment, number=signal.SIGKILL, receiver="me")
    assert done.status > 0, (room, done.shown[-3000:])
    assert "Signal 9 (SIGKILL)" in done.shown, (room, done.shown[-3000:])
    assert done.seconds < 60, room
    wait_for(lambda: not field.server.busy)
    done = in_two(field, kind, room, "--resume")
    assert done.status == 0, (room, done.shown[-3000:])
    return result(room)


def test_a_process_that_dies_ends_the_launch(field: Field) -> None:
    one_dies(field, "prior", field.whole("prior")[0].moments // 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["training", "prior", "audit"])
def test_a_process_that_dies_many_times(kind: str, field: Field) -> None:
    room = field.room(f"{kind} undisturbed, in two processes")
    done = in_two(field, kind, room)
    assert done.status == 0, done.shown[-3000:]
    whole = result(room)

    def trial(moment: int, _: bool) -> None:
        found = differences(one_dies(field, kind, moment), whole)
        assert [line for line in found if not re.search(IN_TWO, line)] == []

    field.many_times("one of two processes dies", kind, MANY, trial)
