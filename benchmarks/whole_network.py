"""Defenses of a face network all of whose weights were trained on private people, attacked over a prior of its own.

    python -m benchmarks.real_defenses public --data DATA --output outputs/public.parquet
    python -m benchmarks.whole_network run --data DATA --public outputs/public.parquet --output-dir outputs/whole
    python -m benchmarks.whole_network table --output-dir outputs/whole --output docs/results/whole_network.json

``DATA`` holds the face sets. Each cell is a JSON file that the same command does not compute again; ``models``,
``priors`` and ``images`` in the output folder hold what was learned from people, and what was rebuilt of them.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks import real_defenses
from benchmarks.decoy_controls import parsers
from benchmarks.decoy_faces import SETTINGS, loaded, number_of, per_person
from benchmarks.face_classifier import face_processor
from benchmarks.frontier import Identified, by_seed, compared
from benchmarks.real_defenses import (
    ADAPTIVE,
    ATTACKS,
    DISTANCE,
    EACH,
    MEASURES,
    MEMBERSHIP,
    PAIRED,
    Judge,
    World,
    attacked,
    gather,
    ridge_prior,
    slug,
    through_stages,
    told,
    untrained,
)
from calor_hf import HFTarget, load_generator
from calor_hf._version import __version__
from calor_hf.core.files import write_json
from calor_hf.core.report_text import table
from calor_hf.data.loading import load_public_images
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.membership import membership
from calor_hf.modeling import DefendedForImageClassification

SETTING = SETTINGS["bolly100, k = 4"]
MODELS: dict[str, dict[str, Any]] = {
    "none": {}, "calor, rank 20": {"rank": 20}, "calor, rank 8": {"rank": 8}, "calor, rank 4": {"rank": 4},
    "label_smoothing": {"alpha": -0.5}, "mid": {"beta": 0.01},
    "bido": {"lambda_out": 30.0, "layers": ("classifier",)}, "decoys": {"k": 4},
}  # fmt: skip
"""Settings of each model, whose name begins with its defense; the first is what others are compared with."""
FIRST = next(iter(MODELS))
RATES = {"learning_rate": 3e-4, "weight_decay": 0.05, "num_train_epochs": 5, "adapt_epochs": 1,
         "per_device_train_batch_size": 64}  # fmt: skip
"""Training of all weights, which goes on from the network as it is and a head trained on its features."""


def trained(world: World, model: str, seed: int, data: Path) -> DefendedForImageClassification:
    """Train a head on features of network A as it is, and then all weights on images and their mirror images."""
    defense, settings = model.split(",")[0], MODELS[model]
    own, k = world.dealt if defense == "decoys" else world.alone, int(settings.get("k", 1))
    start = real_defenses.trained(world, defense, settings, seed, data)
    whole = untrained(world, defense, settings, data, frozen=False)
    whole.load_state_dict(start.state_dict())
    images = world.people["train"][own.rows] / 127.5 - 1
    shown = Identified(torch.cat([images, images.flip(3)]), own.identities.repeat(2), k)
    epochs = {"num_train_epochs": RATES["num_train_epochs"] / k}  # as many steps with decoys
    return through_stages(whole, shown, Identified(images, own.identities, k), seed, **RATES | epochs)


def target_of(world: World, model: str, seed: int, options: argparse.Namespace) -> HFTarget:
    """Model as an attack sees it, trained if it is not in its folder yet."""
    place = options.output_dir / "models" / slug(model, seed)
    if not (place / "config.json").is_file():
        trained(world, model, seed, options.data).save_pretrained(place)
        face_processor().save_pretrained(place)
    return HFTarget.from_pretrained(str(place))


def of_people(target: HFTarget, world: World, model: str) -> dict[str, Any]:
    """Accuracy of each private person on test images, and membership inference by the loss."""
    people, own = world.people, world.dealt if model.startswith("decoys") else world.alone
    _, owner, mine = world.test()
    trained_on = number_of(world.dealt.people, people["train/people"][own.rows])
    ours = trained_on < SETTING.private
    torch.manual_seed(0)  # the noise of MID
    with torch.no_grad():
        seen, held = (
            torch.cat([target(some / 255) for some in images.split(128)])
            for images in (people["train"][own.rows[ours]], people["test"][mine])
        )
    accuracy = per_person(topk_correct(held, owner[mine]), owner[mine])
    return {"accuracy": accuracy, MEMBERSHIP: membership(seen, trained_on[ours], held, owner[mine])[0].value}


def run(options: argparse.Namespace) -> None:
    """Compute the cells that have no file, training by training."""
    torch.set_num_threads(1)
    disable_progress_bar()
    kept = options.kept or options.output_dir / "kept"
    people, images = loaded(SETTING.people, options.data, kept), load_public_images(str(options.public), 64)
    for folder in ("cells", "images"):
        (options.output_dir / folder).mkdir(parents=True, exist_ok=True)
    for seed, model in itertools.product(options.seeds, options.models):
        files = {
            attack: options.output_dir / "cells" / f"{slug(seed, attack, model)}.json" for attack in options.attacks
        }
        left = {attack: file for attack, file in files.items() if not file.is_file()}
        if not left:
            continue
        begin, world = time.process_time(), World.of(people, SETTING, seed)
        target, judge = target_of(world, model, seed, options), Judge.of(world, options.data)
        known = {"seed": seed, "model": model, "settings": MODELS[model], "version": __version__}
        known |= of_people(target, world, model)
        prior = prior_of(target, images, options.output_dir / "priors" / slug(seed, model))
        for attack, file in left.items():
            spec = ADAPTIVE.get(model, ATTACKS[attack]) if attack == "adaptive" else ATTACKS[attack]
            place = options.output_dir / "images" / f"{file.stem}.safetensors"
            found = known | {"attack": attack} | attacked(target, world, judge, prior, spec, EACH, seed, place)
            write_json(file, found)
            numbers = " ".join(f"{name} {100 * np.mean(found[name]):.1f} %," for name in ("accuracy", *MEASURES[:4]))
            print(f"{file.stem}: {numbers} {time.process_time() - begin:.0f} s of processor time", flush=True)


def prior_of(target: HFTarget, images: Any, folder: Path) -> Any:
    """The prior of a model, fitted if it is not in its folder yet."""
    if not (folder / "config.json").is_file():
        ridge_prior(target, images, folder, len(images) // 128)
    return load_generator(str(folder), image_size=64)


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, and print the table."""
    print(tables(gather(options.output_dir / "cells", "*.json", options.output)))


