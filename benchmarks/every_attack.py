"""All attacks on all defences: rebuilds people of the drawn faces, then one table with the worst case.

    calor-hf train --defense NAME --output-dir outputs/NAME                  # for every defence
    calor-hf train --role judge --num-train-epochs 30 --output-dir outputs/judge
    python -m benchmarks.every_attack run --target outputs/NAME --prior renderer --output-dir outputs/table \
        --attacks gmi@calor ppa mirror@calor --budget 0.1
    python -m benchmarks.every_attack table --judge outputs/judge --output-dir outputs/table > table.md

``run`` keeps every attack and goes on where it stopped; several can run side by side. ``table`` judges what is there.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from calor_hf import HFTarget, __version__, load_generator, run_attack
from calor_hf.attacks._words import attack_of
from calor_hf.auditing.networks import Network, load_network
from calor_hf.auditing.run import RESULT, load_reconstruction
from calor_hf.auditing.verdict import interval, percent
from calor_hf.cli.audit import parse_classes
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.seeding import sample_rng
from calor_hf.layers.frozen import frozen
from calor_hf.metrics import Measure
from calor_hf.metrics.attack_accuracy import hits


def run(options: argparse.Namespace) -> None:
    """Attack one target with one prior."""
    target = HFTarget.from_pretrained(options.target)
    prior = load_generator(options.prior, image_size=target.image_size[0])
    place = Path(options.output_dir) / Path(options.prior).name / Path(options.target).name
    for word in options.attacks:
        name, kind, attack = attack_of(word, budget=options.budget)
        begin = time.perf_counter()
        run_attack(
            attack, target, prior, parse_classes(options.classes, 64), place / name, name=kind,
            images_per_class=options.images_per_class, seed=options.seed, target_name=Path(options.target).name,
            resume=True,
        )  # fmt: skip
        print(f"{place / name}: {time.perf_counter() - begin:.0f} s", flush=True)


def table(options: argparse.Namespace) -> None:
    """Judge what is there, and print it as Markdown."""
    root, judge = Path(options.output_dir), load_network(options.judge)
    names = sorted({path.parent.name for path in root.glob(f"*/*/*/{RESULT}")})
    sources = {Path(source).name: source for source in options.priors}
    rows, notes = [], {}
    for place in sorted({path.parent.parent for path in root.glob(f"*/*/*/{RESULT}")}):
        found = {
            name: load_reconstruction(place / name / RESULT) for name in names if (place / name / RESULT).is_file()
        }
        seen = {name: (one.labels, judge.look(one.images)[1]) for name, one in found.items()}
        cells = []
        for name in names:
            if name not in seen:
                cells.append("")
                continue
            labels, logits = seen[name]
            assert logits is not None
            measure = Measure.of_images("", "share", "leakage", hits(logits, labels), labels)
            cells.append(f"{percent(measure.value)} [{interval(measure)}]")
            notes[name] = (
                f"`{name}`: {measure.people} people × {measure.images // measure.people}, {_effort(place / name)}"
            )
        worst = union({name: pair for name, pair in seen.items() if pair[1] is not None})
        floor = floor_of(sources[place.parent.name], judge, found)
        rows.append([place.parent.name, place.name, *cells, f"{worst} (floor {floor})"])
    head = ["prior", "defence", *names, "worst case: people"]
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")
    print("\n" + "; ".join(notes.values()) + f". calor_hf {__version__}.")


def union(seen: dict[str, tuple[Tensor, Tensor | None]], shift: int = 0) -> str:
    """Share of people whom at least one image of any attack hits, with its interval; ``shift``: of other people."""
    people: dict[int, float] = {}
    for labels, logits in seen.values():
        assert logits is not None
        order = labels.unique().tolist()
        wanted = {label: order[(index + shift) % len(order)] for index, label in enumerate(order)}
        meant = torch.tensor([wanted[label] for label in labels.tolist()])
        for label, hit in zip(meant.tolist(), hits(logits, meant).tolist(), strict=True):
            people[label] = max(people.get(label, 0.0), hit)
    measure = Measure.of_people("", "share", "leakage", people, len(people))
    return f"{percent(measure.value)} [{interval(measure)}]"


@torch.no_grad()
def floor_of(source: str, judge: Network, found: dict[str, Reconstruction]) -> str:
    """The larger floor: as many samples of the prior as all attacks made, or what they made of other people."""
    prior = load_generator(source, image_size=next(iter(found.values())).images.shape[-1])
    labels = torch.cat([one.labels for one in found.values()])
    images: list[Tensor] = []
    with frozen(prior):
        for some in labels.split(256):
            latents = prior.sample_latents(len(some), sample_rng(0, 98, len(images))).float()
            images.append(prior(latents, some if prior.num_classes else None).clamp(0, 1))
    samples = union({"samples": (labels, judge.look(torch.cat(images))[1])})
    others = union({name: (one.labels, judge.look(one.images)[1]) for name, one in found.items()}, shift=1)
    return f"{samples.split(' [')[0]} of samples, {others.split(' [')[0]} of other people's"


def _effort(place: Path) -> str:
    record = json.loads((place / "attack.json").read_text(encoding="utf-8"))
    cost = record["cost"]
    return f"{cost['target_passes'] / record['images']:,.0f} passes an image"


def main(argv: Sequence[str] | None = None) -> None:
    """Run or judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--target")
    parser.add_argument("--prior", default="renderer")
    parser.add_argument("--priors", nargs="+", default=["renderer"], help="of the table: all that were run with")
    parser.add_argument("--judge")
    parser.add_argument("--attacks", nargs="+", default=[])
    parser.add_argument("--budget", default="paper")
    parser.add_argument("--classes", default="0-19")
    parser.add_argument("--images-per-class", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", required=True)
    options = parser.parse_args(argv)
    (run if options.action == "run" else table)(options)


if __name__ == "__main__":
    main()
