"""The CALoR paper's two-dimensional example: what a low-rank head with Tanh does to a model inversion attack.

Three Gaussian classes in the plane, one small network, and an attack that uses the network to find a point that looks
like the training data of one class, the orange pentagons. It starts at x_0 = (-3, -10), among the green circles, and
descends the cross entropy of the target class::

    x_{t+1} = x_t - 0.1 * grad_x CE(net(x_t), target),    t = 0 ... 2499.

Leakage is measured by the distance from the end point to the nearest training point of the target class.
Four networks, each 2 -> 20 -> 20 -> 3 with batch normalization before the two hidden activations:

- a: ReLU, ordinary head ``z = W h``;
- b: as a, with Tanh as the second hidden activation;
- c: as a, with a head of rank 2, ``z = W_B (W_A h)``: directions of h outside the two rows of W_A leave no trace in z;
- d: as c, with Tanh between, ``z = W_B tanh(W_A h)``: the gradient of the attack gets the factor
  ``1 - tanh(W_A h)^2``, which training has made small around the data (0.04 and 0.006 at the start).

With weight seed 42 the four distances come out as the paper prints them: 1.67, 1.76, 3.39, 19.33.

Read the last one with care:

- The start is 20.4 away from the nearest pentagon, so at 19.33 the attack hardly moved; it did not go astray.
- It hardly moved because its step is proportional to a small gradient. The same attack with Adam, whose step does not
  depend on the size of the gradient, ends 0.44 away (the dashed path, the column ``Adam``).
- Other weight seeds give very different distances, for every network and both attacks. Over seeds 0 to 9
  (``--seeds 10``) the paper's attack ends at a median (range) of 3.1 (0.9 to 33.8), 1.3 (0.6 to 3.0), 11.0 (0.7 to
  17.6) and 16.3 (2.6 to 20.3), Adam on d at 8.0 (0.1 to 23.4). The order a, b < c < d of the paper holds for 3 of
  these 10 seeds.

The example explains a mechanism; it is no evidence that a model is safe.

Run ``python examples/toy_2d.py --output-dir outputs/toy_2d`` (half a minute on one core). What it does step by step is
in ``examples/paper/studies/toy_2d.py``, one file from the data to the figure; ``python -m examples.paper toy_2d`` runs
the same and stores every number.

Source:
    Yu et al., "CALoR: Towards Comprehensive Model Inversion Defense", 2024, arXiv:2410.05814. The paper does not give
    the configuration; this one reproduces its four numbers. Network, data and seeds were found by us; Adam is ours.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples.paper.studies.toy_2d import VARIANTS, Outcome, Toy2D, Variant, draw_outcomes, make_blobs, run


def label(variant: Variant) -> str:
    """Label of a table row."""
    return f"{variant.key}  {variant.title}"


def table(outcomes: Sequence[Outcome]) -> str:
    """Format the four distances next to the paper's."""
    lines = [f"{'network':<26}{'accuracy':>9}{'confidence':>12}{'distance':>10}{'paper':>8}{'Adam':>8}"]
    for o in outcomes:
        row = f"{label(o.variant):<26}{o.accuracy:>9.1%}{o.confidence:>12.3f}{o.distance:>10.2f}{o.variant.paper:>8.2f}"
        lines.append(f"{row}{o.adam_distance:>8.2f}")
    return "\n".join(lines)


def summary(runs: Sequence[Sequence[Outcome]]) -> str:
    """Format median and range of the distances over weight seeds, and how often the paper's order holds.

    Args:
        runs: Outcomes of each seed, in the order of ``VARIANTS``.
    """
    lines = [f"{'network':<26}{'distance: median (range)':>26}{'Adam: median (range)':>26}"]
    for outcomes in zip(*runs, strict=True):
        row = f"{label(outcomes[0].variant):<26}"
        for values in ([o.distance for o in outcomes], [o.adam_distance for o in outcomes]):
            row += f"{f'{median(values):.2f} ({min(values):.2f} to {max(values):.2f})':>26}"
        lines.append(row)
    holds = sum(max(a.distance, b.distance) < c.distance < d.distance for a, b, c, d in runs)
    lines.append(f"order of the paper (a, b < c < d): {holds} of {len(runs)} seeds")
    return "\n".join(lines)


def save_figure(outcomes: Sequence[Outcome], points: Tensor, labels: Tensor, file: Path) -> None:
    """Draw the four networks into a file."""
    figure = Figure(figsize=Toy2D.size, layout="constrained")
    draw_outcomes(outcomes, points, labels, figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
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
    torch.set_num_threads(1)  # more threads are slower for such small tensors
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
        print(summary(runs))


if __name__ == "__main__":
    main()
