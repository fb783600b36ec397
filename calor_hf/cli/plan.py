"""`calor-hf plan`: estimate the cost of a run, measured on a few of its steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from transformers.utils.logging import disable_progress_bar

from calor_hf.cli._command import Command
from calor_hf.cli._options import parser_for, read_options
from calor_hf.core.config import setting
from calor_hf.core.files import write_json
from calor_hf.recipes.audit import AuditRecipe
from calor_hf.recipes.plan import Part, plan_audit, plan_prior, plan_training
from calor_hf.recipes.prior import PriorOptions

DESCRIPTION = """Estimate time, memory, passes and disk of a run before it starts: a few steps are measured, the rest is
extrapolated, and nothing is kept. Options of the plan come before the command: calor-hf plan --processes 8 train ..."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of the command."""

    processes: int = setting(1, "number of devices like this one that share the run")
    json: Path | None = setting(None, "also write the plan to this file", metavar="FILE")
    command: Literal["train", "audit", "prior"] = field(metadata={"positional": True, "help": "the planned command"})
    options: Sequence[str] = field(metadata={"positional": True, "nargs": "...", "help": "its options"})

    def __post_init__(self) -> None:
        """Check the values."""
        if self.processes < 1:
            raise ValueError(f"--processes must be >= 1, got {self.processes}")
        if self.json is not None and self.json.exists():
            raise FileExistsError(f"{self.json} is there already; pass another --json")


def run(options: PlanOptions) -> None:
    """Plan the command, print the plan, and write it if asked to."""
    started, begin = time.process_time(), time.perf_counter()
    disable_progress_bar()
    planners: Any = {"train": plan_training, "audit": plan_audit, "prior": plan_prior}
    kind: Any = {"audit": AuditRecipe, "prior": PriorOptions}.get(options.command)  # train reads its own options
    given = read_options(kind, parser_for(kind, options.command, ""), options.options) if kind else options.options
    plan = planners[options.command](given, options.processes)
    shared = ["processes with devices like this one; communication costs nothing"] * (options.processes > 1)
    plan = replace(plan, parts=[Part("starting", started), *plan.parts], assumptions=[*plan.assumptions, *shared])
    print(f"{plan.table()}\n- measured in {time.perf_counter() - begin:.0f} s on this machine, as busy as it is now")
    if options.json is not None:
        write_json(options.json, plan.to_dict(), indent=2)


main = Command("plan", DESCRIPTION, PlanOptions, run).main
