"""Many training runs in one folder, one after the other, each in its own process, resumable."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calor_hf.core.files import check_unused, check_writable, delete, read_json, remove_parts, saving, write_json
from calor_hf.core.report_text import percent
from calor_hf.core.validation import type_error
from calor_hf.recipes.common import PREDICTIONS, check_apart
from calor_hf.recipes.train_arguments import acting, parse
from calor_hf.training.checkpoints import complete_checkpoints

FAILURE = "failure.json"
OWN_OPTIONS = ("--defense", "--seed", "--output-dir", "--resume", "--overwrite", "--push-to-hub")


# A command that gets SIGTERM when its parent dies, even by kill -9: it saves, and does not run next to a resumed one.
_FOLLOWER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(130)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes:
        numbers: Its ``metrics.json``, empty if it failed.
        error: Its last message if it failed.
        predictions: ``labels`` and ``predictions`` of the test images; empty if the run left none.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    predictions: dict[str, list[int]] = field(default_factory=dict)

    @property
    def result(self) -> dict[str, float]:
        """Metrics of the final model."""
        measured: dict[str, dict[str, float]] = self.numbers["measured"]
        return measured[next(reversed(measured))]

    @property
    def validation_accuracy(self) -> float | None:
        """In [0, 1]; None if the run failed."""
        return None if self.error else self.result["validation_accuracy"]


class Runs:
    """Runs of `calor-hf train` with common options, in sub-folders of ``folder / "runs"``.

    A finished run is read, not repeated; a stopped one goes on from its last checkpoint, and so does one that failed in
    an earlier call. Separate processes give each run its own peak memory and keep the failure of one from ending the
    others.

    Args:
        folder: Output folder.
        common: Options of ``train`` that all runs share.
        launcher: Command in front of ``program``, such as ``accelerate launch``. Defaults to this Python.
        resume: Continue the runs in ``folder``.
        overwrite: Delete the runs in ``folder`` first.
        program: Arguments that start the training program, in front of its options.

    Raises:
        ValueError: an option that these runs set themselves, or that ``train`` refuses.
        FileExistsError: ``folder`` has files, and they are neither to be resumed nor overwritten.
    """

    def __init__(
        self, folder: Path, common: Sequence[str], launcher: str = "", resume: bool = False, overwrite: bool = False,
        program: Sequence[str] = ("-m", "calor_hf.cli.train"),
    ) -> None:  # fmt: skip
        self.folder = folder
        self.common = list(common)
        self.command = [*(shlex.split(launcher) or [sys.executable]), *program]
        given = {one.partition("=")[0].replace("_", "-") for one in common}
        own = sorted(given & set(OWN_OPTIONS))
        if own:
            raise ValueError(f"{', '.join(own)}: set for each run by this command; leave out (see --help)")
        model, data, *_ = parse(self.common)  # bad options are refused before any run
        check_apart(folder, data.dataset, model.model)
        if model.defense_settings:
            raise ValueError(f"{', '.join(model.defense_settings)}: settings of one defense; leave them out")
        if resume and overwrite:
            raise ValueError("--resume continues the runs in the output folder, --overwrite deletes them; pass one")
        if overwrite:
            delete(folder / name for name in ("runs", "options.json"))
        elif not resume:
            check_unused(folder, "runs")
        check_writable(folder)
        remove_parts(folder)
        self._keep_options()
        delete(folder.glob(f"runs/*/{FAILURE}"))

    def __call__(self, name: str, options: Sequence[str], keep_checkpoints: bool = False) -> Outcome:
        """Run ``train`` with ``options`` in addition to the common ones, or read its earlier result.

        Args:
            name: Name of the sub-folder.
            options: Options of this run alone.
            keep_checkpoints: Whether checkpoints stay after the end.

        Raises:
            KeyboardInterrupt: Ctrl-C; the run has saved a checkpoint.
        """
        folder = self.folder / "runs" / name
        done = self._finished(folder)
        print(f"{name}: {'finished before' if done else ' '.join(options)}", flush=True)
        if done is None:
            done = self._run(folder, options)
        if not done.error and not keep_checkpoints:
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path)
        if done.error:
            print(f"  failed: {done.error}", flush=True)
        else:
            found = done.result
            print(
                f"  validation {percent(found['validation_accuracy'], 2)}, confidence "
                f"{found['train_confidence_correct']:.3f}, {done.numbers['train_seconds']:.0f} s",
                flush=True,
            )
        return done

    def _run(self, folder: Path, options: Sequence[str]) -> Outcome:
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        begun = "--resume" if complete_checkpoints(folder) else "--overwrite"
        words = acting([*self.common, *options])
        status = run_process([*self.command, *words, "--output-dir", str(folder), begun], log)
        if status == 130:
            raise KeyboardInterrupt
        found = self._finished(folder)
        if status == 0 and found is not None:
            return found
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        error = lines[-1] if lines else f"exit status {status}"
        if status != 1:  # 1 means that training failed; any other status is not due to the defense
            raise RuntimeError(f"{folder.name} ended with status {status}: {error} (log: {log})")
        write_json(folder / FAILURE, {"error": error})
        return Outcome(error=error)

    @staticmethod
    def _finished(folder: Path) -> Outcome | None:
        if (folder / "metrics.json").is_file():
            file = folder / PREDICTIONS
            shape = {"labels": list[int], "predictions": list[int]}
            predictions = read_json(file, shape) if file.is_file() else {}
            return Outcome(_numbers(folder / "metrics.json"), predictions=predictions)
        if (folder / FAILURE).is_file():
            said = read_json(folder / FAILURE, {"error": str})["error"]
            return Outcome(error=said or "it did not say why")
        return None

    def _keep_options(self) -> None:
        file = self.folder / "options.json"
        if file.is_file():
            before = read_json(file, list[str])
            if before != self.common:
                raise ValueError(
                    f"the runs in {self.folder} were made with the options {' '.join(before) or '(none)'}, now they "
                    f"are {' '.join(self.common) or '(none)'}; resume with the same ones, or pass another --output-dir"
                )
        write_json(file, self.common)


def _numbers(file: Path) -> dict[str, Any]:
    """Read a ``metrics.json`` and check the entries that other commands use."""
    numbers: dict[str, Any] = read_json(file, {"measured": dict[str, dict[str, float | None]], "train_seconds": float})
    last = numbers["measured"][next(reversed(numbers["measured"]))] if numbers["measured"] else {}
    if problem := type_error(last, {"validation_accuracy": float, "train_confidence_correct": float}, "the result"):
        raise ValueError(f"{file} is damaged: {problem}; delete it to train again")
    return numbers


def run_process(argv: Sequence[str], log: Path) -> int:
    """Run a command with its output appended to ``log``, and return its exit status.

    On Linux the command is asked to stop when this process dies.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the command has been asked to stop, and has ended.
    """
    if sys.platform == "linux":
        argv = [sys.executable, "-c", _FOLLOWER, str(os.getpid()), *argv]
    with saving(log):
        file = log.open("a", encoding="utf-8")
    with file:
        process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, text=True)
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)  # Ctrl-C in a terminal reached it too, and counts once
            process.wait()  # it saves its checkpoint
            raise


def mean_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, lowest and highest."""
    return sum(values) / len(values), min(values), max(values)


def with_range(shares: Sequence[float]) -> str:
    """Mean of shares, with their range if there are several, in percent."""
    mean, low, high = (percent(share, 2).removesuffix(" %") for share in mean_and_range(shares))
    return f"{mean} [{low}, {high}]" if len(shares) > 1 else mean


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
