"""A progress bar by a clock that no one puts on or back."""

import time
from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):  # type: ignore[type-arg, unused-ignore]
    """A bar of tqdm that goes by the monotonic clock.

    By the time of day, as tqdm goes, a clock that is put back makes it stand still, and show times below zero.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._time = time.monotonic
        self.start_t = self.last_print_t = time.monotonic()