def tables(cells: list[dict[str, Any]]) -> str:
    """The table of docs/results/whole_network.md."""
    rows = []
    for attack, model in itertools.product(ATTACKS, MODELS):
        some, first = by_seed(cells, attack, model), by_seed(cells, attack, FIRST) or by_seed(cells, "plg", FIRST)
        if not some:
            continue
        parts = [part for name in ("accuracy", *PAIRED) for part in compared(some, first, name)]
        rest = [f"{np.mean([np.mean(one[name]) for one in some.values()]):.2f}" for name in (DISTANCE, MEMBERSHIP)]
        rows.append([attack, model, told(MODELS[model]), str(len(some)), *parts, *rest])
        if model == FIRST:
            samples = {seed: one["samples"] for seed, one in some.items()}
            chance = [part for name in PAIRED for part in compared(samples, {}, name)]
            rows.append([attack, "samples of the prior", "", str(len(some)), "", "", *chance, "", ""])
    titles = [part for name in ("test accuracy", *PAIRED) for part in (name, "points against none")]
    return table(["whole network: attack", "model", "settings", "trainings", *titles, "δ", "membership AUC"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser, command = parsers("python -m benchmarks.whole_network", __doc__, run, summarize)
    command.add_argument("--data", type=Path, required=True, help="folder of the face sets")
    command.add_argument("--public", type=Path, required=True, help="parquet file of public faces")
    command.add_argument("--kept", type=Path, help="what the networks see of images; default: OUTPUT_DIR/kept")
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="trainings, in this order")
    command.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    command.add_argument("--attacks", nargs="+", choices=("plg", "adaptive", "auto"), default=["plg"])
    options = parser.parse_args(argv)
    options.step(options)


if __name__ == "__main__":
    main()
