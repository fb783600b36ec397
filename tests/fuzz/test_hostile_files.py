"""Files of strangers, damaged in thousands of ways: read, or refused in clear words; nothing else happens.

Each case ends with an object, or with a ``ValueError`` or ``OSError``. A worker process watches over the rest
(:mod:`tests.fuzz.worker`): no case takes longer than 20 seconds or much memory, opens a file elsewhere, or runs
anything.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.readers import READERS

SHORT, LONG = 2, 400  # cases of a kind; the long run has more than 10,000


def run_worker(folder: Path, cases: int, seed: int) -> list[dict[str, Any]]:
    """Results and failures of all kinds; a worker that dies is one, and the next goes on with the other kinds."""
    kinds, found = list(READERS), list[dict[str, Any]]()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    for attempt in range(len(READERS)):
        room = folder / str(attempt)
        room.mkdir()
        words = [sys.executable, "-m", "tests.fuzz.worker", str(room), str(cases), str(seed), *kinds]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        results = room / "results.jsonl"
        found += [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        if done.returncode == 0:
            return found
        died = (room / "case").read_text() if (room / "case").exists() else "before the first case"
        found.append({"kind": died, "problem": f"the process died: {done.stderr[-1500:]}"})
        finished = {one["kind"] for one in found if "cases" in one} | {died.rpartition(" ")[0]}
        kinds = [kind for kind in kinds if kind not in finished]
        if not kinds or died == "before the first case":
            return found
    return found


def check(found: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    total: Counter[str] = Counter()
    with capsys.disabled():
        for one in found:
            if "cases" in one:
                total += Counter({name: one[name] for name in ("cases", "read", "refused")})
                print(f"\n| {one['kind']} | {one['cases']} | {one['read']} | {one['refused']} |", end="")  # noqa: T201
        print(f"\n| all | {total['cases']} | {total['read']} | {total['refused']} |")  # noqa: T201
    seen = [one["watch"] for one in found if "watch" in one]
    assert seen
    assert all(
        [word.split(" ")[0] for word in one] == ["os.system", "pickle.find_class", "open", "open"] for one in seen
    )
    assert "/outside to write" in seen[0][2]
    failures = [f"{one['kind']} {one.get('case', '')}: {one['problem']}" for one in found if "problem" in one]
    assert not failures, "\n".join(failures[:20])
    assert total["cases"] == total["read"] + total["refused"]
    return total


def test_damaged_files_are_read_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = check(run_worker(tmp_path, SHORT, 0), capsys)
    assert total["read"] > 10  # not everything is refused
    assert total["refused"] > 30


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(run_worker(tmp_path, LONG, 1), capsys)["cases"] >= 10_000
