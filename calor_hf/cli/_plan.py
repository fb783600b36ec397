"""What a run is expected to take, as a table and as JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from calor_hf._version import __version__


@dataclass(frozen=True)
class Part:
    """A part of a run.

    Attributes:
        name: Stage, attack, or what else takes time.
        seconds: Wall time; NaN: it cannot be told.
        at_least: Wall time where it may end early; None: it does not.
        passes: Images, by network and direction, in all processes.
        note: What it leaves out.
    """

    name: str
    seconds: float
    at_least: float | None = None
    passes: dict[str, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run is expected to take.

    Attributes:
        command: ``train`` or ``audit``.
        parts: In order.
        memory_bytes: Peak of a process, on its device.
        disk_bytes: Left behind; None: not told.
        device: Where it was measured.
        processes: That share the work.
        assumptions: What has to hold for it to come true.
    """

    command: str
    parts: Sequence[Part]
    memory_bytes: int
    disk_bytes: int | None
    device: str
    processes: int
    assumptions: Sequence[str]

    @property
    def seconds(self) -> float:
        """Wall time of all parts that can be told."""
        return sum(part.seconds for part in self.parts if not math.isnan(part.seconds))

    @property
    def at_least(self) -> float:
        """The same, where parts end as early as they may."""
        known = [part for part in self.parts if not math.isnan(part.seconds)]
        return sum(part.seconds if part.at_least is None else part.at_least for part in known)

    @property
    def passes(self) -> dict[str, int]:
        """Images of all parts."""
        found: dict[str, int] = {}
        for part in self.parts:
            for name, count in part.passes.items():
                found[name] = found.get(name, 0) + count
        return found

    def to_dict(self) -> dict[str, Any]:
        """As it is written with ``--json``."""
        parts = [{**asdict(part), "seconds": None if math.isnan(part.seconds) else part.seconds} for part in self.parts]
        return {
            "version": __version__, "command": self.command, "device": self.device, "processes": self.processes,
            "seconds": self.seconds, "at_least_seconds": self.at_least, "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes, "passes": self.passes, "parts": parts,
            "assumptions": list(self.assumptions),
        }  # fmt: skip

    def table(self) -> str:
        """For the terminal."""
        names = list(self.passes)
        head = ["", "time", *(name.replace("_", " ") for name in names)]
        rows = [
            [part.name, duration(part.seconds, part.at_least), *(f"{part.passes.get(name, 0):,}" for name in names)]
            for part in self.parts
        ]
        early = self.at_least if self.at_least < self.seconds else None
        rows.append(["in all", duration(self.seconds, early), *(f"{count:,}" for count in self.passes.values())])
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = []
        for row in [head, *rows]:
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *cells]))
        hours = self.seconds / 3600
        lines += ["", f"hours: {hours:.3g} of wall time, {hours * self.processes:.3g} of devices ({self.device})"]
        lines.append(f"memory: {self.memory_bytes / 2**20:,.0f} MiB a process at its peak")
        if self.disk_bytes is not None:
            lines.append(f"disk: {self.disk_bytes / 2**20:,.0f} MiB left behind")
        notes = [f"{part.name}: {part.note}" for part in self.parts if part.note]
        return "\n".join([*lines, "", "assumed:", *(f"- {line}" for line in [*self.assumptions, *notes])])


def duration(seconds: float, at_least: float | None = None) -> str:
    """Seconds as a reader takes them in."""
    if math.isnan(seconds):
        return "?"
    if at_least is not None:
        return f"{duration(at_least)} to {duration(seconds)}"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
