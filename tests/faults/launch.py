"""Stands for a launcher such as `accelerate launch`: hands ``-m calor_hf.cli.NAME WORDS`` to the server, and waits."""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

SOCKET = "CALOR_HF_TEST_SERVER"


def ask(
    address: str,
    words: list[str],
    environment: dict[str, str],
    files: tuple[int, int],
    cwd: str,
    group: int = 0,
    on_start: Callable[[int], None] | None = None,
) -> int:
    """Run a command in the server, with these files for its output; its status. SIGTERM is passed on."""
    request = {"words": words, "environment": environment, "cwd": cwd, "group": group}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], files)
        with connection.makefile() as lines:
            child = int(lines.readline())

            def forward(number: int, frame: FrameType | None) -> None:
                os.kill(child, number)

            if on_start is not None:
                on_start(child)
            if group:  # a launcher leaves Ctrl-C in a terminal, which reaches all, to what it launched
                signal.signal(signal.SIGTERM, forward)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            return int(lines.readline())


if __name__ == "__main__":
    given = sys.argv[sys.argv.index("-m") + 1 :]
    given[0] = given[0].rpartition(".")[2]
    moments = {name: value for name, value in os.environ.items() if name == "CALOR_HF_TEST_MOMENTS"}
    result = ask(os.environ[SOCKET], given, moments, (1, 2), os.getcwd(), os.getpgrp())
    if result < 0:
        os.kill(os.getpid(), -result)
    sys.exit(result)
