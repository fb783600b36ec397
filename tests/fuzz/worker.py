"""Damages and reads files in a process of its own, whose memory is bounded and whose doings are watched.

``python -m tests.fuzz.worker FOLDER CASES [SEED] [KIND ...]`` appends a JSON line for every kind and every failure to
``FOLDER/results.jsonl``. Before each case its name is in ``FOLDER/case``: if the process dies, that one killed it.
"""

import contextlib
import faulthandler
import io
import json
import os
import pickle
import random
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

from tests.fuzz.readers import READERS, Reader

SECONDS = 20
"""A case that takes longer is a hang."""
ROOM = 3 * 2**30
"""Address space in addition to what the process has when it begins."""
GROWTH = 384 * 2**20
"""Memory that a case may add to the highest use so far."""
CLEAR = (ValueError, OSError)
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen",
        "socket.connect",
         "pickle.find_class", "ctypes.dlopen", "webbrowser.open")  # fmt: skip


class AttackCallback:
    """Hears of every file that is opened and everything that is run, from the interpreter itself."""

    def __init__(self, folder: Path) -> None:
        self.home = os.path.realpath(folder)
        own = (sys.prefix, sys.base_prefix, os.path.dirname(torch.__file__), os.getcwd(), "/proc", "/sys", "/dev")
        self.readable = tuple(os.path.realpath(path) + os.sep for path in (*own, self.home))
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _RUNS:
            self.seen.append(f"{event} {str(args)[:200]}")
        elif event == "import" and str(args[0]).startswith("evil"):
            self.seen.append(f"import {args[0]}")
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not (path + os.sep).startswith((self.home + os.sep,) if writes else self.readable):
                self.seen.append(f"open {path}{' to write' if writes else ''}")


def tried(callback: AttackCallback, folder: Path) -> list[str]:
    """Forbidden actions of readers, as the watch sees them."""
    callback.on = True
    os.system("true")
    pickle.loads(pickle.dumps(PurePosixPath("x")))
    (folder / "inside").write_text("")
    (folder.parent / "outside").write_text("")
    Path("/etc/hosts").read_text()
    callback.on = False
    return callback.seen


def main(argv: list[str]) -> None:
    folder, cases = Path(argv[0]), int(argv[1])
    seed, kinds = int(argv[2]) if len(argv) > 2 else 0, argv[3:] or list(READERS)
    transformers.utils.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    made = {}
    for number, kind in enumerate(kinds):
        room = folder / str(number) / "inner"  # a level below, so that ../../ leads somewhere
        room.parent.mkdir(parents=True, exist_ok=True)
        file = READERS[kind].make(room / "files" if room.exists() else room)
        made[kind] = file
        if kind != "picture":
            READERS[kind].read(file)  # the valid one, which also imports what reading needs
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    callback = AttackCallback(folder)
    with (folder / "results.jsonl").open("a") as results:
        results.write(json.dumps({"watch": tried(callback, folder)}) + "\n")
    for number, kind in enumerate(kinds):
        with (folder / "results.jsonl").open("a") as results:
            one_kind(number, kind, READERS[kind], made[kind], cases, seed, callback, folder, results)


def one_kind(
    number: int,
    kind: str,
    reader: Reader,
    file: Path,
    cases: int,
    seed: int,
    callback: AttackCallback,
    folder: Path,
    results: Any,
) -> None:
    valid, begin, counts = file.read_bytes(), time.perf_counter(), {"read": 0, "refused": 0}
    for case in range(cases):
        (folder / "case").write_text(f"{kind} {case}")
        rng = random.Random(f"{seed} {kind} {case}")
        file.write_bytes(reader.damage(rng, valid))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        callback.seen, callback.on = [], True
        problem, trace = "", ""
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                reader.read(file)
            counts["read"] += 1
        except CLEAR as error:
            counts["refused"] += 1
            if isinstance(error, UnicodeError) or not str(error).strip():
                problem = f"{type(error).__name__}: {error}"
        except BaseException as error:
            problem = f"{type(error).__name__}: {str(error)[:300]}"
            trace = "".join(traceback.format_exception(error)[-4:])[-1500:]
        callback.on = False
        faulthandler.cancel_dump_traceback_later()
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
        if grown > GROWTH:
            problem += f" took {grown / 2**20:.0f} MiB"
        if callback.seen:
            problem += f" did {'; '.join(callback.seen[:3])}"
        if (file.parent / "canary").exists():
            problem += " ran the code in the file"
        if problem:
            (folder / f"failure-{number}-{case}").write_bytes(file.read_bytes())
            results.write(json.dumps({"kind": kind, "case": case, "problem": problem, "trace": trace}) + "\n")
            results.flush()
    file.write_bytes(valid)
    results.write(json.dumps({"kind": kind, "cases": cases, **counts, "seconds": time.perf_counter() - begin}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
