"""Decoy identities on real faces: a frozen face network with a new head, and a small network that is fine-tuned.

Each cell draws private people and decoys from one set anew, trains a model, and attacks its first classes. ``DATA``
holds the face sets. No image is written outside the output folder, and the cells hold numbers alone.

    python -m benchmarks.decoy_faces public --data DATA --output outputs/public.parquet
    calor-hf prior --dataset outputs/public.parquet --image-size 32 \
        --settings width=16 discriminator_steps=1 batch_size=32 lr=5e-4 steps=3000 --output-dir outputs/prior
    python -m benchmarks.real_faces backbone --data DATA --public outputs/public.parquet --epochs 60 \
        --output-dir outputs/backbone
    python -m benchmarks.decoy_faces search --data DATA --output-dir outputs/decoy_faces
    python -m benchmarks.decoy_faces run --data DATA --public outputs/public.parquet --prior outputs/prior \
        --backbone outputs/backbone --output-dir outputs/decoy_faces    # resumes; one JSON file per cell
    python -m benchmarks.decoy_faces sources --data DATA --output-dir outputs/decoy_faces
    python -m benchmarks.decoy_faces table --cells outputs/decoy_faces --output docs/results/decoys_faces.json
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import ResNetForImageClassification, ViTImageProcessor

from benchmarks.mobilefacenet import Embedding
from benchmarks.real_faces import vary
from benchmarks.real_faces_audit import Cached, FaceTarget, Stage, embed, fit, load_images
from calor_hf import HFTarget, LowRankHead, confidence_adaptation_loss, load_generator
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.files import write_json, write_whole
from calor_hf.core.report_text import percent, table
from calor_hf.core.seeding import named_rng
from calor_hf.data.decoys import Person, deal, private_members
from calor_hf.data.exchangeability import Exchangeability, describe_people, image_statistics, two_sample_test
from calor_hf.defenses.decoys import DecoyHead
from calor_hf.metrics import METRICS, Evidence, Measure, View
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import measured
from calor_hf.metrics.identification_game import log_odds
from calor_hf.metrics.mode_ranking import by_place, mode_ranking, mode_statistics
from calor_hf.metrics.photographs import gallery, pool
from calor_hf.metrics.statistics import identity_means, pooled_interval, share_interval
from calor_hf.modeling import defend
from calor_hf.targets.base import Target

SEEDS = 3
ATTACK = "mode_ranking@adaptive:steps=40,views=0,initial_candidates=400,lr=0.1"
"""On a model without decoys it is PLG, with the same settings."""
FEW, TESTED = 6, 2
"""Images of a person of lfw_public from which it joins the LFW people, and how many of them are test images."""
STRANGERS = 500
METRICS_OF_IMAGES = ("attack_accuracy", "identification_game", "decoy_hits")


@dataclass(frozen=True)
class Recipe:
    """Training of a head on kept features, by cross-entropy.

    Attributes:
        rate: Highest learning rate, at the beginning.
        rank: Width of a low-rank head; None means a linear one.
        noise: Length of the noise added to the features, whose own length is 2.
        scale: Factor of the features, which the first layer has afterwards.
        epochs: Epochs.
    """

    rate: float = 5e-3
    rank: int | None = None
    noise: float = 1.5
    scale: float = 4.0
    epochs: int = 30


MODELS = ("undefended", "decoys", "calor", "both")


@dataclass(frozen=True)
class Setting:
    """Private people, decoys and models.

    Attributes:
        people: Set of people, a key of :data:`SETS`.
        private: Number of private people.
        k: Identities per class.
        scale: Factor of the features, see :class:`Recipe`.
        calor: Rank of CALoR's head.
        both: Rank of the head with decoys and few directions.
        frozen: Whether the network is frozen; else it is fine-tuned.
        fifths: Whether the strata are fifths of the people by their number of training images.
        attacked: Number of classes that are attacked.
    """

    people: str
    private: int
    k: int
    scale: float
    calor: int
    both: int
    frozen: bool = True
    fifths: bool = False
    attacked: int = 10


SETTINGS = {
    "bolly100, k = 4": Setting("bolly100", 25, 4, 4.0, 13, 48),
    "bolly100, k = 2": Setting("bolly100", 50, 2, 8.0, 28, 64),
    "LFW, k = 4": Setting("lfw", 40, 4, 4.0, 32, 64),
    "bolly100 in fifths, k = 4": Setting("bolly100", 25, 4, 4.0, 13, 48, fifths=True),
    "bolly100 in fifths, k = 2": Setting("bolly100", 50, 2, 8.0, 28, 64, fifths=True),
    "bolly100 in fifths, k = 4, fine-tuned": Setting(
        "bolly100", 25, 4, 4.0, 13, 48, frozen=False, fifths=True, attacked=20
    ),
}

# The people


def bolly100(data: Path) -> tuple[Any, Any, Tensor]:
    """Training images, test images, and one stratum."""
    train, test = (load_images(data / "bolly100_64" / f"{split}.parquet") for split in ("train", "test"))
    return train, test, torch.zeros(100, dtype=torch.int64)


def lfw(data: Path) -> tuple[Any, Any, Tensor]:
    """Training images, test images, and the stratum: lfw96 with ten images and more each, and those of the public set.

    Decoys of the same stratum have about as many images, so that few are cut off.
    """
    (images, people), (tests, tested) = (
        load_images(data / "lfw96_64" / f"{split}.parquet") for split in ("train", "test")
    )
    public, labels = load_images(data / "lfw_public_64" / "train.parquet")
    train, test, count = [(images, people)], [(tests, tested)], int(people.max()) + 1
    chosen = (torch.bincount(labels) >= FEW).nonzero().flatten()
    for number, label in enumerate(chosen.tolist(), start=count):
        rng = named_rng(0, "benchmarks/decoy_faces/test", label)
        rows = torch.from_numpy(rng.permutation((labels == label).nonzero().flatten().numpy()))
        for part, some in ((test, rows[:TESTED]), (train, rows[TESTED:])):
            part.append((public[some], torch.full_like(some, number)))
    strata = (torch.arange(count + len(chosen)) >= count).long()
    joined = [tuple(torch.cat(of) for of in zip(*part, strict=True)) for part in (train, test)]
    return joined[0], joined[1], strata


SETS: dict[str, Callable[[Path], Any]] = {"bolly100": bolly100, "lfw": lfw}


def loaded(name: str, data: Path, folder: Path) -> dict[str, Tensor]:
    """Images of a set and what the two face networks see in them, kept in ``folder``."""
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (train, people), (test, tested), strata = SETS[name](data)
        a, b = Embedding(data, "A"), Embedding(data, "B")
        found = {
            "train": (255 * train).round().byte(), "train/people": people, "train/A": embed(a, train),
            "train/mirrored": embed(a, train.flip(3)), "train/B": embed(b, train),
            "test": (255 * test).round().byte(), "test/people": tested, "test/A": embed(a, test),
            "test/B": embed(b, test), "strata": strata,
        }  # fmt: skip
        write_whole(file, save({name: of.contiguous() for name, of in found.items()}))
    return load_file(file)


def public(options: argparse.Namespace) -> None:
    """Write the public faces of people who are no class, for prior and backbone."""
    from datasets import load_dataset

    file = options.data / "lfw_public_64" / "train.parquet"
    data = load_dataset("parquet", data_files=str(file), split="train")
    labels = np.array(data["label"])
    data.select(np.flatnonzero(np.bincount(labels)[labels] < FEW)).to_parquet(options.output)


def dealt(people: dict[str, Tensor], setting: Setting, seed: int) -> list[list[Person]]:
    """Private people and decoys, drawn anew with each seed."""
    rng = named_rng(seed, "benchmarks/decoy_faces/partition")
    rows = {split: of_people(people[f"{split}/people"]) for split in ("train", "test")}
    everyone: list[list[Person]] = [[], []]
    order, strata = rng.permutation(len(people["strata"])).tolist(), people["strata"].tolist()
    if setting.fifths:  # of the people by their number of training images, and each has its share of private ones
        by_images = torch.bincount(people["train/people"]).argsort(stable=True)
        strata = (by_images.argsort() // (len(by_images) // 5)).tolist()
        turns = defaultdict[int, Iterator[int]](itertools.count)
        order.sort(key=lambda one: next(turns[strata[one]]))
    for place, one in enumerate(order):
        of_one = {split: rows[split][one] for split in rows} | {"validation": list[int]()}
        everyone[place >= setting.private].append(Person(str(one), place < setting.private, of_one, strata[one]))
    return deal(everyone[0], everyone[1], setting.k, rng)


def of_people(numbers: Tensor) -> list[list[int]]:
    """Rows of each person."""
    return [(numbers == one).nonzero().flatten().tolist() for one in range(int(numbers.max()) + 1)]


@dataclass(frozen=True)
class Classes:
    """A deal, as training and evaluation use it.

    Attributes:
        rows: Training images, and ``identities`` that they show: k of each class, or the private one alone.
        private: (classes,) place of the private identity in its class.
        people: (identities,) person of each identity: first the private one of each class, then decoys class by class.
        class_of: (identities,) class of each.
    """

    rows: Tensor
    identities: Tensor
    private: Tensor
    people: Tensor
    class_of: Tensor


def classes_of(people: dict[str, Tensor], classes: Sequence[Sequence[Person]], decoys: bool) -> Classes:
    """Without ``decoys``, private people have all of their training images; with them, those that the deal left."""
    k, members = len(classes[0]), [one for several in classes for one in several]
    mine = torch.tensor([one.private for one in members])
    number = torch.tensor([int(one.name) for one in members])
    class_of = torch.arange(len(members)) // k
    rows = [list(one.rows["train"]) for one in members]
    if not decoys:
        every = of_people(people["train/people"])
        rows = [every[one] for one in number[mine].tolist()]
    identities = [identity for identity, some in enumerate(rows) for _ in some]
    order = torch.cat([mine.nonzero().flatten(), (~mine).nonzero().flatten()])
    flat = torch.tensor([row for some in rows for row in some])
    private = torch.from_numpy(private_members(classes))
    return Classes(flat, torch.tensor(identities), private, number[order], class_of[order])


# The models


def trained_head(features: Tensor, mirrored: Tensor, deal_: Classes, model: str, k: int, recipe: Recipe) -> nn.Module:
    """Head on features of the frozen network."""
    width, count = features.shape[1], len(deal_.private)
    torch.manual_seed(0)
    head: Any
    if model in ("decoys", "both"):
        head = DecoyHead(width, count, k, recipe.rank)
        scores, first = head.identity_scores, head.scorer
    else:
        head = scores = first = (
            nn.Linear(width, count) if recipe.rank is None else LowRankHead(width, count, recipe.rank)
        )

    def under(criterion: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            noisy = x + recipe.noise / width**0.5 * torch.randn_like(x)
            return criterion(scores(recipe.scale * noisy), y)

        return loss

    stages: list[Stage] = [(under(F.cross_entropy), recipe.epochs, recipe.rate)]
    if model == "calor":
        stages.append((under(confidence_adaptation_loss), 10, recipe.rate / 10))
    both = torch.cat([features[deal_.rows], mirrored[deal_.rows]])
    fit(head, Cached(both, deal_.identities.repeat(2)), stages)
    layer: Any = first.down if isinstance(first, LowRankHead) else first
    with torch.no_grad():
        layer.weight.mul_(recipe.scale)
    return head  # type: ignore[no-any-return]


def recipe_of(setting: Setting, model: str) -> Recipe:
    """Recipe of a head, as ``search`` found it."""
    rank = {"calor": setting.calor, "both": setting.both}.get(model)
    return Recipe(scale=setting.scale) if rank is None else Recipe(2e-2, rank, scale=1.0)


def fine_tuned(people: dict[str, Tensor], deal_: Classes, model: str, setting: Setting, backbone: Path) -> HFTarget:
    """All of a small network, on varied images."""
    torch.manual_seed(0)
    base = ResNetForImageClassification.from_pretrained(
        backbone, num_labels=len(deal_.private), ignore_mismatched_sizes=True
    )
    name, settings = {
        "undefended": ("none", {}), "decoys": ("decoys", {"k": setting.k}), "calor": ("calor", {"rank": setting.calor}),
        "both": ("decoys", {"k": setting.k, "rank": setting.both}),
    }[model]  # fmt: skip
    network = defend(base, name, **settings)
    has_decoys = name == "decoys"

    def in_stage(stage: str | None) -> Callable[[Tensor, Tensor], Tensor]:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            if stage is not None:
                network.stage = stage
            network.train()
            seen = vary(x, torch.rand(len(x), 6))
            known = {"labels": y // setting.k, "identities": y} if has_decoys else {"labels": y}
            found: Tensor = network(pixel_values=2 * seen - 1, **known).loss
            return found

        return loss

    stages: list[Stage] = [(in_stage("fit" if name == "calor" else None), 10, 2e-3)]
    if name == "calor":
        stages.append((in_stage("adapt"), 2, 2e-4))
    fit(network, Cached(people["train"][deal_.rows].float() / 255, deal_.identities), stages, 0.01, 64)
    return HFTarget(network, ViTImageProcessor.from_pretrained(backbone))


# The numbers


def exchangeable(images: Tensor, features: Tensor, identities: Tensor, private: Tensor, k: int) -> Exchangeability:
    """Test at most twelve images of each identity, as ``decoys check`` does."""
    rows = torch.tensor([row for some in of_people(identities) for row in some[:12]])
    pictures = (Image.fromarray(images[row].permute(1, 2, 0).numpy()) for row in rows)
    described = {"image statistics": image_statistics(pictures), "features of A": features[rows].double().numpy()}
    tests = tuple(
        two_sample_test(name, describe_people(of, identities[rows].numpy()), private.numpy(), k)
        for name, of in described.items()
    )
    return Exchangeability(k, len(private), False, tests)


def another_source(sets: dict[str, dict[str, Tensor]], seed: int) -> dict[str, Any]:
    """The same test for 25 people of bolly100 with 75 people of LFW."""
    k, count = 4, 25
    rng = named_rng(seed, "benchmarks/decoy_faces/another-source")
    private = torch.from_numpy(rng.integers(k, size=count))
    left = {name: rng.permutation(len(of["strata"])).tolist() for name, of in sets.items()}
    images, features, identities = list[Tensor](), list[Tensor](), list[int]()
    for identity in range(k * count):
        name = "bolly100" if int(private[identity // k]) == identity % k else "lfw"
        rows = (sets[name]["train/people"] == left[name].pop()).nonzero().flatten()[:12]
        images.append(sets[name]["train"][rows])
        features.append(sets[name]["train/A"][rows])
        identities += [identity] * len(rows)
    return exchangeable(torch.cat(images), torch.cat(features), torch.tensor(identities), private, k).to_dict()


def by_name(measures: Sequence[Measure]) -> dict[str, list[float]]:
    """Numbers of the attacked classes, in their order, by measure."""
    return {one.name: list(one.by_identity.values()) for one in measures}


def evaluated(
    target: Target, images: Tensor, logits: Tensor, labels: Tensor, class_of: Tensor
) -> dict[str, dict[str, list[float]]]:
    """Measures if the evaluation model knows everyone, and if it knows the private people alone.

    Args:
        target: The attacked model, by which the attacker chooses the image to submit.
        images: (n, 3, height, width) in [0, 1].
        logits: (n, identities) of the evaluation model.
        labels: (n,) classes.
        class_of: (identities,) class of each identity.
    """
    with torch.no_grad():
        chosen = torch.cat(
            [log_odds(target(some), of) for some, of in zip(images.split(64), labels.split(64), strict=True)]
        )
    metrics = {name: METRICS.get(name)() for name in METRICS_OF_IMAGES}
    classes = int(class_of.max()) + 1
    found = {}
    for name, scores, identities in (("everyone", logits, class_of), ("private alone", logits[:, :classes], None)):
        view = View("MobileFaceNet B, nearest mean", logits[:, :0], logits[:, :0], scores)
        evidence = Evidence(
            images, labels, images[:0], labels[:0], evaluation_model=view, attacker_scores=chosen,
            identity_labels=identities,
        )  # fmt: skip
        found[name] = by_name(measured(metrics, evidence))
    return found


def per_person(right: Tensor, people: Tensor) -> list[float]:
    """Accuracy of each person."""
    return list(identity_means(right.double(), people).values())


@dataclass(frozen=True)
class Cell:
    """One model, with the people that it knows.

    Attributes:
        name: Key of the setting.
        seed: Seed of the partition.
        model: One of :data:`MODELS`.
        people: The set.
        deal: Private people and decoys.
        target: The model.
        tests: Its features of the test images of the set.
        identity: (test images,) identity that each one shows; −1 for people that are not in the deal.
        means: (identities, d) what the evaluation model sees in the training images of each identity, on average.
    """

    name: str
    seed: int
    model: str
    people: dict[str, Tensor]
    deal: Classes
    target: Target
    tests: Tensor
    identity: Tensor
    means: Tensor


def trained(name: str, seed: int, model: str, options: argparse.Namespace) -> Cell:
    """Draw the people of a cell and train its model, the same each time."""
    setting = SETTINGS[name]
    people = loaded(setting.people, options.data, options.output_dir)
    deal_ = classes_of(people, dealt(people, setting, seed), model in ("decoys", "both"))
    target: Target
    if setting.frozen:
        recipe = recipe_of(setting, model)
        head = trained_head(people["train/A"], people["train/mirrored"], deal_, model, setting.k, recipe)
        target, tests = FaceTarget(Embedding(options.data, "A"), head, len(deal_.private)), people["test/A"]
    else:
        target = fine_tuned(people, deal_, model, setting, options.backbone)
        tests = seen(target, people["test"])
    owners = number_of(deal_.people, people["train/people"])
    means = torch.stack([people["train/B"][owners == one].mean(0) for one in range(len(deal_.people))])
    identity = number_of(deal_.people, people["test/people"])
    return Cell(name, seed, model, people, deal_, target, tests, identity, F.normalize(means))


def described(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Numbers of a model that need no attack."""
    people, deal_, target, setting = cell.people, cell.deal, cell.target, SETTINGS[cell.name]
    classes, identity = len(deal_.private), cell.identity
    mine, others = (identity >= 0) & (identity < classes), identity >= classes
    real = people["test/B"] @ cell.means.T
    with torch.no_grad():
        right = topk_correct(target.head(cell.tests[mine]), identity[mine])
    found: dict[str, Any] = {
        "k": setting.k, "training_images": len(deal_.rows), "test_images": int(mine.sum()),
        "accuracy": per_person(right, identity[mine]),
        "evaluation_model_accuracy": per_person(topk_correct(real[mine], identity[mine]), identity[mine]),
        "false_matches": float(topk_correct(real[others], deal_.class_of[identity[others]]).mean()),
    }  # fmt: skip
    if target.scores_identities:
        decoys = deal_.rows[~torch.isin(people["train/people"][deal_.rows], deal_.people[:classes])]
        first = torch.stack([(identity == one).nonzero()[0, 0] for one in range(len(deal_.people))])
        pooled = people["train/A"][decoys] if setting.frozen else seen(target, people["train"][decoys])
        strangers = seen(target, load_images(options.public, STRANGERS)[0])
        found["photographs"] = photographs(target, deal_.private, setting.k, pooled, cell.tests[first], strangers)
    if cell.model == "decoys":
        rows = deal_.rows
        check = exchangeable(people["train"][rows], people["train/A"][rows], deal_.identities, deal_.private, setting.k)
        found["exchangeability"] = check.to_dict()
    return found


