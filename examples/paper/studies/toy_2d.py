"""The paper's two-dimensional example: four small networks, and the distance of an attack on each to the data.

:mod:`examples.toy_2d` explains it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.recipes.runs import markdown
from examples.paper.study import STUDIES, Cell, Found, Study, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CENTRES = ((0.0, -10.0), (-10.0, 10.0), (10.0, 10.0))  # circles, squares, pentagons
STD = 1.6
SAMPLES = 500
DATA_SEED = 17
WEIGHT_SEED = 42
HIDDEN = 20
START = (-3.0, -10.0)  # among the circles
TARGET = 2  # the pentagons


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the four networks, with the distance in the paper."""

    key: str
    title: str
    paper: float
    last_activation: type[nn.Module] = nn.ReLU
    head_activation: str | None = None  # of the low-rank head; None is an ordinary head


VARIANTS = (
    Variant(key="a", title="ReLU, full head", paper=1.67),
    Variant(key="b", title="Tanh, full head", paper=1.76, last_activation=nn.Tanh),
    Variant(key="c", title="low-rank head", paper=3.39, head_activation="identity"),
    Variant(key="d", title="low-rank head + Tanh", paper=19.33, head_activation="tanh"),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trained network and the result of the attack on it."""

    variant: Variant
    net: nn.Sequential
    accuracy: float  # on the training data, in [0, 1]
    path: Tensor  # (steps + 1, 2), start to end
    confidence: float  # of the target class at the end of the path
    distance: float  # from the end of the path to the nearest training point of the target class
    adam_path: Tensor  # with Adam instead of plain gradient descent
    adam_distance: float


def make_blobs() -> tuple[Tensor, Tensor]:
    """Draw the training data: exactly those of ``sklearn.datasets.make_blobs``, without that dependency.

    Returns:
        Points (500, 2) float32 and labels (500,) int64 in [0, 3).
    """
    rng = np.random.RandomState(DATA_SEED)
    sizes = [SAMPLES // len(CENTRES) + (k < SAMPLES % len(CENTRES)) for k in range(len(CENTRES))]
    points = np.concatenate([rng.normal(c, STD, size=(n, 2)) for c, n in zip(CENTRES, sizes, strict=True)])
    labels = np.repeat(np.arange(len(CENTRES)), sizes)
    order = np.arange(SAMPLES)
    rng.shuffle(order)
    return torch.from_numpy(points[order]).float(), torch.from_numpy(labels[order]).long()


def build_net(variant: Variant, seed: int) -> nn.Sequential:
    """Create the network of a variant, (batch, 2) to (batch, 3) logits, with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    classes = len(CENTRES)
    body = [nn.Linear(2, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN)]
    if variant.head_activation is None:
        head: nn.Module = nn.Linear(HIDDEN, classes, bias=False)
    else:
        head = LowRankHead(HIDDEN, classes, rank=2, activation=variant.head_activation, bias=False)
    return nn.Sequential(*body, variant.last_activation(), head)


def train(net: nn.Module, points: Tensor, labels: Tensor, iterations: int = 5000) -> None:
    """Fit ``net`` with cross entropy on the whole data set at every step; set it to eval mode."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    net.train()
    for _ in range(iterations):
        optimizer.zero_grad()
        F.cross_entropy(net(points), labels).backward()
        optimizer.step()
    net.eval()


def attack(net: nn.Module, optimizer: str = "sgd", steps: int = 2500) -> Tensor:
    """Descend the cross entropy of the target class from the start point, without stopping early.

    Args:
        net: (batch, 2) to (batch, 3) logits, in eval mode.
        optimizer: ``sgd``, the paper's plain gradient descent, or ``adam``; the step size is 0.1 for both.
        steps: Number of steps.

    Returns:
        (steps + 1, 2) the attacker's path.
    """
    point = torch.tensor([START], requires_grad=True)
    target = torch.tensor([TARGET])
    stepper = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([point], lr=0.1)
    path = [point.detach().clone()]
    for _ in range(steps):
        (point.grad,) = torch.autograd.grad(F.cross_entropy(net(point), target), point)
        stepper.step()
        path.append(point.detach().clone())
    return torch.cat(path)


def run(
    variant: Variant, points: Tensor, labels: Tensor, seed: int = WEIGHT_SEED, iterations: int = 5000, steps: int = 2500
) -> Outcome:
    """Train one network, attack it, and measure the distance to the data."""
    net = build_net(variant, seed)
    train(net, points, labels, iterations)
    path, adam_path = attack(net, "sgd", steps), attack(net, "adam", steps)
    secret = points[labels == TARGET]
    with torch.no_grad():
        return Outcome(
            variant=variant,
            net=net,
            accuracy=(net(points).argmax(dim=-1) == labels).float().mean().item(),
            path=path,
            confidence=net(path[-1:]).softmax(dim=-1)[0, TARGET].item(),
            distance=torch.cdist(path[-1:], secret).min().item(),
            adam_path=adam_path,
            adam_distance=torch.cdist(adam_path[-1:], secret).min().item(),
        )


def draw_outcomes(outcomes: Sequence[Outcome], points: Tensor, labels: Tensor, fig: "Figure") -> None:
    """Draw the four networks: confidence of the target class, training points, the attacker's paths."""
    from matplotlib.colors import LinearSegmentedColormap

    x, y = np.meshgrid(np.linspace(-17, 17, 240), np.linspace(-17, 17, 240))
    grid = torch.from_numpy(np.stack([x, y], axis=-1)).float().flatten(0, 1)
    # Okabe and Ito's colors can be distinguished with all common color blindnesses; the markers differ too.
    marks = (("o", "#009E73", "circles"), ("s", "#56B4E9", "squares"), ("p", "#E69F00", "pentagons (target)"))
    greys = LinearSegmentedColormap.from_list("greys", ["#ffffff", "#9a9a9a"])

    axes = fig.subplots(2, 2, sharex=True, sharey=True)
    for ax, o in zip(axes.flat, outcomes, strict=True):
        with torch.no_grad():
            logits = o.net(grid)
        confidence = logits.softmax(dim=-1)[:, TARGET].reshape(x.shape)
        shade = ax.contourf(x, y, confidence, levels=np.linspace(0, 1, 11), cmap=greys)
        for k, (marker, color, label) in enumerate(marks):
            lead = logits[:, k] - logits[:, [j for j in range(len(marks)) if j != k]].amax(dim=-1)
            ax.contour(x, y, lead.reshape(x.shape), levels=[0.0], colors="#555555", linewidths=0.9, linestyles="dotted")
            xy = points[labels == k]
            ax.scatter(*xy.T, s=24, marker=marker, color=color, edgecolor="black", linewidth=0.4, label=label)
        for path, color, style, marker, size, label in (
            (o.adam_path, "#CC79A7", (0, (4, 2)), "X", 11, "attack with Adam"),
            (o.path, "#D55E00", "solid", "*", 18, "the paper's attack"),
        ):
            ax.plot(*path.T, color=color, linewidth=2.2, linestyle=style, label=label)
            ax.plot(*path[-1], marker=marker, markersize=size, color=color, markeredgecolor="black", zorder=4)
        ax.plot(
            *o.path[0], marker="o", markersize=9, color="white", markeredgecolor="black", linestyle="", label="start"
        )
        ax.set_title(f"{o.variant.key}) {o.variant.title}", fontsize=12, fontweight="bold", loc="left")
        text = f"distance {o.distance:.2f}\nwith Adam {o.adam_distance:.2f}"
        ax.text(0.97, 0.03, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=10, linespacing=1.4)
        ax.set_aspect("equal")
        ax.set_xticks([-10, 0, 10])
        ax.set_yticks([-10, 0, 10])
    handles, names = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=10, columnspacing=1.4)
    fig.colorbar(shade, ax=axes, shrink=0.5, aspect=30, label="confidence in the target class (dotted: class borders)")


