"""`calor-hf plan`: what a run will take, measured on a few of its steps before it starts."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from transformers.utils.logging import disable_progress_bar

from calor_hf.cli._command import Command
from calor_hf.cli._options import parser_for, read_options
from calor_hf.core.config import option
from calor_hf.core.files import write_json
from calor_hf.recipes.audit import AuditRecipe
from calor_hf.recipes.plan import Part, plan_audit, plan_prior, plan_training
from calor_hf.recipes.prior import PriorOptions
from calor_hf.recipes.train_arguments import parse

DESCRIPTION = """Say what a run will take (time, memory, passes, disk) before it starts: a few steps are measured, the
rest is extrapolated, and nothing is kept. Options of the plan itself come before the command: calor-hf plan
--processes 8 train --model ..."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of the command."""

    processes: int = option(1, "as if so many devices like this one shared the run")
    json: Path | None = option(None, "write the plan there, too", metavar="FILE")
    command: Literal["train", "audit", "prior"] = field(metadata={"positional": True, "help": "the planned command"})
    options: Sequence[str] = field(
        metadata={"positional": True, "nargs": argparse.REMAINDER, "help": "its options, as you will type them"}
    )

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for no process, and ``FileExistsError`` for a file that exists."""
        if self.processes < 1:
            raise ValueError(f"--processes must be >= 1, got {self.processes}")
        if self.json is not None and self.json.exists():
            raise FileExistsError(f"{self.json} is there already; pass another --json")


def run(options: PlanOptions) -> None:
    """Plan the command, print the plan, and write it if asked to."""
    started, begin = time.process_time(), time.perf_counter()
    disable_progress_bar()
    if options.command == "train":
        model_args, data_args, _, args = parse(options.options)
        plan = plan_training(model_args, data_args, args, options.processes)
    elif options.command == "audit":
        recipe = read_options(AuditRecipe, parser_for(AuditRecipe, "audit", ""), options.options)
        plan = plan_audit(recipe, options.processes)
    else:
        prior = read_options(PriorOptions, parser_for(PriorOptions, "prior", ""), options.options)
        plan = plan_prior(prior, options.processes)
    plan = replace(plan, parts=[Part("starting", started), *plan.parts])
    print(f"{plan.table()}\n- measured in {time.perf_counter() - begin:.0f} s on this machine, as busy as it is now")
    if options.json is not None:
        write_json(options.json, plan.to_dict(), indent=2)


main = Command("plan", DESCRIPTION, PlanOptions, run).main

if __name__ == "__main__":
    sys.exit(main())