def attacked(cell: Cell, options: argparse.Namespace) -> dict[str, Any]:
    """Attack the first classes, and evaluate what was rebuilt."""
    deal_, target, k = cell.deal, cell.target, SETTINGS[cell.name].k
    labels, prior = torch.arange(SETTINGS[cell.name].attacked), load_generator(str(options.prior))
    rebuilt = parse_attack(ATTACK).attack.run(target, prior, labels.tolist(), images_per_class=k, seed=cell.seed)
    latents = prior.sample_latents(len(rebuilt.labels), named_rng(cell.seed, "benchmarks/decoy_faces/samples"))
    with torch.no_grad():
        samples = prior(latents.float()).clamp(0, 1)
    b, images = Embedding(options.data, "B"), rebuilt.images.float()
    found: dict[str, Any] = {"name": ATTACK, "images_per_class": k} | {
        what: evaluated(target, some, embed(b, some) @ cell.means.T, rebuilt.labels, deal_.class_of)
        for what, some in (("rebuilt", images), ("samples", samples))
    }
    if target.scores_identities:
        found["mode_ranking"] = ranked(target, prior, images, rebuilt.labels, deal_.private, k)
    return found


def seen(target: Target, images: Tensor) -> Tensor:
    """Features of images, which are bytes or in [0, 1]."""
    with torch.no_grad():
        whole = images.float() / 255 if images.dtype == torch.uint8 else images
        return torch.cat([target.features(some) for some in whole.split(64)])


