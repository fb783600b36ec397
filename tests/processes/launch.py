"""Stands for a launcher, or for a process that `torchrun` starts: hands ``-m calor_hf.cli.NAME WORDS`` to the server.

And waits for it, passes SIGTERM on, and ends as it did.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

LAUNCHER = f"{sys.executable} {__file__}"
SOCKET = "CALOR_HF_TEST_SERVER"
PASSED_ON = ("CALOR_HF_TEST_MOMENTS", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_")


def ask(
    address: str,
    words: list[str],
    environment: dict[str, str],
    files: tuple[int, int],
    cwd: str,
    group: int | None = None,
    on_start: Callable[[int], None] | None = None,
) -> int:
    """Run a command in the server, with these files for its output; its status.

    Args:
        address: Address of the server.
        words: The command.
        environment: Variables in addition to the server's.
        files: For standard output and error.
        cwd: Where.
        group: Its process group, 0 for one of its own, of a command whose launcher this process stands for.
        on_start: Is told its process.
    """
    request = {"words": words, "environment": environment, "cwd": cwd, "group": group or 0}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], files)
        with connection.makefile() as lines:
            child = int(lines.readline())

            def forward(number: int, frame: FrameType | None) -> None:
                os.kill(child, number)

            if on_start is not None:
                on_start(child)
            if group is not None:  # a launcher leaves Ctrl-C in a terminal, which reaches all, to what it launched
                signal.signal(signal.SIGTERM, forward)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            return int(lines.readline())


if __name__ == "__main__":
    given = sys.argv[sys.argv.index("-m") + 1 :]
    given[0] = given[0].rpartition(".")[2]
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    own_session = "RANK" in os.environ  # no one may join a group in another session
    result = ask(os.environ[SOCKET], given, passed, (1, 2), os.getcwd(), 0 if own_session else os.getpgrp())
    if result < 0:
        os.kill(os.getpid(), -result)
    sys.exit(result)
