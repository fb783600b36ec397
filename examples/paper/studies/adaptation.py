"""Confidence adaptation on and off."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.metrics.statistics import pooled_interval
from calor_hf.recipes.runs import markdown
from examples.paper.leakage import (
    attack_labels,
    attack_names,
    bars,
    by_identity,
    mean_of,
    model_columns,
    model_head,
    of_attack,
    with_interval,
)
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

DEFENSES_COMPARED = ("loft", "calor")
# Reduction of attack accuracy in points, from the text next to Table 3 (the table is an image in our copy).
PAPER = {"low resolution, rank 30": 3.0, "high resolution, rank 50": 4.0}


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig(AttackedConfig):
    """Settings of :class:`Adaptation`."""

    attacks: str = field(
        default="plg:steps=60,initial_candidates=500,lr=0.03 plg@adaptive:steps=60",
        metadata={"help": "Attacks as calor-hf audit takes them, several with spaces between."},
    )
    identities: int = field(default=64, metadata={"help": "Number of attacked classes, the first ones."})
    seeds: tuple[int, ...] = field(default=(0, 1), metadata={"help": "Seeds of the trainings, separated by commas."})
    rank: int = field(default=16, metadata={"help": "Rank of both heads."})

    def validate(self) -> None:
        """Refuse a rank below 1."""
        super().validate()
        if self.rank < 1:
            raise ValueError(f"rank must be >= 1, got {self.rank}")


@STUDIES.register("adaptation")
class Adaptation(Study[AdaptationConfig]):
    """The low-rank head alone against the same with confidence adaptation (Table 3)."""

    config_class = AdaptationConfig
    claim = "confidence adaptation lowers attack accuracy by another 3 to 4 points at the same rank"
    source = "text next to Table 3"
    caveat = (
        "The difference is paired by identity and seed, and its interval is over identities and trainings. A "
        "difference of a few points becomes visible only with many identities, reconstructions and seeds."
    )
    needs = ("evaluation_model", "prior")
    quick: ClassVar[dict[str, Any]] = {**QUICK_ATTACK, "rank": 2, "seeds": (0,)}
    size = (11.0, 4.4)

    def cells(self) -> list[Cell]:
        """One cell per defense and seed."""
        return [
            Cell(f"{name}-seed{seed}", {"defense": name, "seed": seed})
            for seed in self.config.seeds
            for name in DEFENSES_COMPARED
        ]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train and audit a model."""
        config = self.config
        folder, numbers = self.lab.train(cell.values["defense"], cell.values["seed"], rank=config.rank)
        return {**numbers, "leakage": self.lab.audit(cell.name, folder, config)}

    @classmethod
    def differences(cls, found: Found) -> dict[str, tuple[float, float, float]]:
        """Return the change of attack accuracy by adaptation, with its interval over identities and trainings.

        Both ways are trained with the same seeds, so that a training is paired with its own control.
        """
        rows = [records(found, defense=name) for name in DEFENSES_COMPARED]
        if not all(rows):
            return {}
        differences = {}
        for attack in attack_names(rows[0]):
            off, on = (by_identity([cell["numbers"]["leakage"][attack] for cell in row]) for row in rows)
            differences[attack] = pooled_interval(on - off)
        return differences

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot the models' accuracy and confidence, and the attacks' accuracy."""
        model, attack_panel = figure.subplots(1, 2, width_ratios=(1, 1.6))
        rows = {name: records(found, defense=name) for name in DEFENSES_COMPARED if records(found, defense=name)}
        labels = {"loft": "off (loft)", "calor": "on (calor)"}
        for index, (name, row) in enumerate(rows.items()):
            values = [100 * mean_of(row, key) for key in ("test_accuracy", "train_confidence")]
            made = model.bar([index * 0.4, 1 + index * 0.4], values, 0.38, color=f"C{index}", label=labels[name])
            model.bar_label(made, fmt="%.1f", fontsize=9)
        model.set_xticks([0.2, 1.2], ["test accuracy", "training confidence"])
        model.set_ylabel("percent")
        model.set_title(f"rank {found['settings']['rank']}, {data_of(found)}")
        attacks, called = attack_names([cell for row in rows.values() for cell in row]), attack_labels(found)
        differences = cls.differences(found)
        for index, (name, row) in enumerate(rows.items()):
            values, spans = bars([of_attack(row, attack) for attack in attacks])
            attack_panel.bar([x + index * 0.4 for x in range(len(attacks))], values, 0.38, yerr=spans,
                             capsize=4, color=f"C{index}", label=labels[name])  # fmt: skip
        ticks = []
        for attack in attacks:
            text = ""
            if attack in differences:
                mean, low, high = (100 * number for number in differences[attack])
                text = f"\nchange {mean:+.1f} [{low:+.1f}, {high:+.1f}] points"
            ticks.append(called[attack] + text)
        attack_panel.set_xticks([x + 0.2 for x in range(len(attacks))], ticks, fontsize=8)
        attack_panel.set_ylabel("attack accuracy (percent)")
        attack_panel.set_title("with 95 % intervals over identities and trainings; paper: −3 and −4 points")
        for panel in (model, attack_panel):
            percent_axis(panel)
            panel.legend(title="confidence adaptation", fontsize=8, title_fontsize=8, ncols=2, loc="upper right")

    @classmethod
    def table(cls, found: Found) -> str:
        """Return one row per defense, then the differences."""
        attacks = attack_names(records(found))
        rows = []
        for name in DEFENSES_COMPARED:
            row = records(found, defense=name)
            if row:
                rows.append(
                    [
                        name,
                        *model_columns(row, attacks),
                    ]
                )
        head = ["defense", *model_head(attacks)]
        changes = [[attack, with_interval(*numbers)] for attack, numbers in cls.differences(found).items()]
        changes += [[f"paper, IF, {name}", f"{-points:.1f}"] for name, points in PAPER.items()]
        return f"{markdown(head, rows)}\n\n{markdown(['attack', 'change by adaptation (points)'], changes)}"
