"""Leaked identity by what a network was pre-trained on, times the defense, on real faces.

    python -m benchmarks.real_defenses public --data DATA --output outputs/public.parquet
    calor-hf prior --dataset outputs/public.parquet --image-size 32 \
        --settings width=32 discriminator_steps=1 batch_size=32 lr=5e-4 steps=7052 --output-dir outputs/prior
    python -m benchmarks.pretraining run --data DATA --public outputs/public.parquet --prior outputs/prior \
        --output-dir outputs/pretraining
    python -m benchmarks.pretraining table --output-dir outputs/pretraining --output docs/results/pretraining.json

``DATA`` holds the face sets. Each cell is a JSON file that the same command does not compute again; ``pretrained``,
``models`` and ``images`` in the output folder hold what was learned from people, and what was rebuilt of them.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.utils.logging import disable_progress_bar

from benchmarks import real_defenses
from benchmarks.decoy_controls import parsers
from benchmarks.decoy_faces import Classes, Setting, per_person
from benchmarks.face_classifier import face_processor
from benchmarks.frontier import Identified, compared
from benchmarks.mobilefacenet import Embedding
from benchmarks.real_defenses import ATTACKS, GAN, World, as_lfw, ridge_prior, slug
from benchmarks.real_faces import vary
from benchmarks.real_faces_audit import Cached, embed, fit, load_images, samples_of
from calor_hf import HFTarget, load_generator
from calor_hf._version import __version__
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.files import write_figure, write_json, write_whole
from calor_hf.core.report_text import table
from calor_hf.core.seeding import named_rng
from calor_hf.data.loading import load_public_images
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.identification_game import log_odds
from calor_hf.metrics.statistics import pooled_interval, share_interval
from calor_hf.modeling import DefendedForImageClassification, defend

PEOPLE, EACH = 96, 2
"""Classes of a model, and images of each class that is attacked."""
FACE_NETWORK = "face network, frozen"


@dataclass(frozen=True)
class Network:
    """A network in front of the classifier.

    Attributes:
        epochs: Epochs on the private people, by the trainer.
        attacked: Number of people that are attacked.
        by_a: Whether it knows network A, which then cannot judge.
    """

    epochs: int
    attacked: int = PEOPLE
    by_a: bool = False


NETWORKS = {
    "random weights": Network(30), "attributes": Network(12), "identity": Network(12, by_a=True),
    FACE_NETWORK: Network(30, 20, by_a=True),
}  # fmt: skip
"""Small ResNet from random weights; pre-trained on attributes of public faces; on the answers of A to the same faces;
and A itself."""
DEFENSES: dict[str, dict[str, Any]] = {
    "none": {}, "calor": {"rank": 48}, "label_smoothing": {"alpha": -0.05}, "mid": {"beta": 0.01},
}  # fmt: skip
"""Settings of each defense; the first is what others are compared with."""
FIRST = next(iter(DEFENSES))
RIDGE = ", ridge prior"
"""The undefended models are attacked over the prior `ridge`, too."""
ROWS = (*DEFENSES, FIRST + RIDGE)
RATES = {"learning_rate": 2e-3, "adapt_epochs": 5, "per_device_train_batch_size": 32}
LOW_RANK = {"learning_rate": 8e-3}
"""The same for low-rank heads, which learn more slowly; they have twice the epochs, too."""
PRETRAINING = (25, 3e-3)
"""Epochs and learning rate on public faces."""
SAME_IMAGES = ("identity", FIRST, 100)
"""Network, defense and seed of a classifier of the private images, that also judges: a warning."""


# Networks


def small_network(outputs: int) -> ResNetForImageClassification:
    """Small ResNet with random weights, as the library's own."""
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic", num_labels=outputs
    )
    return ResNetForImageClassification(config)


