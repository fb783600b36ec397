"""Confidence of the target during an attack, by pre-training and defense."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.defenses import DEFENSES
from calor_hf.recipes.runs import markdown
from examples.paper.lab import FINE_TUNING
from examples.paper.study import STUDIES, Cell, Found, StepsConfig, Study, data_of, records
from examples.paper.trace import means, traced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRETRAININGS = {"scratch": "from random weights", "public": "from public faces", "given": "from --model"}


@dataclass(frozen=True, kw_only=True)
class TargetConfidenceConfig(StepsConfig):
    """Settings of :class:`TargetConfidence`."""

    defenses: tuple[str, ...] = field(
        default=("none", "label_smoothing", "calor"), metadata={"help": "Names separated by commas."}
    )
    pretrainings: tuple[str, ...] = field(
        default=("scratch", "public"),
        metadata={"help": "scratch: random weights; public: a model of public synthetic faces; given: --model."},
    )
    rank: int = field(default=16, metadata={"help": "Rank of low-rank heads."})

    def validate(self) -> None:
        """Refuse unknown defenses and pre-trainings."""
        super().validate()
        unknown = [name for name in self.defenses if name not in DEFENSES.names()]
        unknown += [name for name in self.pretrainings if name not in PRETRAININGS]
        if unknown or not self.defenses or not self.pretrainings or self.rank < 1:
            raise ValueError(
                f"expected defenses of {', '.join(DEFENSES.names())}, pretrainings of {', '.join(PRETRAININGS)} and "
                f"rank >= 1, got {self.defenses}, {self.pretrainings} and {self.rank}"
            )


@STUDIES.register("target_confidence")
class TargetConfidence(Study[TargetConfidenceConfig]):
    """Confidence of the target during an attack, by pre-training and defense (Figure 8)."""

    config_class = TargetConfidenceConfig
    claim = "how fast an attack raises the target's confidence depends on the pre-training of the model"
    source = "Figure 8"
    caveat = (
        "The confidence is the target's own, on the view of the image in each step. Every attack raises it, so it does "
        "not measure leakage. A CALoR model has a confidence of 0.88 on its training images, not 1."
    )
    needs = ("prior",)
    quick: ClassVar[dict[str, Any]] = {
        "attack": "ppa:steps=4,initial_candidates=20,restarts=1,final_views=0", "identities": 2, "rank": 2,
        "defenses": ("calor",),
    }  # fmt: skip

    def cells(self) -> list[Cell]:
        """One cell per pre-training and defense."""
        traced(self.config.attack)  # refused before any training
        if self.lab.has_base and "scratch" in self.config.pretrainings:
            raise ValueError("--model excludes a start from random weights; pass --settings pretrainings=given")
        if not self.lab.has_base and "given" in self.config.pretrainings:
            raise ValueError("pretrainings=given starts from --model; pass one")
        if "public" in self.config.pretrainings and not self.lab.embedded:
            raise ValueError("pretrainings=public exists for the synthetic faces only; pass --model and given")
        return [
            Cell(f"{start}-{name}", {"pretraining": start, "defense": name})
            for start in self.config.pretrainings
            for name in self.config.defenses
        ]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train, attack, and record the confidence."""
        config, name, start = self.config, cell.values["defense"], cell.values["pretraining"]
        options: list[str] = []
        if start == "public":
            options = ["--model", self.lab.public_base(), *(() if self.lab.options.quick else FINE_TUNING)]
        suffix = "-public" if start == "public" else ""
        folder, numbers = self.lab.train(name, config.training_seed, rank=config.rank, suffix=suffix, options=options)
        attack, scores, trace = self.lab.trace(folder, config.attack, config.identities, config.images_per_identity)
        return {
            **numbers,
            "attack": attack,
            "confidence": means(trace.confidence),
            "low": [float(step.quantile(0.25)) for step in trace.confidence],
            "high": [float(step.quantile(0.75)) for step in trace.confidence],
            "final": float(scores.double().mean()),
        }

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot one color per defense and one line style per pre-training, with the interquartile range shaded."""
        panel = figure.subplots()
        styles = dict(zip(PRETRAININGS, ("-", "--", "-"), strict=True))
        names = list(dict.fromkeys(cell["values"]["defense"] for cell in records(found)))
        for cell in records(found):
            name, start = cell["values"]["defense"], cell["values"]["pretraining"]
            color, numbers = f"C{names.index(name)}", cell["numbers"]
            steps = range(1, len(numbers["confidence"]) + 1)
            label = f"{name}, {PRETRAININGS[start]}"
            panel.plot(steps, numbers["confidence"], color=color, ls=styles[start], label=label)
            panel.fill_between(steps, numbers["low"], numbers["high"], color=color, alpha=0.1, lw=0)
        panel.set_xlabel("step of the attack")
        panel.set_ylabel("target's confidence in the attacked class")
        panel.set_ylim(-0.02, 1.02)
        panel.set_title(f"{found['settings']['attack'].partition(':')[0]} on {data_of(found)}")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=9)

    @classmethod
    def table(cls, found: Found) -> str:
        """Return the confidence at the first step, half-way, and of the result."""
        rows = [
            [
                cell["values"]["defense"],
                PRETRAININGS[cell["values"]["pretraining"]],
                f"{100 * cell['numbers']['test_accuracy']:.1f}",
                f"{cell['numbers']['train_confidence']:.3f}",
                f"{cell['numbers']['confidence'][0]:.3f}",
                f"{cell['numbers']['confidence'][len(cell['numbers']['confidence']) // 2]:.3f}",
                f"{cell['numbers']['final']:.3f}",
            ]
            for cell in records(found)
        ]
        head = ["defense", "start of training", "test accuracy (%)", "confidence on training images",
                "in the attack's first step", "half-way", "in the result"]  # fmt: skip
        return f"{markdown(head, rows)}\n\nThe paper prints a figure without numbers."
