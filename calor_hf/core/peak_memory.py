"""Peak memory of the process or of a piece of work."""

import sys
import threading

import psutil
import torch


def peak_memory_bytes() -> int:
    """Peak memory of the process so far: on the CUDA device if there is one, otherwise its resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class PeakMemory:
    """Context manager that measures peak memory: allocated on a CUDA device, otherwise resident in the process.

    Attributes:
        before: Bytes at the start.
        peak: Bytes at the peak.
    """

    INTERVAL = 0.01  # seconds

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.before = self.peak = 0

    @property
    def grown(self) -> int:
        """Bytes of the peak above the start."""
        return self.peak - self.before

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self.before = torch.cuda.memory_allocated(self._device)
        else:
            self.before = self._process.memory_info().rss
            self._watcher.start()
        self.peak = self.before
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self._device)
            return
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.INTERVAL):
            self.peak = max(self.peak, self._process.memory_info().rss)
