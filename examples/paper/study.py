"""Base class and registry of the studies: independent cells, each measured once, and a figure and table of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from calor_hf.core.config import MethodConfig
from calor_hf.core.registry import Registry
from examples.paper.lab import Lab

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[str, Any]
"""Content of ``study.json``; ``cells`` are the records of the cells, in order."""


@dataclass(frozen=True)
class Cell:
    """One measurement of a study, independent of the others.

    Attributes:
        name: Name of its file.
        values: Values that distinguish it from the other cells, as plain values.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttackedConfig(MethodConfig):
    """Settings of studies that attack trained models."""

    attacks: str = field(
        default="plg@adaptive:steps=60",
        metadata={"help": "Attack specs of calor-hf audit, separated by spaces."},
    )
    identities: int = field(default=32, metadata={"help": "Number of attacked classes, the first ones."})
    images_per_identity: int = field(default=2, metadata={"help": "Reconstructions per class."})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"help": "Seeds of the trainings, separated by commas."})

    def validate(self) -> None:
        """Refuse unknown attacks, and values out of range."""
        from calor_hf.attacks.specs import parse_attacks

        parse_attacks(self.attacks.split())
        if self.identities < 1 or self.images_per_identity < 1 or not self.seeds:
            raise ValueError(
                "expected identities >= 1, images_per_identity >= 1 and a seed, got "
                f"{self.identities}, {self.images_per_identity} and {self.seeds}"
            )


@dataclass(frozen=True, kw_only=True)
class StepsConfig(MethodConfig):
    """Settings of studies that record the steps of one white-box attack."""

    attack: str = field(
        default="ppa:steps=200,initial_candidates=500,restarts=1,final_views=0",
        metadata={"help": "White-box attack spec of calor-hf audit; the paper's if_gmi needs a trained prior."},
    )
    identities: int = field(default=32, metadata={"help": "Number of attacked classes, the first ones."})
    images_per_identity: int = field(default=2, metadata={"help": "Reconstructions per class."})
    training_seed: int = field(default=0, metadata={"help": "Seed of the trainings."})

    def validate(self) -> None:
        """Refuse values out of range."""
        if self.identities < 1 or self.images_per_identity < 1:
            raise ValueError(
                f"identities and images_per_identity must be >= 1, got {self.identities} and {self.images_per_identity}"
            )


QUICK_ATTACK = {"attacks": "plg@adaptive:steps=2,initial_candidates=20,views=1", "identities": 2}

C = TypeVar("C", bound=MethodConfig)


class Study(ABC, Generic[C]):
    """One analysis of the paper; the first line of a subclass's docstring is its subject.

    Attributes:
        config: Frozen settings.
        lab: Models, evaluation model, prior and images.
        claim: Claim of the paper, in one line.
        source: Table, figure or section of the paper.
        caveat: Limits of the result.
        data: Name of the study's own data; empty means the private images.
        needs: Parts that the user must pass for data of their own: ``evaluation_model``, ``prior``.
        quick: Settings of a trial that takes seconds; its numbers mean nothing.
        size: Size of the figure in inches.
    """

    config_class: ClassVar[type[MethodConfig]]
    claim: ClassVar[str]
    source: ClassVar[str]
    caveat: ClassVar[str] = ""
    data: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    quick: ClassVar[dict[str, Any]] = {}
    size: ClassVar[tuple[float, float]] = (7.0, 4.5)

    def __init__(self, config: C, lab: Lab) -> None:
        self.config, self.lab = config, lab

    @abstractmethod
    def cells(self) -> list[Cell]:
        """Return all cells, in order.

        Raises:
            ValueError: the settings do not fit the options of the lab.
        """

    @abstractmethod
    def measure(self, cell: Cell) -> dict[str, Any]:
        """Measure one cell; return plain values without NaN.

        Raises:
            TrainingFailedError: a training failed; the cell is recorded as failed.
        """

    @classmethod
    @abstractmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Fill the figure, from ``study.json`` alone."""

    @classmethod
    @abstractmethod
    def table(cls, found: Found) -> str:
        """Return a Markdown table with the paper's numbers, from ``study.json`` alone."""


STUDIES: Registry[Study[Any]] = Registry("study", "examples.paper.studies")


def data_of(found: Found) -> str:
    """Name of the private images."""
    return str(found["options"]["dataset"] or "synthetic faces")


def records(found: Found, **values: Any) -> list[dict[str, Any]]:
    """Return the records of the cells with these values that did not fail."""
    return [
        cell
        for cell in found["cells"]
        if "failed" not in cell["numbers"] and all(cell["values"].get(key) == value for key, value in values.items())
    ]


def percent_axis(panel: Any, top: int = 125) -> None:
    """Scale the y axis of a bar chart to percent, with space for a legend between 100 and ``top``."""
    panel.set_ylim(0, top)
    panel.set_yticks(range(0, 101, 20))
    panel.grid(alpha=0.3, axis="y")
    panel.set_axisbelow(True)
