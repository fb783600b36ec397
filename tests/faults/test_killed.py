"""kill -9 at random moments of every kind of long work, and what the user types then: nothing finished is lost.

The short version kills each kind once; the slow one thirty times: ``pytest tests/faults -m slow -rP``.
"""

import os
import random
import signal
from typing import Any

import pytest

from tests.faults.conftest import SEED, Field
from tests.faults.world import WORKS
from tests.hub.local_hub import Handler
from tests.processes.server import wait_for

MANY = 30
SHORT = ("training", "prior", "audit")


def killed_at(field: Field, kind: str, moment: int, torn: bool, receiver: str = "all") -> None:
    """Kill a run at a moment, go on, and see that no more than the work since the last save was done twice."""
    whole, _ = field.whole(kind)
    room = field.room(f"{kind} killed at {moment} of {whole.moments}{' torn' * torn}, {receiver}")
    killed = field.run(kind, room, at=moment, torn=torn, number=signal.SIGKILL, receiver=receiver)
    assert killed.status == -signal.SIGKILL, killed.shown[-3000:]
    resumed = field.goes_on(kind, room)
    again = killed.steps + resumed.steps - whole.steps
    assert 0 <= again <= WORKS[kind].unit, (room, killed, resumed)


@pytest.mark.parametrize("kind", SHORT)
def test_killed_once(kind: str, field: Field) -> None:
    for moment, torn in field.moments(kind, 1):
        killed_at(field, kind, moment, torn)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", WORKS)
def test_killed_many_times(kind: str, field: Field) -> None:
    field.many_times("killed", kind, MANY, lambda moment, torn: killed_at(field, kind, moment, torn))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_moment_of_a_prior(field: Field) -> None:
    """Where a command is quick, each of its moments can be tried."""
    for moment in range(1, field.whole("prior")[0].moments + 1):
        for torn in (False, True):
            killed_at(field, "prior", moment, torn)


@pytest.mark.slow
def test_a_training_stops_when_its_comparison_is_killed(field: Field) -> None:
    room = field.room("comparison killed alone")
    moment = field.whole("comparison")[0].moments // 3
    killed = field.run("comparison", room, at=moment, number=signal.SIGKILL, receiver="first")
    assert killed.status == -signal.SIGKILL
    (log,) = (room / "out" / "runs").glob("*.log")
    wait_for(lambda: "Go on with the same command and --resume." in log.read_text())
    field.goes_on("comparison", room)


class Killing:
    """A Hub at whose request number ``at`` the client gets a signal: before it is done, or after."""

    def __init__(self, field: Field, at: int = 0, before: bool = True, number: int = signal.SIGKILL) -> None:
        self.field, self.at, self.before, self.number = field, at, before, number
        self.count, self.process = 0, 0
        self.kind: Any = field.hub.server.RequestHandlerClass

    def __enter__(self) -> "Killing":
        killing = self

        def answer(handler: Handler) -> None:
            killing.count += 1
            if killing.count == killing.at:
                os.kill(killing.process, killing.number)
                handler.close_connection = True
                if killing.before:
                    handler.connection.close()
                    return
            try:
                Handler.answer(handler)
            except (BrokenPipeError, ConnectionResetError):
                handler.close_connection = True

        self.kind.answer = answer
        return self

    def __exit__(self, *_: object) -> None:
        del self.kind.answer

    def started(self, process: int) -> None:
        self.process = process


def pushed(field: Field) -> dict[str, bytes]:
    names = field.hub.every_file("me/pushed")["main"][-1]
    return {name: field.hub.read("me/pushed", name) for name in names}


def push(field: Field, at: int = 0, before: bool = True, number: int = signal.SIGKILL) -> tuple[int, str, int]:
    """Status, what was shown, and how many requests there were."""
    words = ["push", str(field.world / "model"), "me/pushed", "--license", "mit"]
    with Killing(field, at, before, number) as hub:
        done = field.server.run(words, field.room("push"), on_start=hub.started)
    return done.status, done.shown, hub.count


def empty_hub(field: Field) -> None:
    field.hub.repos.pop("me/pushed", None)
    for blob in field.hub.blobs.iterdir():
        blob.unlink()
    field.hub.requests.clear()


def uploads(field: Field) -> int:
    return sum(line.startswith("PUT") for line in field.hub.requests)


def push_killed(field: Field, count: int) -> int:
    """How often it came to a good end after a kill."""
    empty_hub(field)
    status, shown, requests = push(field)
    assert status == 0, shown
    whole, sent = pushed(field), uploads(field)
    draw = random.Random(f"{SEED} push")
    for _ in range(count):
        empty_hub(field)
        at, before = draw.randint(1, requests), draw.random() < 0.5
        assert push(field, at, before)[0] == -signal.SIGKILL
        status, shown, _ = push(field)
        assert status == 0, (at, before, shown)
        assert pushed(field) == whole
        made = field.hub.every_file("me/pushed")["main"]
        assert {len(names) for names in made} == {1, len(whole)}, (at, before)  # never half a model
        assert uploads(field) <= sent + 1, (at, before)
    return count


def test_a_push_killed_twice(field: Field) -> None:
    push_killed(field, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_push_killed_many_times(field: Field) -> None:
    print(f"push: killed {push_killed(field, MANY)} times, each time whole in the end")  # noqa: T201


def test_a_push_that_is_asked_to_stop(field: Field) -> None:
    empty_hub(field)
    requests = push(field)[2]
    whole = pushed(field)
    empty_hub(field)
    status, shown, _ = push(field, requests - 1, True, signal.SIGTERM)
    assert status == 130, shown
    assert "the same command again goes on" in shown
    assert push(field)[0] == 0
    assert pushed(field) == whole