def number_of(people: Tensor, owners: Tensor) -> Tensor:
    """Identity of each owner, by its place in ``people``; −1 for others."""
    number = torch.full((int(max(people.max(), owners.max())) + 1,), -1)
    number[people] = torch.arange(len(people))
    return number[owners]


def ranked(
    target: Target, prior: Any, images: Tensor, labels: Tensor, private: Tensor, k: int
) -> dict[str, list[float]]:  # fmt: skip
    """Whether the private identity comes first of the k that were rebuilt, by each statistic of an audit."""
    attacked = labels.unique()
    statistics = mode_statistics(target, images, labels, k)
    with torch.no_grad():
        statistics["realism"] = by_place(prior.realism(images, labels).double(), len(labels) // len(attacked), k)
    return by_name(mode_ranking(statistics, attacked, private[attacked], len(labels)))


def photographs(
    target: Target, private: Tensor, k: int, decoys: Tensor, unseen: Tensor, strangers: Tensor
) -> dict[str, list[float]]:
    """Whether attackers who hold photographs name the private identity.

    Args:
        target: The attacked model.
        private: (classes,) place of the private identity in its class.
        k: Identities per class.
        decoys: Features of training images of decoys.
        unseen: (k · classes, d) features of an unseen image of each identity, private ones first.
        strangers: Features of other people.
    """
    known = target, torch.arange(len(private)), private, k
    return by_name([
        pool(decoys, *known),
        gallery(torch.cat([unseen[: len(private)], strangers]), *known),
        gallery(torch.cat([unseen, strangers]), *known, with_decoys=True),
    ])  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Compute the parts of cells that have no file: the numbers of a model, and what an attack rebuilds."""
    for name, seed, model in itertools.product(SETTINGS, range(SEEDS), MODELS):
        slug = f"{name} {model} {seed}".replace(", ", "-").replace(" = ", "").replace(" ", "-")
        files = {part: options.output_dir / f"{part.__name__}-{slug}.json" for part in (described, attacked)}
        begin = time.process_time()
        missing = [part for part, file in files.items() if not file.is_file()]
        if missing:
            cell = trained(name, seed, model, options)
        for part in missing:
            found = part(cell, options)
            seconds, begin = time.process_time() - begin, time.process_time()
            write_json(files[part], {"setting": name, "model": model, "seed": seed, "cpu_seconds": seconds, **found})
            print(f"{files[part].name}: {seconds:.0f} s of processor time", flush=True)


def sources(options: argparse.Namespace) -> None:
    """Test the exchangeability of people of one set with decoys of another."""
    sets = {name: loaded(name, options.data, options.output_dir) for name in SETS}
    write_json(options.output_dir / OTHER, [another_source(sets, seed) for seed in range(SEEDS)])


OTHER = "another-source.json"


def search(options: argparse.Namespace) -> None:
    """Accuracy of recipes on held-out training images of private people, in partitions that ``run`` does not use."""
    linear = [Recipe(noise=noise, scale=scale) for noise in (0.0, 1.5, 2.5) for scale in (1.0, 4.0, 8.0)]
    low_rank = [Recipe(2e-2, rank, scale=1.0) for rank in (12, 14, 16, 20, 24, 28, 32, 48, 64)]
    for (name, setting), model in itertools.product(SETTINGS.items(), MODELS):
        if not setting.frozen:
            continue
        people = loaded(setting.people, options.data, options.output_dir)
        parts = {seed: without_test(people, seed) for seed in range(100, 100 + options.partitions)}
        limit = setting.private if model == "calor" else 128
        for recipe in linear if model in MODELS[:2] else [one for one in low_rank if (one.rank or 0) <= limit]:
            found = []
            for seed, part in parts.items():
                deal_ = classes_of(part, dealt(part, setting, seed), model in ("decoys", "both"))
                head = trained_head(part["train/A"], part["train/mirrored"], deal_, model, setting.k, recipe)
                owner = number_of(deal_.people, part["test/people"])
                mine = (owner >= 0) & (owner < setting.private)
                with torch.no_grad():
                    right = topk_correct(head(part["test/A"][mine]), owner[mine])
                found.append(np.mean(per_person(right, owner[mine])))
            error = np.std(found) / len(found) ** 0.5
            print(f"{name}: {model}, {recipe}: {100 * np.mean(found):.2f} ± {100 * error:.2f} %", flush=True)


def without_test(people: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The training images alone, a fifth of each person's as test images."""
    rng = named_rng(seed, "benchmarks/decoy_faces/held-out")
    held = torch.zeros(len(people["train/people"]), dtype=torch.bool)
    for rows in of_people(people["train/people"]):
        held[rng.permutation(rows)[: max(1, len(rows) // 5)]] = True
    train = {name: of[~held] for name, of in people.items() if name.startswith("train")}
    return train | {"test/people": people["train/people"][held], "test/A": people["train/A"][held],
                    "strata": people["strata"]}  # fmt: skip


# The tables


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, and print the tables."""
    if options.cells is not None:
        found = {
            part: [json.loads(file.read_text()) for file in sorted(options.cells.glob(f"{part}-*.json"))]
            for part in (described.__name__, attacked.__name__)
        }
        found[OTHER] = json.loads((options.cells / OTHER).read_text())
        parts = [f"{json.dumps(part)}: [\n" + ",\n".join(map(json.dumps, some)) + "\n]" for part, some in found.items()]
        write_whole(options.output, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
    print(tables(json.loads(options.output.read_text(encoding="utf-8"))))


Cells = list[dict[str, Any]]
BEST = "best_guess/evaluation_model"
HITS = "decoy_hits/evaluation_model"


def tables(found: dict[str, Cells]) -> str:
    """The tables of docs/results/decoys_faces.md."""
    models, attacks = (grouped(found[part.__name__]) for part in (described, attacked))
    matches = {(one["setting"], one["model"], one["seed"]): one["false_matches"] for one in found[described.__name__]}
    use, photos, games, alone = [], [], [], []
    for (name, model), some in models.items():
        title, k = [name, model, str(len(some))], some[0]["k"]
        less = lost(models, (name, model), "accuracy")
        images = ", ".join(str(one["training_images"]) for one in some)
        evaluation = pooled(numbers(some, "evaluation_model_accuracy"))
        use.append([*title, pooled(numbers(some, "accuracy")), less, images, evaluation])
        if "photographs" in some[0]:
            names = some[0]["photographs"]
            photos.append([*title, percent(1 / k, 0), *(pooled(numbers(some, "photographs", one)) for one in names)])
    for (name, model), some in attacks.items():
        title, k = [name, model, str(len(some))], some[0]["images_per_class"]
        hits = numbers(some, "rebuilt", "everyone", HITS)
        decoys = "mode_ranking" in some[0]
        wrong = np.mean([matches[name, model, one["seed"]] for one in some])
        chance = percent(float(hits.mean() / k + wrong), 0) if decoys else ""
        ranked_first = pooled(numbers(some, "mode_ranking", "mode_ranking")) if decoys else ""
        title.append(str(hits.shape[1]))
        games.append([
            *title, pooled(numbers(some, "rebuilt", "everyone", BEST)),
            lost(attacks, (name, model), "rebuilt", "everyone", BEST), chance,
            pooled(numbers(some, "samples", "everyone", BEST)),
            pooled(numbers(some, "rebuilt", "everyone", f"guesses@{k}/evaluation_model")), pooled(hits), ranked_first,
        ])  # fmt: skip
        shares = (BEST, "identities_recognized", "attack_accuracy@1")
        alone.append([
            *title, *(pooled(numbers(some, "rebuilt", "private alone", one)) for one in shares),
            pooled(numbers(some, "samples", "private alone", BEST)),
        ])  # fmt: skip
    checks = {name: [one["exchangeability"] for one in some] for (name, model), some in models.items()
              if model == "decoys" and SETTINGS[name].frozen}  # fmt: skip
    tests = [
        [name, test["name"], ", ".join(interval(several["tests"][place]) for several in many),
         ", ".join(percent(several["tests"][place]["joint"], 0) for several in many)]
        for name, many in (checks | {"bolly100 with decoys of LFW, k = 4": found[OTHER]}).items()
        for place, test in enumerate(many[0]["tests"])
    ]  # fmt: skip
    head, less_than = ["people", "model", "trainings"], "points less than undefended"
    people = "classes attacked"
    game = [
        "best guess",
        less_than,
        "its chance level",
        "best guess, samples of the prior",
        "in any of k images",
        "decoy_hits",
    ]
    accuracy = ["test accuracy", less_than, "training images", "accuracy of the evaluation model"]
    lone = ["best guess", "in any of k images", "images", "best guess, samples of the prior"]
    return "\n\n".join([
        table([*head, *accuracy], use),
        table([*head, people, *game, "mode_ranking"], games),
        table([*head, people, *lone], alone),
        table([*head, "1/k", "pool", "gallery", "gallery_with_decoys"], photos),
        table(["people", "test", "AUC", "chosen without labels"], tests),
    ])  # fmt: skip


def grouped(cells: Cells) -> dict[tuple[str, str], Cells]:
    """Trainings by setting and model."""
    keys = itertools.product(SETTINGS, MODELS)
    some = {key: [one for one in cells if (one["setting"], one["model"]) == key] for key in keys}
    return {key: sorted(many, key=lambda one: int(one["seed"])) for key, many in some.items() if many}


def numbers(cells: Cells, *names: str) -> NDArray[np.float64]:
    """(trainings, people) one measure."""
    found: list[Any] = cells
    for name in names:
        found = [one[name] for one in found]
    return np.array(found)


def lost(groups: dict[tuple[str, str], Cells], key: tuple[str, str], *names: str) -> str:
    """Points that a measure lies below that of undefended models of the same private people, person by person."""
    undefended = {one["seed"]: one for one in groups.get((key[0], MODELS[0]), [])}
    some = [one for one in groups[key] if one["seed"] in undefended]
    if key[1] == MODELS[0] or not some:
        return ""
    without = [undefended[one["seed"]] for one in some]
    mean, low, high = pooled_interval(numbers(without, *names) - numbers(some, *names))
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def interval(test: dict[str, float]) -> str:
    """AUC of a test with its interval."""
    return f"{test['auc']:.2f} [{test['low']:.2f}, {test['high']:.2f}]"


def pooled(values: NDArray[np.float64]) -> str:
    """Mean over (trainings, people), with its interval over both."""
    mean, low, high = pooled_interval(values)
    low, high = share_interval(low, high, values.shape[1])
    digits = 1 if mean > 0.9 else 0
    return f"{percent(mean, digits)} [{percent(low, digits).removesuffix(' %')}, {percent(high, digits)}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoy_faces", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    steps = parser.add_subparsers(required=True)
    for name, step in (
        ("public", public),
        ("search", search),
        ("run", run),
        ("sources", sources),
        ("table", summarize),
    ):
        command = steps.add_parser(name, help=step.__doc__)
        command.set_defaults(step=step)
        if step is not summarize:
            command.add_argument("--data", type=Path, required=True)
        if step in (search, run, sources):
            command.add_argument("--output-dir", type=Path, required=True, help="folder of the cells")
        if step is search:
            command.add_argument("--partitions", type=int, default=6)
        if step is run:
            command.add_argument("--public", type=Path, required=True)
            command.add_argument("--prior", type=Path, required=True)
            command.add_argument("--backbone", type=Path, required=True)
        if step is summarize:
            command.add_argument("--cells", type=Path, help="folder of the cells; default: the JSON file as it is")
        if step in (public, summarize):
            command.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(argv)
    options.step(options)


if __name__ == "__main__":
    main()
