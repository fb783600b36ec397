"""How an attack's cost grows with its settings, so that it can be told before a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """A setting that cost grows in proportion to: so much for each unit of it, whatever the other settings are.

    Attributes:
        per: ``class``: for each class attacked; ``run``: once in each process; ``pool``: samples of the prior, looked
            at once in each process, or for each class with a generator that knows classes.
        least: The smallest value that a trial may set.
    """

    per: str
    least: int = 1


STEPS, POOL = Effort("class"), Effort("pool", 0)