def of_attributes(scores: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of gender and of race, and squared error of the age in units of 20 years."""
    gender, race, age = scores.split([2, 5, 1], dim=1)
    return (
        F.cross_entropy(gender, wanted[:, 0].long())
        + F.cross_entropy(race, wanted[:, 1].long())
        + F.mse_loss(age[:, 0], wanted[:, 2])
    )


def of_identity(scores: Tensor, wanted: Tensor) -> Tensor:
    """Distance from the answers of a face network."""
    return 1 - F.cosine_similarity(scores, wanted).mean()


def pretrained(name: str, options: argparse.Namespace) -> Path:
    """Folder of a network that learned public faces: both ways see the same images in the same steps."""
    place: Path = options.output_dir / "pretrained" / name
    if (place / "config.json").is_file():
        return place
    public = load_dataset("parquet", data_files=str(options.data / "utk_public_64" / "train.parquet"), split="train")
    images = torch.stack([torch.from_numpy(np.array(as_lfw(one))) for one in public["image"]])
    images = images.permute(0, 3, 1, 2).float() / 255
    loss: Callable[[Tensor, Tensor], Tensor]
    if name == "identity":
        wanted, loss = embed(Embedding(options.data, "A"), images), of_identity
    else:
        of = [public["label"], public["race"], (np.array(public["age"]) - 40) / 20]
        wanted, loss = torch.stack([torch.tensor(np.array(one)).float() for one in of], 1), of_attributes
    torch.manual_seed(0)
    network: Any = small_network(128 if name == "identity" else 8).to(memory_format=torch.channels_last)

    def seen(x: Tensor, y: Tensor) -> Tensor:
        return loss(network(pixel_values=2 * vary(x, torch.rand(len(x), 6)) - 1).logits, y)

    fit(network, Cached(images, wanted), [(seen, *PRETRAINING)], 0.05, 64)
    network.save_pretrained(place)
    return place


class Varied(Identified):
    """Varied images in [-1, 1] with labels, from images in [0, 1]."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = vary(self.inputs[index, None], torch.rand(1, 6))[0]
        return super().__getitem__(index) | {"pixel_values": 2 * one - 1}


# People


def loaded(data: Path, folder: Path) -> World:
    """The 96 people, each a class; what the face networks see in them is kept in ``folder``."""
    file = folder / "people.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (train, labels), (test, tested) = (
            load_images(data / "lfw96_64" / f"{split}.parquet") for split in ("train", "test")
        )
        a, b = Embedding(data, "A"), Embedding(data, "B")
        found = {
            "train": train, "train/people": labels, "train/A": embed(a, train), "train/B": embed(b, train),
            "train/mirrored": embed(a, train.flip(3)), "test": test, "test/people": tested, "test/A": embed(a, test),
        }  # fmt: skip
        write_whole(file, save({name: of.contiguous() for name, of in found.items()}))
    people = load_file(file)
    every = torch.arange(PEOPLE)
    labels = people["train/people"]
    classes = Classes(torch.arange(len(labels)), labels, torch.zeros_like(every), every, every)
    return World(Setting("lfw96", PEOPLE, 1, 4.0, 0, 0), people, classes, classes)


def trained(
    name: str, defense: str, world: World, seed: int, options: argparse.Namespace
) -> DefendedForImageClassification:
    """Train a model by the library's trainer: of the face network the head, of others all weights."""
    settings = DEFENSES[defense]
    if name == FACE_NETWORK:
        return real_defenses.trained(world, defense, settings, seed, options.data)
    low_rank = "rank" in settings
    torch.manual_seed(seed)
    base: Any = small_network(PEOPLE) if name == "random weights" else ResNetForImageClassification.from_pretrained(
        pretrained(name, options), num_labels=PEOPLE, ignore_mismatched_sizes=True
    )  # fmt: skip
    model: Any = defend(base, defense, **settings).to(memory_format=torch.channels_last)
    images, labels = world.people["train"], world.people["train/people"]
    rates = RATES | (LOW_RANK if low_rank else {}) | {"num_train_epochs": NETWORKS[name].epochs * (1 + low_rank)}
    evaluated = Identified(2 * images - 1, labels, 1)
    return real_defenses.through_stages(model, Varied(images, labels, 1), evaluated, seed, **rates)


def target_of(name: str, defense: str, world: World, seed: int, options: argparse.Namespace) -> HFTarget:
    """Model as an attack sees it, trained if it is not in its folder yet."""
    place = options.output_dir / "models" / slug(name, defense, seed)
    if not (place / "config.json").is_file():
        trained(name, defense, world, seed, options).save_pretrained(place)
        face_processor().save_pretrained(place)
    target = HFTarget.from_pretrained(str(place))
    target.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return target


def accuracy(target: HFTarget, name: str, world: World) -> list[float]:
    """Accuracy of each person on test images."""
    inputs = world.people["test/A"] if name == FACE_NETWORK else 2 * world.people["test"] - 1
    torch.manual_seed(0)  # the noise of MID
    with torch.no_grad():
        right = topk_correct(cast(Any, target.module)(pixel_values=inputs).logits, world.people["test/people"])
    return per_person(right, world.people["test/people"])


# Cells


