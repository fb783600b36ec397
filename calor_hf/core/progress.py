"""Progress bar timed with the monotonic clock."""

import time
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):  # type: ignore[type-arg, unused-ignore]
    """A tqdm bar that keeps its times if the system clock is set back during a run."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = time.monotonic()
