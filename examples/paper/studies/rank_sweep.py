"""Accuracy and leakage against the rank of the head."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.recipes.runs import markdown
from examples.paper.leakage import attack_labels, attack_names, bars, mean_of, model_columns, model_head, of_attack
from examples.paper.study import QUICK_ATTACK, STUDIES, AttackedConfig, Cell, Found, Study, data_of, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rank: (test accuracy, attack accuracy) in percent, of IF on LoR without CA.
TABLE_4 = {10: (76.2, 1.4), 15: (92.3, 5.0), 20: (96.1, 4.4), 30: (97.1, 13.0), 50: (97.3, 15.4), 100: (98.5, 48.2),
           256: (98.4, 67.6), 512: (98.6, 77.8)}  # fmt: skip
TABLE_18 = {20: (92.8, 18.6), 35: (95.5, 39.2), 40: (96.1, 51.2), 50: (96.6, 64.8), 75: (97.5, 80.4), 100: (97.7, 93.0),
            150: (98.6, 97.8), 200: (98.7, 98.8), 300: (98.9, 98.2), 500: (98.9, 99.0)}  # fmt: skip
PAPER = {"Table 4: IR-152, 64 pixels": TABLE_4, "Table 18: ResNet-152, 224 pixels": TABLE_18}


@dataclass(frozen=True, kw_only=True)
class RankSweepConfig(AttackedConfig):
    """Settings of :class:`RankSweep`."""

    ranks: tuple[int, ...] = field(
        default=(6, 10, 16, 32, 64), metadata={"help": "Ranks of the head, separated by commas."}
    )
    activation: str = field(
        default="tanh", metadata={"help": "Activation inside the head: tanh, identity, relu or sigmoid."}
    )
    defense: str = field(default="loft", metadata={"help": "loft (the head alone, as in the paper's tables) or calor."})

    def validate(self) -> None:
        """Refuse ranks below 1 and defenses without a rank."""
        super().validate()
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"ranks must be whole numbers >= 1, got {self.ranks}")
        if self.defense not in ("loft", "calor"):
            raise ValueError(f"defense must be loft or calor, got {self.defense}")


@STUDIES.register("rank_sweep")
class RankSweep(Study[RankSweepConfig]):
    """Accuracy and leakage against the rank of the head (Tables 4 and 18)."""

    config_class = RankSweepConfig
    claim = "down to a point, a lower rank costs little accuracy and removes most of the leakage"
    source = "Tables 4 and 18"
    caveat = (
        "Attack accuracy is that of the evaluation model; its interval is over identities and trainings. The paper's "
        "attack is IF with a GAN. A head on random weights needs a higher rank than one on pre-trained features."
    )
    needs = ("evaluation_model", "prior")
    quick: ClassVar[dict[str, Any]] = {**QUICK_ATTACK, "ranks": (2, 3)}
    size = (13.0, 4.8)

    def cells(self) -> list[Cell]:
        """The undefended model, then each rank, for every seed."""
        return [
            Cell(f"{'none' if rank is None else f'rank-{rank}'}-seed{seed}", {"rank": rank, "seed": seed})
            for rank in (None, *sorted(set(self.config.ranks)))
            for seed in self.config.seeds
        ]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train and audit a model."""
        rank, seed, config = cell.values["rank"], cell.values["seed"], self.config
        if rank is None:
            folder, numbers = self.lab.train("none", seed)
        else:
            folder, numbers = self.lab.train(config.defense, seed, rank=rank, activation=config.activation)
        return {**numbers, "leakage": self.lab.audit(cell.name, folder, config)}

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot our results on the left and the paper's two tables next to them, on one scale."""
        panels = figure.subplots(1, 3, sharey=True)
        ours = panels[0]
        cells = records(found)
        ranks = sorted({cell["values"]["rank"] for cell in cells if cell["values"]["rank"] is not None})
        rows = [records(found, rank=rank) for rank in ranks]
        ours.plot(ranks, [100 * mean_of(row, "test_accuracy") for row in rows], "ks-", label="test accuracy")
        reference = records(found, rank=None)
        called = attack_labels(found)
        for number, attack in enumerate(attack_names(cells)):
            values, spans = bars([of_attack(row, attack) for row in rows])
            color = f"C{number + 3}"
            ours.errorbar(ranks, values, yerr=spans, fmt="o-", color=color, capsize=3,
                          label=f"attack accuracy, {called[attack]}")  # fmt: skip
            if reference:
                ours.axhline(
                    100 * of_attack(reference, attack)[0], color=color, ls=":", label=f"{called[attack]}, undefended"
                )
        if reference:
            ours.axhline(
                100 * mean_of(reference, "test_accuracy"), color="k", ls=":", label="test accuracy, undefended"
            )
        ours.set_title(f"here: {found['settings']['defense']}, {data_of(found)}")
        ours.set_ylabel("percent")
        for panel, (title, rows_of_paper) in zip(panels[1:], PAPER.items(), strict=True):
            at = list(rows_of_paper)
            panel.plot(at, [accuracy for accuracy, _ in rows_of_paper.values()], "ks-")
            panel.plot(at, [leaked for _, leaked in rows_of_paper.values()], "o-", color="C7",
                       label="attack accuracy, IF (paper)")  # fmt: skip
            panel.set_title(f"paper, {title}", fontsize=11)
        for panel, ticks in zip(panels, (ranks, (10, 20, 50, 100, 200, 500), (20, 50, 100, 200, 500)), strict=True):
            panel.set_xscale("log")
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.set_xticks([], minor=True)
            panel.set_xlabel("rank of the head (log scale)")
            panel.set_ylim(-3, 103)
            panel.grid(alpha=0.3)
        handles = ours.get_legend_handles_labels(), panels[1].get_legend_handles_labels()
        figure.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="outside lower center",
                      ncols=3, fontsize=9)  # fmt: skip

    @classmethod
    def table(cls, found: Found) -> str:
        """Return one row per rank, then the paper's tables."""
        cells = records(found)
        attacks = attack_names(cells)
        rows = []
        for rank in dict.fromkeys(cell["values"]["rank"] for cell in cells):
            row = records(found, rank=rank)
            rows.append(
                [
                    "undefended" if rank is None else str(rank),
                    *model_columns(row, attacks),
                ]
            )
        parts = [markdown(["rank", *model_head(attacks)], rows)]
        for title, numbers in PAPER.items():
            own = [[str(rank), f"{accuracy}", f"{leaked}"] for rank, (accuracy, leaked) in numbers.items()]
            parts.append(f"Paper, {title}, FaceScrub, IF on the head alone:")
            parts.append(markdown(["rank", "test accuracy (%)", "attack accuracy (%)"], own))
        return "\n\n".join(parts)
