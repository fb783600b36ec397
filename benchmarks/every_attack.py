"""All attacks on all defenses: rebuilds people of the drawn faces, then one table with the worst case.

    calor-hf train --defense NAME --output-dir outputs/NAME                  # for every defense
    calor-hf train --role evaluation --num-train-epochs 30 --output-dir outputs/evaluation-model
    python -m benchmarks.every_attack run --target outputs/NAME --prior renderer --output-dir outputs/table \
        --attacks gmi@calor ppa mirror@calor --budget 0.1
    python -m benchmarks.every_attack table --evaluation-model outputs/evaluation-model --output-dir outputs/table >
    table.md

``run`` keeps every attack and goes on where it stopped; several can run side by side. ``table`` judges what is there.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from calor_hf import ATTACKS, HFTarget, __version__, load_generator, run_attack
from calor_hf.attacks.specs import parse_attack
from calor_hf.auditing.networks import Network, load_network
from calor_hf.auditing.options import parse_classes
from calor_hf.auditing.run import RESULT, load_reconstruction
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report_text import interval, percent
from calor_hf.core.seeding import named_rng
from calor_hf.metrics import Measure, mean_over_identities, mean_over_images
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.targets.frozen import frozen


def run(options: argparse.Namespace) -> None:
    """Attack one target with one prior."""
    target = HFTarget.from_pretrained(options.target)
    prior = load_generator(options.prior, image_size=target.image_size[0])
    place = Path(options.output_dir) / Path(options.prior).name / Path(options.target).name
    for word in options.attacks:
        named = parse_attack(word, budget=options.budget)
        begin = time.perf_counter()
        run_attack(
            named.attack, target, prior, parse_classes(options.classes), place / named.name, name=named.kind,
            images_per_class=options.images_per_class, seed=options.seed, target_name=Path(options.target).name,
            resume=True,
        )  # fmt: skip
        print(f"{place / named.name}: {time.perf_counter() - begin:.0f} s", flush=True)


def table(options: argparse.Namespace) -> None:
    """Evaluation model what is there, and print it as Markdown."""
    sources = {Path(source).name: source for source in options.priors}
    root, evaluation_model = Path(options.output_dir), load_network(options.evaluation_model)
    order = sorted({path.parent.name for path in root.glob(f"*/*/*/{RESULT}")})
    rows, notes = [], {}
    for place in sorted({path.parent.parent for path in root.glob(f"*/*/*/{RESULT}")}):
        found = {
            name: load_reconstruction(place / name / RESULT) for name in order if (place / name / RESULT).is_file()
        }
        seen = {name: (one.labels, _scores(evaluation_model, one.images)) for name, one in found.items()}
        cells = []
        for name in order:
            if name not in seen:
                cells.append("")
                continue
            labels, logits = seen[name]
            measure = mean_over_images("", "share", "leakage", topk_correct(logits, labels), labels)
            cells.append(_cell(measure))
            notes[name] = f"`{name}` ({measure.identities} people × {measure.images // measure.identities})"
        rows.append(
            [
                place.parent.name,
                place.name,
                *cells,
                union(seen),
                chance_level_of(sources[place.parent.name], evaluation_model, found),
            ]
        )
    head = ["prior", "defense", *(_title(root, name) for name in order), "worst case: people", "its chance level"]
    for row in [head, ["---"] * len(head), *rows]:
        print("| " + " | ".join(row) + " |")
    print("\n" + ", ".join(notes.values()) + f". calor_hf {__version__}.")


def _cell(measure: Measure) -> str:
    return f"{percent(measure.value, 0)} [{interval(measure, 0).removesuffix(' %')}]"


def _scores(evaluation_model: Network, images: Tensor) -> Tensor:
    logits = evaluation_model.outputs(images)[1]
    if logits is None:
        raise ValueError(
            f"{evaluation_model.name} gives no scores of people; pass a classifier of them as --evaluation-model"
        )
    return logits


def _title(root: Path, name: str) -> str:
    """An attack and its preset, without its settings."""
    record = json.loads(next(root.glob(f"*/*/{name}/attack.json")).read_text(encoding="utf-8"))
    kind = str(record["attack"])
    presets = [preset for preset in ATTACKS.get(kind).presets if name.startswith(f"{kind}-{preset}")]
    return "@".join([kind, *presets])


def union(seen: dict[str, tuple[Tensor, Tensor]], shift: int = 0) -> str:
    """Share of people hit by at least one image of any attack, with its interval; ``shift``: of other people."""
    identities: dict[int, float] = {}
    for labels, logits in seen.values():
        order = labels.unique().tolist()
        wanted = {label: order[(index + shift) % len(order)] for index, label in enumerate(order)}
        meant = torch.tensor([wanted[label] for label in labels.tolist()])
        for label, hit in zip(meant.tolist(), topk_correct(logits, meant).tolist(), strict=True):
            identities[label] = max(identities.get(label, 0.0), hit)
    return _cell(mean_over_identities("", "share", "leakage", identities, len(identities)))


@torch.no_grad()
def chance_level_of(source: str, evaluation_model: Network, found: dict[str, Reconstruction]) -> str:
    """Both chance levels: as many samples of the prior as all attacks made, and what they made of other people."""
    prior = load_generator(source, image_size=next(iter(found.values())).images.shape[-1])
    labels = torch.cat([one.labels for one in found.values()])
    images: list[Tensor] = []
    with frozen(prior):
        for some in labels.split(256):
            latents = prior.sample_latents(
                len(some), named_rng(0, "benchmarks/every_attack/samples", len(images))
            ).float()
            images.append(prior(latents, some if prior.num_classes else None).clamp(0, 1))
    samples = union({"samples": (labels, _scores(evaluation_model, torch.cat(images)))})
    others = union({name: (one.labels, _scores(evaluation_model, one.images)) for name, one in found.items()}, shift=1)
    return f"samples {samples}, other people {others}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run or judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--target")
    parser.add_argument("--prior", default="renderer")
    parser.add_argument("--priors", nargs="+", default=["renderer"], help="of the table: all that were run with")
    parser.add_argument("--evaluation-model")
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