@dataclass(frozen=True)
class Judges:
    """Networks A and B with the (96, 128) means of all people, and a classifier of the same private images."""

    nets: dict[str, Embedding]
    means: dict[str, Tensor]
    classifier: HFTarget

    @classmethod
    def of(cls, world: World, options: argparse.Namespace) -> "Judges":
        """Means are those of training images."""
        nets, means = {name: Embedding(options.data, name) for name in "AB"}, {}
        for name in nets:
            seen = F.normalize(world.people[f"train/{name}"])
            means[name] = torch.stack([seen[world.people["train/people"] == one].mean(0) for one in range(PEOPLE)])
        network, defense, seed = SAME_IMAGES
        return cls(nets, means, target_of(network, defense, world, seed, options))

    def measured(self, target: HFTarget, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
        """By judge and person: share of the images, and whether the one that the target likes best is right."""
        torch.manual_seed(0)  # the noise of MID
        with torch.no_grad():
            answers = {"target": target(images), "same images": self.classifier(images)}
            for name, net in self.nets.items():
                answers[name] = F.normalize(embed(net, images)) @ F.normalize(self.means[name]).T
        chosen = log_odds(answers["target"], labels).view(-1, EACH).argmax(1, keepdim=True)
        found: dict[str, Tensor] = {}
        for name, scores in answers.items():
            right = (scores.argmax(1) == labels).view(-1, EACH).double()
            found |= {f"images, {name}": right.mean(1), f"best guess, {name}": right.gather(1, chosen)[:, 0]}
        return {name: [round(one, 4) for one in of.tolist()] for name, of in found.items()}


def run(options: argparse.Namespace) -> None:
    """Compute the cells that have no file, training by training."""
    torch.set_num_threads(1)
    disable_progress_bar()
    world = loaded(options.data, options.output_dir)
    prior, judges = load_generator(str(options.prior), image_size=64), Judges.of(world, options)
    write_json(options.output_dir / "same_images.json", {"accuracy": accuracy(judges.classifier, "", world)})
    (options.output_dir / "images").mkdir(exist_ok=True)
    (options.output_dir / "cells").mkdir(exist_ok=True)
    plan = [(defense, "") for defense in options.defenses] + [(FIRST, RIDGE)] * (FIRST in options.defenses)
    for seed, name, (defense, over) in itertools.product(options.seeds, options.networks, plan):
        file, begin = options.output_dir / "cells" / f"{slug(seed, name, defense + over)}.json", time.process_time()
        if file.is_file():
            continue
        target = target_of(name, defense, world, seed, options)
        found = {"accuracy": accuracy(target, name, world)}
        mine = prior
        if over:
            folder = options.output_dir / "ridge" / slug(name, seed)
            mine = ridge_prior(target, load_public_images(str(options.public), 64), folder, 60, overwrite=True)
        classes, attack = range(NETWORKS[name].attacked), parse_attack(ATTACKS["plg" if over else GAN]).attack
        with tempfile.TemporaryDirectory() as place:
            attack.prepare_for(target, mine, None, Path(place), seed)
            rebuilt = attack.run(target, mine, classes, images_per_class=EACH, seed=seed)
        images = rebuilt.images.float()
        write_whole(options.output_dir / "images" / f"{file.stem}.safetensors",
                    save({"images": (255 * images).round().byte()}))  # fmt: skip
        found |= judges.measured(target, images, rebuilt.labels)
        samples = samples_of(mine, len(images), named_rng(seed, "benchmarks/pretraining/samples"))
        known = {"seed": seed, "network": name, "defense": defense + over, "settings": DEFENSES[defense],
                 "version": __version__}  # fmt: skip
        if defense == FIRST:
            known["samples"] = judges.measured(target, samples, rebuilt.labels)
        write_json(file, known | found)
        numbers = {one: f"{100 * np.mean(of):.1f}" for one, of in found.items()}
        print(f"{file.stem}: {numbers}, {time.process_time() - begin:.0f} s of processor time", flush=True)


# The table


Cells = list[dict[str, Any]]
MEASURES = ("best guess, B", "images, B", "best guess, A", "best guess, same images", "best guess, target")
PAIRED = MEASURES[:2]
"""Measures whose distance from the undefended models is shown."""


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, draw the figure, and print the tables."""
    cells = real_defenses.gather(options.output_dir / "cells", "*.json", options.output)
    draw(cells, options.output.with_suffix(".png"))
    print(tables(cells))


def trainings(cells: Cells, network: str, defense: str) -> dict[int, dict[str, Any]]:
    """Cells of a network and a defense, by seed."""
    return {one["seed"]: one for one in cells if (one["network"], one["defense"]) == (network, defense)}


def shown(some: dict[int, dict[str, Any]], first: dict[int, dict[str, Any]], by_a: bool) -> list[str]:
    """Each measure, some with the distance from the undefended models; ``by_a`` leaves out the judgement of A."""
    found: list[str] = []
    for name in MEASURES:
        level, less = compared(some, first, name)
        found.append("–" if by_a and name.endswith("A") else level)
        found += [less] * (name in PAIRED)
    return found


def tables(cells: Cells) -> str:
    """The tables of docs/results/pretraining.md."""
    models: list[list[str]] = []
    leaks: list[list[str]] = []
    against: list[list[str]] = []
    for (name, network), defense in itertools.product(NETWORKS.items(), ROWS):
        some, first = trainings(cells, name, defense), trainings(cells, name, FIRST)
        if not some:
            continue
        if defense in DEFENSES:
            settings = ", ".join(f"{key} = {value}" for key, value in DEFENSES[defense].items())
            models.append([name, defense, settings, str(len(some)), *compared(some, first, "accuracy")])
        leaks.append([name, defense, str(len(some)), *shown(some, first, network.by_a)])
        if defense not in DEFENSES or defense == FIRST:
            samples = {seed: one["samples"] for seed, one in some.items()}
            leaks.append(
                [
                    name,
                    f"samples of the prior{defense.removeprefix(FIRST)}",
                    str(len(some)),
                    *shown(samples, {}, network.by_a),
                ]
            )
    for row, (other, name) in itertools.product((FIRST, FIRST + RIDGE), itertools.combinations(NETWORKS, 2)):
        both = [trainings(cells, one, row) for one in (name, other)]
        if not set(both[0]) & set(both[1]):
            continue
        people = min(NETWORKS[name].attacked, NETWORKS[other].attacked)
        same = [{seed: {one: cell[one][:people] for one in PAIRED} for seed, cell in of.items()} for of in both]
        points = [compared(same[0], same[1], one)[1] for one in PAIRED]
        against.append(
            [name + row.removeprefix(FIRST), other, str(people), str(len(set(both[0]) & set(both[1]))), *points]
        )
    measures = [part for name in MEASURES for part in ([name, "points against none"] if name in PAIRED else [name])]
    return "\n\n".join([
        table(["network", "defense", "settings", "trainings", "test accuracy", "points against none"], models),
        table(["network: attack", "defense", "trainings", *measures], leaks),
        table(["undefended", "against", "people", "trainings", *(f"{name}, points" for name in PAIRED)], against),
    ])  # fmt: skip


def draw(cells: Cells, file: Path) -> None:
    """Best guess by B, and test accuracy, of each network and defense, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, (measure, title) in zip(axes, {PAIRED[0]: "best guess is the person, by B, %",
                                             "accuracy": "test accuracy, %"}.items(), strict=True):  # fmt: skip
        for place, defense in enumerate(ROWS if measure == PAIRED[0] else DEFENSES):
            x, y = [], []
            for network, name in enumerate(NETWORKS):
                values = np.array([one[measure] for one in trainings(cells, name, defense).values()])
                if len(values):
                    mean, low, high = pooled_interval(values)
                    x.append(network + 0.15 * (place - 2))
                    y.append([mean, *share_interval(low, high, values.shape[1])])
            means, lows, highs = 100 * np.array(y).T
            axis.errorbar(x, means, [means - lows, highs - means], fmt="o", capsize=3, label=defense)
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
    chance = [np.mean(one["samples"][PAIRED[0]]) for one in cells if one["defense"] == FIRST]
    axes[0].axhline(100 * np.mean(chance), color="gray", linestyle="--", label="samples of the GAN")
    axes[0].legend(fontsize=8)
    axes[1].set_xticks(range(len(NETWORKS)), NETWORKS)
    write_figure(file, figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser, command = parsers("python -m benchmarks.pretraining", __doc__, run, summarize)
    command.add_argument("--data", type=Path, required=True, help="folder of the face sets")
    command.add_argument("--public", type=Path, required=True, help="parquet file of public faces")
    command.add_argument("--prior", type=Path, required=True, help="folder of a GAN of them")
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="trainings, in this order")
    command.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    command.add_argument("--defenses", nargs="+", choices=DEFENSES, default=list(DEFENSES))
    options = parser.parse_args(argv)
    options.step(options)


if __name__ == "__main__":
    main()
