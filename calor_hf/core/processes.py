"""The processes of a run, as `accelerate launch` or `torchrun` started them, and where they log to."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState


def process_state(device: str | torch.device | None = None) -> "PartialState":
    """This process's place among those of the run.

    On a machine without an accelerator, ``PartialState()`` alone takes every process for the only one, whatever
    launched it; then each would do all of the work and write to the same files.

    Args:
        device: Device of the work; defaults to an accelerator if there is one. The first call in a process decides.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    wanted = None if device is None else torch.device(device).type
    cpu = wanted == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)


def check_logger(name: str | None) -> None:
    """Raise ``ValueError`` for a logger that accelerate does not know, or that is not installed."""
    from accelerate.tracking import get_available_trackers

    known = [str(one) for one in get_available_trackers()]
    if name is not None and name not in known:
        raise ValueError(
            f"report_to must be a logger that is installed ({', '.join(known)}), got {name}; install that one, or "
            "leave it out"
        )
