"""Rank of every layer of the head, for every defense."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.core.config import MethodConfig
from calor_hf.defenses import DEFENSES
from calor_hf.recipes.runs import markdown
from examples.paper.study import STUDIES, Cell, Found, Study, good

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Defense: what reads how many numbers, gives how many, and its rank; FaceScrub on IR-152.
TABLE_19 = {
    "none": "512 → 530: 512",
    "mid": "256 → 530: 256",
    "bido": "512 → 530: 512",
    "label_smoothing": "512 → 530: 512",
    "transfer": "512 → 530: 512",
    "calor": "512 → 30: 30, 30 → 530: 30",
}


@dataclass(frozen=True, kw_only=True)
class HeadRankConfig(MethodConfig):
    """Settings of :class:`HeadRank`."""

    defenses: tuple[str, ...] = field(default=(), metadata={"help": "With commas between; default: all."})
    rank: int = field(default=16, metadata={"help": "Of low-rank heads."})
    epochs: int = field(
        default=3, metadata={"help": "Of each training; the rank of trained weights is there from the start. 0: all."}
    )
    seed: int = field(default=0, metadata={"help": "Of the trainings."})

    def validate(self) -> None:
        """Refuse unknown defenses."""
        unknown = [name for name in self.defenses if name not in DEFENSES.names()]
        if unknown or self.rank < 1 or self.epochs < 0:
            raise ValueError(
                f"expected defenses of {', '.join(DEFENSES.names())}, rank >= 1 and epochs >= 0, got {self.defenses}, "
                f"{self.rank} and {self.epochs}"
            )


@STUDIES.register("head_rank")
class HeadRank(Study[HeadRankConfig]):
    """Numerical rank of every linear layer in the head, for all defenses (Table 19)."""

    config_class = HeadRankConfig
    claim = "only CALoR's head has a lower rank than what it reads has numbers; all others see every direction"
    source = "Table 19"
    caveat = (
        "Numerical rank: singular values above σ_max · max(shape) · ε, in float64. It says how many directions of the "
        "features can reach the scores, not how far each does. With fewer classes than features, as on the drawn "
        "faces, the classes limit the rank of every head."
    )
    quick: ClassVar[dict[str, Any]] = {"rank": 2, "epochs": 1, "defenses": ("none", "calor")}

    def cells(self) -> list[Cell]:
        """Each defense."""
        return [Cell(name, {"defense": name}) for name in self.config.defenses or DEFENSES.names()]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train for a while; the training counts the ranks."""
        config, name = self.config, cell.values["defense"]
        words, suffix = [], ""
        if config.epochs:
            words = ["--num-train-epochs", str(config.epochs), "--adapt-epochs", "1", "--max-accuracy-drop", "100"]
            suffix = f"-{config.epochs}epochs"
        return self.lab.train(name, config.seed, rank=config.rank, suffix=suffix, words=words)[1]

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """A bar a layer: its rank, in front of the width of what it reads."""
        panel = figure.subplots()
        place, ticks, labels = 0.0, list[float](), list[str]()
        for cell in good(found):
            layers = cell["numbers"]["head"]["layers"]
            for layer in layers:
                first = not labels
                panel.barh(
                    place, layer["in_features"], 0.8, color="0.88", label="width of what it reads" if first else None
                )
                panel.barh(place, layer["rank"], 0.8, color="C0", label="rank" if first else None)
                panel.text(layer["rank"], place, f" {layer['rank']}", va="center", fontsize=9)
                labels.append(f"{cell['values']['defense']}, {layer['in_features']} → {layer['out_features']}")
                ticks.append(place)
                place += 1
            place += 0.5
        panel.set_yticks(ticks, labels)
        panel.invert_yaxis()
        panel.margins(x=0.08)  # room for the last number
        panel.set_xlabel("dimensions")
        panel.set_title("linear layers of the head")
        panel.grid(alpha=0.3, axis="x")
        panel.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)

    @classmethod
    def table(cls, found: Found) -> str:
        """A row a defense."""
        rows = []
        for cell in good(found):
            head = cell["numbers"]["head"]
            first = head["layers"][0]["in_features"]
            rows.append(
                [
                    cell["values"]["defense"],
                    ", ".join(f"{r['in_features']} → {r['out_features']}: {r['rank']}" for r in head["layers"]),
                    str(head["head_rank"]),
                    str(first - head["head_rank"]),
                    TABLE_19.get(cell["values"]["defense"], "-"),
                ]
            )
        head_row = ["defense", "layers: rank", "rank of the whole head", "free dimensions", "paper, layers: rank"]
        return markdown(head_row, rows)
