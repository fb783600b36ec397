"""Commands: reading their options, running them, and their exit status."""

import platform
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from calor_hf._version import __version__
from calor_hf.cli._options import parser_for, read_options
from calor_hf.core.finishing import FinishingError
from calor_hf.core.own_errors import TRACEBACK, message_of
from calor_hf.core.stop_request import sigterm_as_ctrl_c

GO_ON = "Go on with the same command and --resume."
FAULT = 70  # exit status of a fault of the program, as in sysexits.h
STATUSES: dict[type[Exception], int] = {
    FloatingPointError: 1, ValueError: 2, OSError: 2, ImportError: 2, MemoryError: 2, FinishingError: 3,
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A sub-command of `calor-hf` around a recipe; its module calls :meth:`main`.

    Attributes:
        name: Name of the command, as after ``calor-hf``.
        description: Text at the top of ``--help``.
        options: Dataclass of its options, see :func:`~calor_hf.cli._options.parser_for`.
        run: Recipe, called with an instance of ``options``.
        stopped: Sentence shown after Ctrl-C.
        statuses: Exit statuses of errors in addition to :data:`STATUSES`.
        status: Exit status for the recipe's result; None means 0.
    """

    name: str
    description: str
    options: type[Any]
    run: Callable[[Any], object]
    stopped: str = "Nothing was written."
    statuses: Mapping[type[Exception], int] = field(default_factory=dict)
    status: Callable[[Any], int] | None = None

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command (``argv`` defaults to that of the process); returns as :func:`run_command`."""
        parser = parser_for(self.options, self.name, self.description)

        def call(words: list[str]) -> object:
            return self.run(read_options(self.options, parser, words))

        return run_command(self.name, call, argv, self.stopped, self.statuses, self.status)


def run_command(
    name: str, call: Callable[[list[str]], object], argv: Sequence[str] | None = None,
    stopped: str = "Nothing was written.", statuses: Mapping[type[Exception], int] | None = None,
    status: Callable[[Any], int] | None = None,
) -> int:  # fmt: skip
    """Run a command, and print a short text if it ends early; ``--traceback`` in ``argv`` adds the traceback.

    Args:
        name: Name of the command, as after ``calor-hf``.
        call: The work, called with the arguments.
        argv: Arguments after the name; defaults to those of the process.
        stopped: Sentence shown after Ctrl-C, usually on how to continue.
        statuses: Exit statuses of errors in addition to :data:`STATUSES`.
        status: Exit status for the result of ``call``; None means 0.

    Returns:
        0, or what ``status`` says; 1 if numbers are not finite; 2 for options or data that are refused, a missing
        library or too little memory; 3 if the work is done and saved, but something after it failed; 70 for a fault of
        the program, whose text says how to report it; 130 after Ctrl-C or SIGTERM; the value of ``statuses`` for other
        errors.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    words = [word for word in argv if word != TRACEBACK]
    try:
        with sigterm_as_ctrl_c():
            result = call(words)
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'Stopped.'}\n{stopped}", file=sys.stderr)
        return 130
    except Exception as error:
        if words != argv:
            traceback.print_exc()
        message = message_of(error)
        if message is None:
            print(_bug_report(name, words, error), file=sys.stderr)
            return FAULT
        print(f"calor-hf {name}: {message}", file=sys.stderr)
        known = {**(statuses or {}), **STATUSES}
        return next((status for kind, status in known.items() if isinstance(error, kind)), 2)
    return 0 if status is None else status(result)


def _bug_report(name: str, words: Sequence[str], error: Exception) -> str:
    """Message about a bug, with the content of a bug report; the Hub token is masked."""
    shown = re.sub(r"(--hub[-_]token[ =])\S+", r"\1...", shlex.join(["calor-hf", name, *words]))
    last = traceback.format_exception_only(error)[-1].strip()
    versions = ", ".join(f"{one} {version(one)}" for one in ("transformers", "torch"))
    return f"""calor-hf {name}: stopped by a fault in calor_hf or in a library that it uses:
  {last}
Please report it where you found calor_hf, with this text and the output of the same command with {TRACEBACK}:
  {shown}
  calor_hf {__version__}, {versions}, Python {platform.python_version()}, {platform.platform()}"""
