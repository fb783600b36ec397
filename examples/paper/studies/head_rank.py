"""Rank of every layer of the head, for every defense."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.core.config import MethodConfig
from calor_hf.defenses import DEFENSES
from calor_hf.recipes.runs import markdown
from calor_hf.recipes.train_arguments import defenses_of_any_data
from examples.paper.study import STUDIES, Cell, Found, Study, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Defense: input width → output width: rank of each layer; FaceScrub on IR-152.
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

    defenses: tuple[str, ...] = field(default=(), metadata={"help": "Names separated by commas; default: all."})
    rank: int = field(default=16, metadata={"help": "Rank of low-rank heads."})
    epochs: int = field(
        default=3, metadata={"help": "Epochs of each training (0: all); ranks hardly change after the start."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the trainings."})

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
    claim = "only CALoR's head has a lower rank than its input width; all others use every direction of the features"
    source = "Table 19"
    caveat = (
        "Numerical rank: singular values above σ_max · max(shape) · ε, in float64. It counts the directions of the "
        "features that affect the logits, not the size of each effect. With fewer classes than features, as on the "
        "synthetic faces, the classes limit the rank of every head."
    )
    quick: ClassVar[dict[str, Any]] = {"rank": 2, "epochs": 1, "defenses": ("none", "calor")}

    def cells(self) -> list[Cell]:
        """One cell per defense."""
        return [Cell(name, {"defense": name}) for name in self.config.defenses or defenses_of_any_data()]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train briefly; the training reports the ranks."""
        config, name = self.config, cell.values["defense"]
        options, suffix = list[str](), ""
        if config.epochs:
            options = ["--num-train-epochs", str(config.epochs), "--adapt-epochs", "1", "--max-accuracy-drop", "100"]
            suffix = f"-{config.epochs}epochs"
        return self.lab.train(name, config.seed, rank=config.rank, suffix=suffix, options=options)[1]

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot one bar per layer: its rank, in front of its input width."""
        panel = figure.subplots()
        position, ticks, labels = 0.0, list[float](), list[str]()
        for cell in records(found):
            layers = cell["numbers"]["head"]["layers"]
            for layer in layers:
                first = not labels
                panel.barh(position, layer["in_features"], 0.8, color="0.88", label="input width" if first else None)
                panel.barh(position, layer["rank"], 0.8, color="C0", label="rank" if first else None)
                panel.text(layer["rank"], position, f" {layer['rank']}", va="center", fontsize=9)
                labels.append(f"{cell['values']['defense']}, {layer['in_features']} → {layer['out_features']}")
                ticks.append(position)
                position += 1
            position += 0.5
        panel.set_yticks(ticks, labels)
        panel.invert_yaxis()
        panel.margins(x=0.08)  # space for the last number
        panel.set_xlabel("dimensions")
        panel.set_title("linear layers of the head")
        panel.grid(alpha=0.3, axis="x")
        panel.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)

    @classmethod
    def table(cls, found: Found) -> str:
        """Return one row per defense."""
        rows = []
        for cell in records(found):
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