@dataclass(frozen=True, kw_only=True)
class Toy2DConfig(MethodConfig):
    """Settings of :class:`Toy2D`."""

    seeds: tuple[int, ...] = field(
        default=(WEIGHT_SEED, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
        metadata={"help": "Seeds of the weights, separated by commas; the figure shows the first; 42 is the paper's."},
    )
    iterations: int = field(default=5000, metadata={"help": "Training iterations."})
    steps: int = field(default=2500, metadata={"help": "Steps of the attack."})

    def validate(self) -> None:
        """Refuse values out of range."""
        if not self.seeds or self.iterations < 1 or self.steps < 1:
            raise ValueError(
                f"expected a seed, iterations >= 1 and steps >= 1, got {self.seeds}, {self.iterations} and {self.steps}"
            )


@STUDIES.register("toy_2d")
class Toy2D(Study[Toy2DConfig]):
    """Three classes in the plane: distance of an attack to the data, for four heads."""

    config_class = Toy2DConfig
    claim = "with a low-rank head and Tanh an attack ends far from the data (19.33 instead of 1.67)"
    source = "two-dimensional example"
    caveat = (
        "The start is 20.4 away from the nearest pentagon: at 19.33 the attack has hardly moved, as its step is "
        "proportional to a small gradient. Adam, whose step is not, comes close. Other weight seeds give very "
        "different distances. The example explains a mechanism; it is no evidence that a model is safe."
    )
    data = "three clouds of points"
    quick: ClassVar[dict[str, Any]] = {"seeds": (WEIGHT_SEED,), "iterations": 20, "steps": 20}
    size = (9.4, 9.0)

    def cells(self) -> list[Cell]:
        """One cell per network and seed."""
        return [
            Cell(f"{variant.key}-seed{seed}", {"network": variant.key, "seed": seed})
            for seed in dict.fromkeys(self.config.seeds)
            for variant in VARIANTS
        ]

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Train and attack one network; keep weights and paths of those in the figure."""
        points, labels = make_blobs()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more threads are slower for such small tensors
        try:
            outcome = run(
                variant_of(cell), points, labels, cell.values["seed"], self.config.iterations, self.config.steps
            )
        finally:
            torch.set_num_threads(threads)
        numbers = {name: getattr(outcome, name) for name in ("accuracy", "confidence", "distance", "adam_distance")}
        if cell.values["seed"] == self.config.seeds[0]:
            weights = {name: value.tolist() for name, value in outcome.net.state_dict().items()}
            paths = {name: thinned(getattr(outcome, name)).tolist() for name in ("path", "adam_path")}
            numbers |= {"weights": weights, **paths}
        return numbers

    @classmethod
    def draw(cls, found: Found, figure: "Figure") -> None:
        """Draw the four networks of the first seed."""
        points, labels = make_blobs()
        outcomes = []
        for cell in records(found, seed=found["settings"]["seeds"][0]):
            numbers = cell["numbers"]
            variant = next(v for v in VARIANTS if v.key == cell["values"]["network"])
            net = build_net(variant, 0)
            net.load_state_dict({name: torch.tensor(value) for name, value in numbers["weights"].items()})
            outcomes.append(
                Outcome(
                    variant=variant,
                    net=net.eval(),
                    accuracy=numbers["accuracy"],
                    path=torch.tensor(numbers["path"]),
                    confidence=numbers["confidence"],
                    distance=numbers["distance"],
                    adam_path=torch.tensor(numbers["adam_path"]),
                    adam_distance=numbers["adam_distance"],
                )
            )
        draw_outcomes(outcomes, points, labels, figure)

    @classmethod
    def table(cls, found: Found) -> str:
        """Return the four distances next to the paper's, and their range over seeds."""
        first, rows = found["settings"]["seeds"][0], []
        for variant in VARIANTS:
            (first_cell,) = records(found, network=variant.key, seed=first)
            others = [c["numbers"] for c in records(found, network=variant.key) if c["values"]["seed"] != first]
            stds = [
                f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"
                for values in ([n["distance"] for n in others], [n["adam_distance"] for n in others])
            ]
            numbers = first_cell["numbers"]
            rows.append(
                [
                    f"{variant.key}) {variant.title}",
                    f"{100 * numbers['accuracy']:.1f}",
                    f"{numbers['distance']:.2f}",
                    f"{variant.paper:.2f}",
                    f"{numbers['adam_distance']:.2f}",
                    *stds,
                ]
            )
        seeds = len(found["settings"]["seeds"]) - 1
        head = ["network", "accuracy (%)", f"distance, seed {first}", "paper", "with Adam",
                f"distance, {seeds} other seeds: median (range)", "with Adam: median (range)"]  # fmt: skip
        return f"{markdown(head, rows)}\n\nOrder of the paper (a, b < c < d): {cls.order_holds(found)}."

    @classmethod
    def order_holds(cls, found: Found) -> str:
        """Count the seeds for which the distances are in the paper's order."""
        seeds = list(dict.fromkeys(found["settings"]["seeds"]))
        holds = 0
        for seed in seeds:
            a, b, c, d = (records(found, network=v.key, seed=seed)[0]["numbers"]["distance"] for v in VARIANTS)
            holds += max(a, b) < c < d
        return f"{holds} of {len(seeds)} seeds"


def thinned(path: Tensor, step: int = 10) -> Tensor:
    """Return every tenth point of a path, and its end."""
    return torch.cat([path[:-1:step], path[-1:]])


def variant_of(cell: Cell) -> Variant:
    """Return the network of a cell."""
    return next(variant for variant in VARIANTS if variant.key == cell.values["network"])
