"""Size of an attack's gradient, by activation of the head."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from calor_hf.heads.low_rank_head import ACTIVATIONS
from calor_hf.recipes.runs import markdown
from examples.paper.study import STUDIES, Cell, Found, StepsConfig, Study, records
from examples.paper.trace import means, relative, traced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FULL = "full head"
COLOURS = {FULL: "k", "identity": "C0", "relu": "C1", "sigmoid": "C2", "tanh": "C3"}
KINDS = {"variables": "of the optimized variables", "image": "of the image"}


@dataclass(frozen=True, kw_only=True)
class GradientMagnitudeConfig(StepsConfig):
    """Settings of :class:`GradientMagnitude`."""

    activations: tuple[str, ...] = field(
        default=("identity", "relu", "sigmoid", "tanh"), metadata={"help": "Some of identity,relu,sigmoid,tanh."}
    )
    rank: int = field(default=12, metadata={"help": "Rank of the heads."})
    window: int = field(default=20, metadata={"help": "Number of averaged steps, as in the paper."})

    def validate(self) -> None:
        """Refuse unknown activations, and numbers below 1."""
        super().validate()
        unknown = [name for name in self.activations if name not in ACTIVATIONS]
        if unknown or not self.activations or self.rank < 1 or self.window < 1:
            raise ValueError(
                f"expected activations of {', '.join(ACTIVATIONS)}, rank >= 1 and window >= 1, got "
                f"{', '.join(self.activations)}, {self.rank} and {self.window}"
            )


@STUDIES.register("gradient_magnitude")
class GradientMagnitude(Study[GradientMagnitudeConfig]):
    """Size of the gradient during an attack, for four activations in the head and for a full head."""

    config_class = GradientMagnitudeConfig
    claim = "the gradient vanishes during an attack, most of all with Tanh in the head"
    source = "study of gradient magnitudes"
    caveat = (
        "The norm is L2, the mean over images, a moving average over steps divided by its first value. A "
        "vanishing gradient stops plain gradient descent; Adam and similar optimizers, which most attacks use, cancel "
        "its size. In an attack of several stages, the optimized variables change from stage to stage."
    )
    needs = ("prior",)
    quick: ClassVar[dict[str, Any]] = {
        "attack": "ppa:steps=4,initial_candidates=20,restarts=1,final_views=0", "identities": 2, "rank": 2,
        "activations": ("identity", "tanh"), "window": 2,
    }  # fmt: skip
    size = (11.0, 4.4)

    def cells(self) -> list[Cell]:
        """The full head, then each activation."""
        traced(self.config.attack)  # refused before any training
        return [Cell(name.replace(" ", "-"), {"activation": name}) for name in (FULL, *self.config.activations)]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train, attack, and record the gradient."""
        config, name = self.config, cell.values["activation"]
        if name == FULL:
            folder, numbers = self.lab.train("none", config.training_seed)
        else:
            folder, numbers = self.lab.train("loft", config.training_seed, rank=config.rank, activation=name)
        attack, _, trace = self.lab.trace(folder, config.attack, config.identities, config.images_per_identity)
        return {
            **numbers,
            "attack": attack,
            "stages": list(trace.steps),
            "variables": means(trace.variables),
            "image": means(trace.images),
            "final_confidence": float(trace.confidence[-1].mean()),
        }

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Plot one line per activation, for the optimized variables and for the image."""
        panels = figure.subplots(1, 2, sharey=True)
        window = found["settings"]["window"]
        for panel, (key, title) in zip(panels, KINDS.items(), strict=True):
            for cell in records(found):
                name, values = cell["values"]["activation"], cell["numbers"][key]
                line = relative(values, window)
                steps = range(len(values) - len(line) + 1, len(values) + 1)
                panel.plot(steps, line, color=COLOURS[name], ls="--" if name == FULL else "-", label=name)
                stages = cell["numbers"]["stages"]
            for number in range(1, len(stages)):
                panel.axvline(sum(stages[:number]), color="0.8", lw=1)
            panel.axhline(1, color="0.6", lw=0.8)
            panel.set_yscale("log")
            panel.set_xlabel(f"step (moving average of {window})")
            panel.set_title(f"gradient {title}")
            panel.grid(alpha=0.3, which="both")
        panels[0].set_ylabel("L2 norm / its first value (log scale)")
        figure.legend(
            *panels[1].get_legend_handles_labels(), title="in the head", loc="outside right center", fontsize=9
        )

    @classmethod
    def table(cls, found: Found) -> str:
        """Return the last value of each line."""
        window = found["settings"]["window"]
        rows = [
            [
                cell["values"]["activation"],
                f"{100 * cell['numbers']['test_accuracy']:.1f}",
                *(f"{cell['numbers'][key][0]:.3g}" for key in KINDS),
                *(f"{relative(cell['numbers'][key], window)[-1]:.3f}" for key in KINDS),
                f"{cell['numbers']['final_confidence']:.3f}",
            ]
            for cell in records(found)
        ]
        head = ["in the head", "test accuracy (%)", "first norm, optimized", "first norm, image",
                "last / first, optimized", "last / first, image", "target confidence at the end"]  # fmt: skip
        return f"{markdown(head, rows)}\n\nThe paper prints a figure without numbers: Tanh ends lowest."
