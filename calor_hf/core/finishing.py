"""Steps after long work whose result is saved: a failure there loses nothing, and its error says how to finish."""

from collections.abc import Iterator
from contextlib import contextmanager

from calor_hf.core.files import NotSavedError


class FinishingError(Exception):
    """Long work is done and saved, but something after it failed."""


class Finishing:
    """Run the steps after long work; a step that fails does not stop the later ones.

    Args:
        saved: Finished work and its place, e.g. "the model is saved in outputs".
        remedy: How to repeat the steps that failed.
    """

    def __init__(self, saved: str, remedy: str) -> None:
        self.saved, self.remedy = saved, remedy
        self.failed: dict[str, Exception] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note an error inside, for :meth:`end`; ``name`` is a gerund, e.g. "drawing the curves"."""
        try:
            yield
        except Exception as error:
            self.failed[name] = error

    def end(self) -> None:
        """Raise what failed.

        Raises:
            NotSavedError: the disk was full, or not writable; it says itself what to do.
            FinishingError: another step failed.
        """
        for error in self.failed.values():
            if isinstance(error, NotSavedError):
                raise error
        if self.failed:
            said = [f"{name} failed ({type(one).__name__}: {one})" for name, one in self.failed.items()]
            text = " ".join(f"{self.saved}, but {', '.join(said)}; {self.remedy}".split())
            raise FinishingError(text) from next(iter(self.failed.values()))
