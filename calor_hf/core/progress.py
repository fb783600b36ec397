"""Progress bars, timed with the monotonic clock."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from calor_hf.core.report_text import percent


class ProgressBar(tqdm):  # type: ignore[type-arg, unused-ignore]
    """A tqdm bar that keeps its times if the system clock is set back during a run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = time.monotonic()


@dataclass
class ClassProgress:
    """Progress of an attack in classes, with the share of images that the target assigns to their class.

    Attributes:
        name: Name of the attack.
        classes: Number of classes.
        shown: Whether the bar is shown.
    """

    name: str
    classes: int
    shown: bool = True

    def __enter__(self) -> "ClassProgress":
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.0f} classes [{elapsed}<{remaining}{postfix}]"
        hidden = {} if self.shown else {"disable": True}  # shown or not, TQDM_DISABLE=1 hides it
        self._bar = ProgressBar(total=float(self.classes), desc=self.name, bar_format=form, **hidden)
        self._finished = 0
        return self

    def __call__(self, labels: Sequence[int], step: int, steps: int, success: float) -> None:
        """Show the progress of these classes; the arguments are those of a progress callback of an attack.

        ``success`` is NaN if the target is not asked.
        """
        self._bar.n = self._finished + len(labels) * step / steps
        agrees = "" if math.isnan(success) else f", target agrees on {percent(success, 0)}"
        self._bar.set_postfix_str(f"step {step}/{steps}{agrees}")
        if step == steps:
            self._finished += len(labels)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
