"""Has imported everything, and runs each command in a fork of itself: ``python -m tests.processes.server``.

A command in a new process spends five seconds on imports; here it costs what it does. A command is one of calor-hf, or
``-m MODULE OPTIONS``: ``main`` of a module of the tests with options in JSON. Requests come over a socket, from
:class:`Server` in the tests and from ``launch.py``, which stands for a launcher.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes.launch import SOCKET, ask

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        status: As ``subprocess`` has it: below 0 for a signal.
        shown: Its output.
        moments: How many there were, see ``moments.py``.
        steps: Steps of optimizers.
        seconds: It lived on after a signal was sent.
    """

    status: int
    shown: str
    moments: int
    steps: int
    seconds: float = 0.0


class Server:
    """The server, for tests; a context manager."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.count = folder, 0
        self.address = str(folder / "socket")
        known = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        self.environment = known | {
            "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(REPOSITORY), SOCKET: self.address,
            "HF_HOME": str(folder / "hf"), "PYTHONUNBUFFERED": "1", **environment,
        }  # fmt: skip

    def __enter__(self) -> "Server":
        self.log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes.server", self.address],
            cwd=REPOSITORY, env=self.environment, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", (self.folder / "server.log").read_text()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def run(self, words: list[str], cwd: Path, on_start: Callable[[int], None] | None = None, **trouble: Any) -> Done:
        """Run a command, with :class:`~tests.processes.moments.Moments` as ``trouble`` says; told its process first."""
        return self._watched(
            cwd,
            trouble,
            lambda moments, file: ask(self.address, words, moments, (file, file), str(cwd), on_start=on_start),
        )

    def launch(self, launcher: list[str], words: list[str], cwd: Path, **trouble: Any) -> Done:
        """As :meth:`run`, in the processes that a launcher starts; moments are counted over all of them."""
        command = [sys.executable, "-m", *launcher, str(Path(__file__).with_name("launch.py"))]
        command += ["-m", f"calor_hf.cli.{words[0]}", *words[1:]]

        def call(moments: dict[str, str], file: int) -> int:
            environment = self.environment | moments
            return subprocess.run(command, cwd=cwd, env=environment, stdout=file, stderr=file, check=False).returncode

        return self._watched(cwd, trouble, call)

    def _watched(self, cwd: Path, trouble: dict[str, Any], call: Callable[[dict[str, str], int], int]) -> Done:
        from tests.processes.moments import COUNTER, VARIABLE

        self.count += 1
        counter, shown = self.folder / f"{self.count}.counter", self.folder / f"{self.count}.shown"
        counter.write_bytes(bytes(COUNTER.size))
        moments = {"counter": str(counter), "root": str(cwd), **trouble}
        with shown.open("wb") as file:
            status = call({VARIABLE: json.dumps(moments)}, file.fileno())
        died = counter.with_suffix(".died")
        seconds = time.time() - died.stat().st_mtime if died.exists() else 0.0
        moments_seen, steps = COUNTER.unpack(counter.read_bytes())
        return Done(status, shown.read_text(errors="replace"), moments_seen, steps, seconds)

    @property
    def busy(self) -> bool:
        """Whether a command is still running."""
        process = self.process.pid
        return bool(Path(f"/proc/{process}/task/{process}/children").read_text())

    def interrupt(self, words: list[str], cwd: Path, when: Callable[[str], bool]) -> Done:
        """Run a command, and press Ctrl-C as soon as ``when`` holds of what it has printed."""

        def press(process: int) -> None:
            wait_for(lambda: when((self.folder / f"{self.count}.shown").read_text()))
            os.killpg(process, signal.SIGINT)  # what a terminal does

        def wait(process: int) -> None:
            threading.Thread(target=press, args=(process,)).start()

        return self.run(words, cwd, on_start=wait)

    def together(self, words: list[str], processes: int = 1, cwd: Path = REPOSITORY, **environment: str) -> Done:
        """Run a command in one process, or in several that meet as torchrun's do; one that fails ends all."""
        self.count += 1
        shown = self.folder / f"{self.count}.shown"
        with socket.create_server(("127.0.0.1", 0)) as free:
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        started: list[int] = []
        failed: list[int] = []

        def one(rank: int) -> None:
            place = {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank), **meeting}
            place = {**environment, **(place if processes > 1 else {})}
            status = ask(self.address, words, place, (file.fileno(), file.fileno()), str(cwd), on_start=started.append)
            if status != 0:
                failed.append(status)
                for process in started:
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)

        with shown.open("wb") as file, ThreadPoolExecutor(processes) as pool:
            list(pool.map(one, range(processes)))
        return Done((failed or [0])[0], shown.read_text(errors="replace"), 0, 0)

    def task(self, module: str, options: dict[str, Any], processes: int = 1, **environment: str) -> Done:
        """Run ``main`` of a module with these options."""
        return self.together(["-m", module, json.dumps(options)], processes, REPOSITORY, **environment)


def serve(address: str) -> None:
    """Answer until killed, or until the test that started this is gone."""
    import matplotlib.figure  # noqa: F401
    import transformers.models.resnet.modeling_resnet
    import transformers.models.vit.modeling_vit  # noqa: F401

    import examples.paper.studies
    from calor_hf.attacks import ATTACKS
    from calor_hf.cli import audit, compare, prior, push, train  # noqa: F401
    from calor_hf.defenses import DEFENSES
    from calor_hf.metrics import METRICS

    for registry in (ATTACKS, DEFENSES, METRICS, examples.paper.studies.STUDIES):
        registry.names()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        server.settimeout(5)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        parent = os.getppid()
        while os.getppid() == parent:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
                os._exit(0)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Run one command in a fork, in a process group of its own or of the command that asks for it."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    request = json.loads(message)
    child = os.fork()
    if child == 0:
        os._exit(command(request, files))
    connection.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def command(request: dict[str, Any], files: list[int]) -> int:
    """Work of the forked process."""
    import traceback

    os.setpgid(0, request["group"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have it ignored
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    words = request["words"]
    sys.argv = ["calor-hf", *words]
    status: Any = 1
    try:
        from calor_hf.cli.main import main
        from tests.processes.moments import Moments

        Moments.begin()
        status = importlib.import_module(words[1]).main(json.loads(words[2])) if words[0] == "-m" else main(words)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status or 0)


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


if __name__ == "__main__":
    serve(sys.argv[1])
