"""The CALoR paper's two-dimensional example: what a low-rank head with Tanh does to a model inversion attack.

Three Gaussian classes in the plane, one small network, and an attacker who holds the network and wants a point that
looks like the training data of one class, the orange pentagons. He starts at x_0 = (-3, -10), among the green circles,
and descends the cross entropy of the target class::

    x_{t+1} = x_t - 0.1 * grad_x CE(net(x_t), target),    t = 0 ... 2499.

What leaks is measured by the distance from the point where he ends to the nearest training point of the target class.
Four networks, each 2 -> 20 -> 20 -> 3 with batch normalisation before the two hidden activations:

- a: ReLU, ordinary head ``z = W h``;
- b: as a, with Tanh as the second hidden activation;
- c: as a, with a head of rank 2, ``z = W_B (W_A h)``: directions of h outside the two rows of W_A leave no trace in z;
- d: as c, with Tanh between, ``z = W_B tanh(W_A h)``: the attacker's gradient now carries the factor
  ``1 - tanh(W_A h)^2``, which training has made small around the data (0.04 and 0.006 at the start).

With weight seed 42 the four distances come out as the paper prints them: 1.67, 1.76, 3.39, 19.33.

Read the last one with care:

- The start is 20.4 away from the nearest pentagon, so 19.33 says that the attacker hardly moved, not that he went
  wrong.
- He hardly moved because his step is proportional to a gradient that has become small. The same attack with Adam, whose
  step does not depend on the size of the gradient, ends 0.44 away (the dashed path, the column ``Adam``).
- Other weight seeds give very different distances, for every network and both attacks. Over seeds 0 to 9
  (``--seeds 10``) the paper's attack ends at a median (range) of 3.1 (0.9 to 33.8), 1.3 (0.6 to 3.0), 11.0 (0.7 to
  17.6) and 16.3 (2.6 to 20.3), Adam on d at 8.0 (0.1 to 23.4). The order a, b < c < d of the paper holds for 3 of
  these 10 seeds.

The example explains a mechanism; it is no evidence that a model is safe.

Run ``python examples/toy_2d.py --output-dir outputs/toy_2d`` (half a minute on one core).

Source:
    Yu et al., "CALoR: Towards Comprehensive Model Inversion Defense", 2024, arXiv:2410.05814. The paper does not give
    the configuration; this one reproduces its four numbers. Network, data and seeds were found by us; Adam is ours.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.layers.low_rank_head import LowRankHead

CENTRES = ((0.0, -10.0), (-10.0, 10.0), (10.0, 10.0))  # circles, squares, pentagons
SPREAD = 1.6
SAMPLES = 500
DATA_SEED = 17
WEIGHT_SEED = 42
HIDDEN = 20
START = (-3.0, -10.0)  # among the circles
TARGET = 2  # the pentagons


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the four networks, and the distance that the paper prints for it."""

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
    """A trained network and what the attack on it reached."""

    variant: Variant
    net: nn.Sequential
    accuracy: float  # on the training data, in [0, 1]
    path: Tensor  # (steps + 1, 2), start to end
    confidence: float  # of the target class at the end of the path
    distance: float  # from the end of the path to the nearest training point of the target class
    adam_path: Tensor  # the same with Adam in place of plain gradient descent
    adam_distance: float


