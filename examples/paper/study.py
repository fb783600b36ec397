"""What every study promises: independent pieces of work, each measured once; a figure and a table of what was found."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from calor_hf.core.config import MethodConfig
from calor_hf.core.registry import Registry
from examples.paper.lab import Lab

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[str, Any]
"""A finished study as ``study.json`` holds it; ``cells`` are its records, in order."""


@dataclass(frozen=True)
class Cell:
    """One piece of a study's work, which needs no other.

    Attributes:
        name: Of its file.
        values: What distinguishes it from the others; plain values.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttackedConfig(MethodConfig):
    """Settings of studies that attack trained models."""

    attacks: str = field(
        default="plg@adaptive:steps=60",
        metadata={"help": "Attacks as calor-hf audit takes them, several with spaces between."},
    )
    identities: int = field(default=32, metadata={"help": "Classes that are attacked: the first ones, at most all."})
    images_per_identity: int = field(default=2, metadata={"help": "Reconstructions of each."})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"help": "Of the trainings, separated by commas."})

    def validate(self) -> None:
        """Refuse attacks that are unknown, and empty work."""
        from calor_hf.auditing.plan import plan_attacks

        plan_attacks(self.attacks.split())
        if self.identities < 1 or self.images_per_identity < 1 or not self.seeds:
            raise ValueError(
                "expected people >= 1, images_per_identity >= 1 and a seed, got "
                f"{self.identities}, {self.images_per_identity} and {self.seeds}"
            )


@dataclass(frozen=True, kw_only=True)
class StepsConfig(MethodConfig):
    """One white-box attack, and whom it attacks."""

    attack: str = field(
        default="ppa:steps=200,initial_candidates=500,restarts=1,final_views=0",
        metadata={"help": "White-box attack as calor-hf audit takes it; if_gmi, the paper's, needs a trained prior."},
    )
    identities: int = field(default=32, metadata={"help": "Classes that are attacked: the first ones, at most all."})
    images_per_identity: int = field(default=2, metadata={"help": "Reconstructions of each."})
    training_seed: int = field(default=0, metadata={"help": "Of the trainings."})

    def validate(self) -> None:
        """Refuse empty work."""
        if self.identities < 1 or self.images_per_identity < 1:
            raise ValueError(
                f"people and images_per_identity must be >= 1, got {self.identities} and {self.images_per_identity}"
            )


QUICK_ATTACK = {"attacks": "plg@adaptive:steps=2,initial_candidates=20,views=1", "identities": 2}

C = TypeVar("C", bound=MethodConfig)


class Study(ABC, Generic[C]):
    """One analysis of the paper; the docstring's first line is what it looks at.

    Attributes:
        config: The settings, frozen.
        lab: Models, judge, prior and images.
        claim: What the paper says, in a line.
        source: Where in the paper.
        caveat: What one has to know to read the result.
        needs: ``evaluation_model``, ``prior``: what the user has to name where the data are his.
        quick: Settings of a try that takes seconds and says nothing.
        size: Of the figure, in inches.
    """

    config_class: ClassVar[type[MethodConfig]]
    claim: ClassVar[str]
    source: ClassVar[str]
    caveat: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    quick: ClassVar[dict[str, Any]] = {}
    size: ClassVar[tuple[float, float]] = (7.0, 4.5)

    def __init__(self, config: C, lab: Lab) -> None:
        self.config, self.lab = config, lab

    @abstractmethod
    def cells(self) -> list[Cell]:
        """All pieces of work, in order.

        Raises:
            ValueError: settings that do not fit the lab's options.
        """

    @abstractmethod
    def measure(self, cell: Cell) -> dict[str, Any]:
        """Numbers of one cell, plain values without NaN.

        Raises:
            TrainingFailedError: a model came to a bad end; the cell is kept as failed.
        """

    @classmethod
    @abstractmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Fill the figure from ``study.json`` alone."""

    @classmethod
    @abstractmethod
    def table(cls, found: Found) -> str:
        """Markdown from ``study.json`` alone, with the paper's numbers beside."""


STUDIES: Registry[Study[Any]] = Registry("study", "examples.paper.studies")


def data_of(found: Found) -> str:
    """What the private images are called."""
    return str(found["options"]["dataset"] or "drawn faces")


def good(found: Found, **values: Any) -> list[dict[str, Any]]:
    """Records of the cells that did not fail, of those with these values."""
    return [
        cell
        for cell in found["cells"]
        if "failed" not in cell["numbers"] and all(cell["values"].get(key) == value for key, value in values.items())
    ]
