"""Commands: reading their options, running them, and their exit status."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calor_hf.cli._options import parser_for, read_options
from calor_hf.core.finishing import FinishingError
from calor_hf.core.stop_request import sigterm_as_ctrl_c

GO_ON = "Go on with the same command and --resume."
STATUSES: dict[type[Exception], int] = {
    FloatingPointError: 1, ValueError: 2, OSError: 2, ImportError: 2, MemoryError: 2, FinishingError: 3,
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A sub-command of `calor-hf` around a recipe; its module calls :meth:`main`.

    Attributes:
        name: As after ``calor-hf``.
        description: Text at the top of ``--help``.
        options: Dataclass of its options, see :func:`~calor_hf.cli._options.parser_for`.
        run: Recipe, called with an instance of ``options``.
        stopped: Sentence shown after Ctrl-C.
        statuses: Exit statuses of more errors than those of :data:`STATUSES`.
    """

    name: str
    description: str
    options: type[Any]
    run: Callable[[Any], object]
    stopped: str = "Nothing was written."
    statuses: Mapping[type[Exception], int] = field(default_factory=dict)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command (``argv`` defaults to that of the process); returns as :func:`run_command`."""
        argv = list(sys.argv[1:] if argv is None else argv)
        parser = parser_for(self.options, self.name, self.description)

        def call() -> None:
            self.run(read_options(self.options, parser, argv))

        return run_command(self.name, call, self.stopped, self.statuses)


def run_command(
    name: str, call: Callable[[], object], stopped: str, statuses: Mapping[type[Exception], int] | None = None
) -> int:
    """Run a command, and print one line if it ends early.

    Args:
        name: As after ``calor-hf``.
        call: The work.
        stopped: Sentence shown after Ctrl-C, in general how to go on.
        statuses: Exit statuses of more errors than those of :data:`STATUSES`.

    Returns:
        0; 1 if numbers are not finite; 2 for options or data that are refused, a missing library or too little memory;
        3 if the work is done and saved, but something after it failed; 130 after Ctrl-C or SIGTERM; the value of
        ``statuses`` for other errors.
    """
    known = {**(statuses or {}), **STATUSES}
    try:
        with sigterm_as_ctrl_c():
            call()
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'Stopped.'}\n{stopped}", file=sys.stderr)
        return 130
    except tuple(known) as error:
        print(f"calor-hf {name}: {error}", file=sys.stderr)
        return next(status for kind, status in known.items() if isinstance(error, kind))
    return 0
