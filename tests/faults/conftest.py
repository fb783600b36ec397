"""The world, the Hub and the server that the tests of faults share."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.server import Done, Server
from tests.faults.world import WORKS, differences, make_world, result
from tests.hub.local_hub import LocalHub


@dataclass
class Field:
    """Where commands are run: each in a folder of its own, and once undisturbed.

    Attributes:
        folder: Of everything.
        world: Of the inputs.
        server: Runs the commands.
        hub: What they publish to.
        undisturbed: What an undisturbed run was and left, by kind of work.
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
            assert done.status == 0, done.shown[-3000:]
            self.undisturbed[kind] = (done, result(room))
        return self.undisturbed[kind]

    def goes_on(self, kind: str, room: Path) -> Done:
        """What the user types after trouble; it ends well, and what it leaves is what the undisturbed run left."""
        done = self.run(kind, room, "--resume")
        assert done.status == 0, (room, done.shown[-3000:])
        assert differences(result(room), self.whole(kind)[1]) == [], room
        return done


@pytest.fixture(scope="session")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    folder = tmp_path_factory.mktemp("faults")
    world = make_world(folder / "world")
    with LocalHub() as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_owner"}
        with Server(folder, **environment) as server:
            yield Field(folder, world, server, hub, {})
