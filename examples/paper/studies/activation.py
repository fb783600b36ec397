"""Activation between the two layers of the head."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.heads.low_rank_head import ACTIVATIONS
from calor_hf.recipes.runs import markdown
from examples.paper.leakage import attack_labels, attack_names, bars, mean_of, model_columns, model_head, of_attack
from examples.paper.study import (
    QUICK_ATTACK,
    STUDIES,
    AttackedConfig,
    Cell,
    Found,
    Study,
    data_of,
    percent_axis,
    records,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Activation: (test accuracy, attack accuracy) in percent, of IF; low resolution at rank 20, high resolution at rank 50.
TABLE_5 = {
    "identity": ((94.1, 12.6), (96.7, 82.0)),
    "relu": ((92.7, 14.2), (96.1, 81.6)),
    "sigmoid": ((93.2, 7.4), (96.8, 67.6)),
    "tanh": ((96.1, 4.4), (96.6, 64.8)),
}


@dataclass(frozen=True, kw_only=True)
class ActivationConfig(AttackedConfig):
    """Settings of :class:`Activation`."""

    attacks: str = field(
        default="plg:steps=60,initial_candidates=500,lr=0.03 plg@adaptive:steps=60",
        metadata={"help": "Attacks as calor-hf audit takes them, several with spaces between."},
    )
    activations: tuple[str, ...] = field(
        default=tuple(TABLE_5), metadata={"help": "Some of identity,relu,sigmoid,tanh."}
    )
    rank: int = field(default=12, metadata={"help": "Rank of the head."})

    def validate(self) -> None:
        """Refuse unknown activations."""
        super().validate()
        unknown = [name for name in self.activations if name not in ACTIVATIONS]
        if unknown or not self.activations or self.rank < 1:
            raise ValueError(
                f"expected activations of {', '.join(ACTIVATIONS)} and rank >= 1, got {', '.join(self.activations)} "
                f"and {self.rank}"
            )


@STUDIES.register("activation")
class Activation(Study[ActivationConfig]):
    """Identity, ReLU, sigmoid and Tanh inside the head, at one rank (Table 5)."""

    config_class = ActivationConfig
    claim = "at the same rank, Tanh leaks least, as its saturation leaves the attack little gradient"
    source = "Table 5"
    caveat = (
        "An attack that bypasses the Tanh (straight_through, in plg@adaptive) shows whether less leaks, or whether it "
        "is only harder to find. Compare rows at about the same test accuracy."
    )
    needs = ("evaluation_model", "prior")
    quick: ClassVar[dict[str, Any]] = {**QUICK_ATTACK, "rank": 2}
    size = (11.0, 4.4)

    def cells(self) -> list[Cell]:
        """One cell per activation and seed."""
        return [
            Cell(f"{name}-seed{seed}", {"activation": name, "seed": seed})
            for name in self.config.activations
            for seed in self.config.seeds
        ]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train and audit a model."""
        config = self.config
        name, seed = cell.values["activation"], cell.values["seed"]
        folder, numbers = self.lab.train("loft", seed, rank=config.rank, activation=name)
        return {**numbers, "leakage": self.lab.audit(cell.name, folder, config)}

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot test and attack accuracy as bars, ours next to the paper's."""
        ours, paper = figure.subplots(1, 2, sharey=True)
        cells = records(found)
        names = list(dict.fromkeys(cell["values"]["activation"] for cell in cells))
        rows = [records(found, activation=name) for name in names]
        attacks, called = attack_names(cells), attack_labels(found)
        width = 0.8 / (1 + len(attacks))
        at = range(len(names))
        ours.bar([x - 0.4 + width / 2 for x in at], [100 * mean_of(row, "test_accuracy") for row in rows], width,
                 color="0.75", label="test accuracy")  # fmt: skip
        for number, attack in enumerate(attacks, 1):
            values, spans = bars([of_attack(row, attack) for row in rows])
            ours.bar([x - 0.4 + (number + 0.5) * width for x in at], values, width, yerr=spans, capsize=3,
                     color=f"C{number - 1}", label=f"attack accuracy, {called[attack]}")  # fmt: skip
        ours.set_title(f"here: rank {found['settings']['rank']}, {data_of(found)}")
        ours.set_ylabel("percent")
        width = 0.8 / 3
        paper.bar([x - width for x in range(4)], [low[0] for low, _ in TABLE_5.values()], width, color="0.75",
                  label="test accuracy, rank 20")  # fmt: skip
        for index, label in enumerate(("attack accuracy, rank 20, 64 pixels", "attack accuracy, rank 50, 224 pixels")):
            paper.bar([x + index * width for x in range(4)], [entry[index][1] for entry in TABLE_5.values()], width,
                      color=f"C{index + 2}", label=label)  # fmt: skip
        paper.set_title("paper, Table 5 (IF)")
        for panel, labels in ((ours, names), (paper, list(TABLE_5))):
            panel.set_xticks(range(len(labels)), labels)
            percent_axis(panel, 140)
            panel.legend(fontsize=8, loc="upper left")

    @classmethod
    def table(cls, found: Found) -> str:
        """Return one row per activation, with the paper's numbers."""
        cells = records(found)
        attacks = attack_names(cells)
        rows = []
        for name in dict.fromkeys(cell["values"]["activation"] for cell in cells):
            row = records(found, activation=name)
            low, high = TABLE_5[name]
            rows.append(
                [
                    name,
                    *model_columns(row, attacks),
                    f"{low[0]} / {low[1]}",
                    f"{high[0]} / {high[1]}",
                ]
            )
        head = ["activation", *model_head(attacks),
                "paper, rank 20, 64 pixels: test / attack", "paper, rank 50, 224 pixels: test / attack"]  # fmt: skip
        return markdown(head, rows)