def make_blobs() -> tuple[Tensor, Tensor]:
    """Draw the training data; number for number those of ``sklearn.datasets.make_blobs``, without needing it.

    Returns:
        Points (500, 2) float32 and labels (500,) int64 in [0, 3).
    """
    rng = np.random.RandomState(DATA_SEED)
    sizes = [SAMPLES // len(CENTRES) + (k < SAMPLES % len(CENTRES)) for k in range(len(CENTRES))]
    points = np.concatenate([rng.normal(c, SPREAD, size=(n, 2)) for c, n in zip(CENTRES, sizes, strict=True)])
    labels = np.repeat(np.arange(len(CENTRES)), sizes)
    order = np.arange(SAMPLES)
    rng.shuffle(order)
    return torch.from_numpy(points[order]).float(), torch.from_numpy(labels[order]).long()


def build_net(variant: Variant, seed: int) -> nn.Sequential:
    """Network of one variant, (batch, 2) to (batch, 3) logits, with weights drawn from ``seed``."""
    torch.manual_seed(seed)
    classes = len(CENTRES)
    body = [nn.Linear(2, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN)]
    if variant.head_activation is None:
        head: nn.Module = nn.Linear(HIDDEN, classes, bias=False)
    else:
        head = LowRankHead(HIDDEN, classes, rank=2, activation=variant.head_activation, bias=False)
    return nn.Sequential(*body, variant.last_activation(), head)


def train(net: nn.Module, points: Tensor, labels: Tensor, iterations: int = 5000) -> None:
    """Fit ``net`` with cross entropy over the whole data set at every step; leaves it in eval mode."""
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


def run(variant: Variant, points: Tensor, labels: Tensor, seed: int = WEIGHT_SEED) -> Outcome:
    """Train one network, attack it, and measure how near the attacker came."""
    net = build_net(variant, seed)
    train(net, points, labels)
    path, adam_path = attack(net, "sgd"), attack(net, "adam")
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


def name(variant: Variant) -> str:
    """Label of a table row."""
    return f"{variant.key}  {variant.title}"


def table(outcomes: Sequence[Outcome]) -> str:
    """The four distances beside the paper's, as text."""
    lines = [f"{'network':<26}{'accuracy':>9}{'confidence':>12}{'distance':>10}{'paper':>8}{'Adam':>8}"]
    for o in outcomes:
        row = f"{name(o.variant):<26}{o.accuracy:>9.1%}{o.confidence:>12.3f}{o.distance:>10.2f}{o.variant.paper:>8.2f}"
        lines.append(f"{row}{o.adam_distance:>8.2f}")
    return "\n".join(lines)


def spread(runs: Sequence[Sequence[Outcome]]) -> str:
    """Median and range of the distances over weight seeds, and how often the paper's order holds.

    Args:
        runs: For each seed its outcomes, in the order of ``VARIANTS``.
    """
    lines = [f"{'network':<26}{'distance: median (range)':>26}{'Adam: median (range)':>26}"]
    for outcomes in zip(*runs, strict=True):
        row = f"{name(outcomes[0].variant):<26}"
        for values in ([o.distance for o in outcomes], [o.adam_distance for o in outcomes]):
            row += f"{f'{median(values):.2f} ({min(values):.2f} to {max(values):.2f})':>26}"
        lines.append(row)
    holds = sum(max(a.distance, b.distance) < c.distance < d.distance for a, b, c, d in runs)
    lines.append(f"order of the paper (a, b < c < d): {holds} of {len(runs)} seeds")
    return "\n".join(lines)


def save_figure(outcomes: Sequence[Outcome], points: Tensor, labels: Tensor, file: Path) -> None:
    """Draw the four networks: confidence of the target class, training points, the attacker's paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    x, y = np.meshgrid(np.linspace(-17, 17, 240), np.linspace(-17, 17, 240))
    grid = torch.from_numpy(np.stack([x, y], axis=-1)).float().flatten(0, 1)
    # Okabe and Ito's colours keep apart under every common colour blindness; the marks differ as well.
    marks = (("o", "#009E73", "circles"), ("s", "#56B4E9", "squares"), ("p", "#E69F00", "pentagons (target)"))
    greys = mpl.colors.LinearSegmentedColormap.from_list("greys", ["#ffffff", "#9a9a9a"])

    fig, axes = plt.subplots(2, 2, figsize=(9.4, 9), sharex=True, sharey=True, layout="constrained")
    for ax, o in zip(axes.flat, outcomes, strict=True):
        with torch.no_grad():
            logits = o.net(grid)
        confidence = logits.softmax(dim=-1)[:, TARGET].reshape(x.shape)
        shade = ax.contourf(x, y, confidence, levels=np.linspace(0, 1, 11), cmap=greys)
        for k, (marker, colour, label) in enumerate(marks):
            lead = logits[:, k] - logits[:, [j for j in range(len(marks)) if j != k]].amax(dim=-1)
            ax.contour(x, y, lead.reshape(x.shape), levels=[0.0], colors="#555555", linewidths=0.9, linestyles="dotted")
            xy = points[labels == k]
            ax.scatter(*xy.T, s=24, marker=marker, color=colour, edgecolor="black", linewidth=0.4, label=label)
        for path, colour, style, marker, size, label in (
            (o.adam_path, "#CC79A7", (0, (4, 2)), "X", 11, "attack with Adam"),
            (o.path, "#D55E00", "solid", "*", 18, "the paper's attack"),
        ):
            ax.plot(*path.T, color=colour, linewidth=2.2, linestyle=style, label=label)
            ax.plot(*path[-1], marker=marker, markersize=size, color=colour, markeredgecolor="black", zorder=4)
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
    file.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(file, dpi=100)
    plt.close(fig)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of the example."""
    parser = argparse.ArgumentParser(description="The CALoR paper's two-dimensional example.")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/toy_2d"), help="folder of the figure")
    parser.add_argument("--seeds", type=int, default=0, help="repeat with this many other weight seeds (0.5 min each)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing figure")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the example from the command line."""
    args = parse_args(argv)
    file = args.output_dir / "toy_2d.png"
    if file.exists() and not args.overwrite:
        raise SystemExit(f"{file} exists; pass --overwrite to replace it, or another --output-dir")
    torch.set_num_threads(1)  # the tensors are tiny: more threads only cost time
    points, labels = make_blobs()
    outcomes = [run(variant, points, labels) for variant in VARIANTS]
    print(table(outcomes))
    save_figure(outcomes, points, labels, file)
    print(f"figure: {file}")
    if args.seeds:
        runs = []
        for seed in range(args.seeds):
            runs.append([run(variant, points, labels, seed) for variant in VARIANTS])
            print(f"seed {seed}: " + ", ".join(f"{o.variant.key} {o.distance:.2f}" for o in runs[-1]), flush=True)
        print(spread(runs))


if __name__ == "__main__":
    main()
