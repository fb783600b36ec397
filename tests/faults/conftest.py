"""The world, the Hub and the server that the tests of faults share."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import WORKS, differences, make_world, result
from tests.hub.local_hub import LocalHub
from tests.processes.server import Done, Server

SEED = 10


@dataclass
class Field:
    """Where commands are run: each in a folder of its own, and once undisturbed.

    Attributes:
        folder: Folder of everything.
        world: Folder of the inputs.
        server: Runs the commands.
        hub: Hub that they publish to.
        undisturbed: Undisturbed runs and their files, by kind of work.
    """

    folder: Path
    world: Path
    server: Server
    hub: LocalHub
    undisturbed: dict[str, tuple[Done, dict[str, Any]]]

    def room(self, name: str) -> Path:
        """A new folder."""
        place = self.folder / f"{len(list(self.folder.iterdir())):04d} {name}"
        place.mkdir()
        return place

    def run(self, kind: str, room: Path, *more: str, **trouble: Any) -> Done:
        """The command of a kind of work in a folder."""
        return self.server.run([*WORKS[kind].given(self.world), *more], room, **trouble)

    def whole(self, kind: str) -> tuple[Done, dict[str, Any]]:
        """The undisturbed run, made when it is first asked for."""
        if kind not in self.undisturbed:
            room = self.room(f"{kind} undisturbed")
            done = self.run(kind, room)
            assert done.status == WORKS[kind].status, done.shown[-3000:]
            self.undisturbed[kind] = (done, result(room))
        return self.undisturbed[kind]

    def moments(self, kind: str, count: int) -> list[tuple[int, bool]]:
        """Some of a kind of work, and whether what is being written then is cut in half."""
        draw = random.Random(f"{SEED} {kind}")
        last = self.whole(kind)[0].moments
        return [(draw.randint(1, last), draw.random() < 0.5) for _ in range(count)]

    def many_times(self, trouble: str, kind: str, count: int, trial: Callable[[int, bool], None]) -> None:
        """Try each of :meth:`moments`, say how often all went well, and fail if that was not always."""
        wrong = []
        for moment, torn in self.moments(kind, count):
            try:
                trial(moment, torn)
            except AssertionError as error:
                wrong.append(f"{moment}{' torn' * torn}: {error}")
        print(f"{kind}, {trouble}: {count} times, {count - len(wrong)} times with an equal result")  # noqa: T201
        assert wrong == []

    def goes_on(self, kind: str, room: Path, but: str = "nothing") -> Done:
        """Type what the user types after trouble; it ends well, and what it leaves is what the undisturbed run left.

        Args:
            kind: Kind of work.
            room: Where it was.
            but: Expression for what may differ.
        """
        done = self.run(kind, room, "--resume")
        assert done.status == WORKS[kind].status, (room, done.shown[-3000:])
        found = differences(result(room), self.whole(kind)[1])
        assert [line for line in found if not re.search(but, line)] == [], room
        return done


@pytest.fixture(scope="session")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    folder = tmp_path_factory.mktemp("faults")
    world = make_world(folder / "world")
    with LocalHub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_owner"}
        with Server(folder, **environment) as server:
            yield Field(folder, world, server, hub, {})
