"""``python -m examples.paper NAME``: one of the paper's analyses, or a command around them."""

import difflib
import importlib
import sys
from collections.abc import Sequence

from calor_hf.cli.main import main as calor_hf
from calor_hf.core.stop_request import sigterm_as_ctrl_c
from calor_hf.recipes.common import log_to_terminal
from examples.paper.commands import study
from examples.paper.studies import STUDIES

PROGRAM = "python -m examples.paper"
COMMANDS = {
    "prepare": "crop and resize an image set of the paper",
    "import-backbone": "convert a face.evoLVe backbone to a base model",
    "settings": "print or run the commands of one of the paper's settings",
    "calor-hf": "run a calor-hf command that can load the paper's face networks",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study or a command.

    Args:
        argv: Arguments after ``python -m examples.paper``. Defaults to those of the process.

    Returns:
        0; 1 if a training failed, or values are not finite; 2 for options, files or data that are
        refused, or a missing library; 130 after Ctrl-C or SIGTERM.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = argv
    if name == "calor-hf":  # it handles its own errors
        return calor_hf(rest)
    if name not in (*COMMANDS, *STUDIES.names()):
        known = [*STUDIES.names(), *COMMANDS]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        print(f"{PROGRAM}: unknown study or command '{name}'.{hint} Known: {', '.join(known)}", file=sys.stderr)
        return 2
    try:
        with sigterm_as_ctrl_c():
            log_to_terminal()
            if name not in COMMANDS:
                return study.run(name, rest)
            status: int = importlib.import_module(f"examples.paper.commands.{name.replace('-', '_')}").run(rest)
            return status
    except KeyboardInterrupt:
        again = "" if name in COMMANDS else " and --resume"
        print(f"\nStopped. Continue with the same command{again}.", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"{PROGRAM} {name}: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        print(f"{PROGRAM} {name}: {error}", file=sys.stderr)
        return 2


def _help() -> str:
    return "\n".join(
        [
            f"usage: {PROGRAM} NAME [options]; NAME --help explains the options",
            "\nstudies, each with what the paper claims:",
            *(f"  {name:<20} {STUDIES.get(name).claim}" for name in STUDIES.names()),
            "\ncommands:",
            *(f"  {name:<20} {text}" for name, text in COMMANDS.items()),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
