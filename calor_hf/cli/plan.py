"""`calor-hf plan`: what a run will take, measured on a few of its steps before it starts."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

YOUNG = 30.0  # seconds; an older process has done other things than start
PLANNERS = {"train": "_plan_train.plan_training", "audit": "_plan_audit.plan_audit"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 when scores or a loss are not finite; 2 for options or data that are refused; 130 after Ctrl-C.
    """
    options = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        _run(options)
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"calor-hf plan: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, MemoryError) as error:
        print(f"calor-hf plan: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf plan",
        allow_abbrev=False,
        description="Say what a run will take (time, memory, passes, disk) before it starts: the run's own parts are"
        " built, a few steps are measured on a copy, and the rest is multiplied. Nothing is kept. Put the options of"
        " the plan itself before the command: calor-hf plan --processes 8 train --model ...",
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="as if N devices like this one shared the"
                        " run, without a cost of their own; default: 1")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there, too")
    parser.add_argument("command", choices=tuple(PLANNERS), help="the command that is planned")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="its options, as you will type them")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.processes < 1:
        raise ValueError(f"--processes must be >= 1, got {options.processes}")
    if options.json is not None and options.json.exists():
        raise FileExistsError(f"{options.json} is there already; pass another --json")
    begin, age = time.perf_counter(), time.time() - psutil.Process().create_time()
    module, name = PLANNERS[options.command].split(".")
    # Imported here, for the run imports the same, and that is counted; so is the start of this process, if it has done
    # nothing else.
    planner: Any = getattr(importlib.import_module(f"calor_hf.cli.{module}"), name)
    from transformers.utils.logging import disable_progress_bar

    from calor_hf.recipes.plan import Part

    disable_progress_bar()

    started = Part("starting", time.perf_counter() - begin + (age if 0 < age < YOUNG else 0.0))
    plan = planner(options.options, options.processes)
    plan = replace(plan, parts=[started, *plan.parts])
    print(plan.table())
    print(f"- measured in {time.perf_counter() - begin:.0f} s on this machine, as busy as it is now")
    if options.json is not None:
        from calor_hf.core.files import write_json

        write_json(options.json, plan.to_dict(), indent=2)


if __name__ == "__main__":
    sys.exit(main())
