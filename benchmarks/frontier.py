"""Models against attacks at equal passes through the target: recognized people, passes, and robust accuracy.

    calor-hf prior --image-size 32 --minutes 10 --output-dir outputs/drawn-prior
    calor-hf prior --prior flow --image-size 32 --output-dir outputs/drawn-flow
    calor-hf prior --prior flow --image-size 32 --dataset outputs/public.parquet --output-dir outputs/flow
    python -m benchmarks.frontier run --data DATA --public outputs/public.parquet --drawn-priors outputs/drawn-prior \
        outputs/drawn-flow --faces-priors outputs/prior outputs/flow --output-dir outputs/frontier
    python -m benchmarks.frontier table --output-dir outputs/frontier --output docs/results/frontier.json

``DATA`` holds the face sets; ``outputs/public.parquet`` and ``outputs/prior`` are those of ``benchmarks.decoy_faces``.
``run`` resumes: each cell is one JSON file. Models and attacks are two lists; a longer table is more of their rows.
"""

import argparse
import copy
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset
from transformers import ViTImageProcessor

from benchmarks import decoy_faces, decoys
from benchmarks.adaptation import arguments
from benchmarks.adaptation_leakage import points
from benchmarks.decoy_controls import CLASSES, SIDE, TEST, drawn, is_private, parsers, small_network
from benchmarks.decoy_faces import by_name, per_person, pooled
from benchmarks.mobilefacenet import Embedding
from benchmarks.real_faces import KeptTarget
from benchmarks.real_faces_audit import Cached, embed, fit, load_images, samples_of
from calor_hf import CALoRTrainer, DefenseTrainer, HFTarget, load_generator
from calor_hf.attacks.specs import parse_attack
from calor_hf.auditing.attribute_network import attribute_network
from calor_hf.core.files import write_figure, write_json, write_whole
from calor_hf.core.outputs import Forward, Progress
from calor_hf.core.reconstruction import Cost
from calor_hf.core.report import HEADLINE, guesses
from calor_hf.core.report_text import table
from calor_hf.core.seeding import StepDraws, named_rng
from calor_hf.data.loading import load_public_images
from calor_hf.data.pixel_input import PixelScale
from calor_hf.data.synthetic_faces import sample_identities
from calor_hf.defenses.at_at import ATAT, ATATConfig
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.modeling import defend
from calor_hf.robustness import robust_accuracy
from calor_hf.targets.base import Target

Settings = dict[str, Any]
MODELS: dict[str, tuple[str, Settings]] = {
    "none": ("none", {}), "calor": ("calor", {}), "at_at": ("at_at", {}),
    "at_at, eps = 0.02": ("at_at", {"eps": 0.02, "step": 0.004, "weight": 0.3}), "decoys": ("decoys", {"k": 4}),
}  # fmt: skip
"""Defense and settings of each model; the first one is what the others are compared with."""
FIRST = next(iter(MODELS))
AT_AT = tuple(model for model, (defense, _) in MODELS.items() if defense == "at_at")
K = 4
RADII = (0.0005, 0.0025, 0.01)
"""Largest changes of a value in [0, 1]: two of AT-AT's own, and one that a small network feels."""
PUBLIC = 3000
"""Public images that surrogates are trained on."""


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        spec: Spec with names of the setting's numbers; empty for samples of the prior.
        prior: 0 for the GAN, 1 for the flow.
        models: Models that it is run on.
    """

    spec: str
    prior: int = 0
    models: tuple[str, ...] = tuple(MODELS)


PLG = "steps={steps},views=0,initial_candidates={candidates},lr={lr}"
ATTACKS = {
    "samples of the GAN": Row("", models=(FIRST,)),
    "plg": Row(f"plg:{PLG}"),
    "ppa": Row("ppa:steps={steps},restarts=1,final_views=0,initial_candidates={candidates}"),
    "if_gmi": Row("if_gmi:steps={first},later_steps={later},initial_candidates={candidates}"),
    "plg@smoothed": Row(f"plg@smoothed:objective=max_margin,samples={{samples}},{PLG}", models=(FIRST, *AT_AT)),
    "surrogate": Row("surrogate:student_epochs={epochs},effort=5", models=AT_AT),
    "surrogate@robust": Row("surrogate@robust:student_epochs={robust},effort=5", models=AT_AT),
    "samples of the flow": Row("", prior=1, models=(FIRST,)),
    "sfmi": Row("sfmi:steps={path}", prior=1),
}


@dataclass(frozen=True)
class Trained:
    """A model and the evaluation of what was rebuilt of its people.

    Attributes:
        target: The model.
        test: Test images in [0, 1] of its private people.
        labels: (n,) classes of these.
        evaluate: Measures by person, of as many images of each class.
    """

    target: Target
    test: Tensor
    labels: Tensor
    evaluate: Callable[[Tensor], dict[str, list[float]]]


@dataclass(frozen=True)
class Setting:
    """People, priors and the numbers of the attacks.

    Attributes:
        classes: Number of classes; all are attacked.
        images: Images of each class and attack.
        numbers: Numbers of the specs, by name.
        priors: The GAN and the flow, if there is one already.
        public: Public images, for attacks that train on them.
        train: Model of a name and a seed.
        without: Models and attacks that take too long.
    """

    classes: int
    images: int
    numbers: Settings
    priors: list[Any]
    public: Any
    train: Callable[[str, int], Trained]
    without: tuple[str, ...] = ()


# Drawn faces


class Identified(Dataset[dict[str, Any]]):
    """Inputs of a model, with labels and, if ``k`` > 1, identities."""

    def __init__(self, inputs: Tensor, identities: Tensor, k: int) -> None:
        self.inputs, self.identities, self.k = inputs, identities, k

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = int(self.identities[index])
        known = {"labels": one // self.k} | ({"identities": one} if self.k > 1 else {})
        return {"pixel_values": self.inputs[index], **known}


RATES = {"learning_rate": 3e-3, "num_train_epochs": 16, "adapt_epochs": 5, "per_device_train_batch_size": 64}


def trained(name: str, images: Tensor, identities: Tensor, seed: int, folder: Path) -> HFTarget:
    """Small network, trained whole with a defense, or found in ``folder``."""
    defense, settings = MODELS[name]
    if not (folder / "config.json").is_file():
        model = defend(small_network(seed), defense, **settings)
        kind = CALoRTrainer if defense == "calor" else DefenseTrainer
        data = Identified(2 * images - 1, identities, k_of(name))
        processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        with tempfile.TemporaryDirectory() as place:
            # The checkpoint is chosen without a limit of accuracy, by training images.
            trainer = kind(model=model, args=arguments(place, seed, **RATES), train_dataset=data, eval_dataset=data,
                           processing_class=processor)  # fmt: skip
            trainer.train()
            trainer.model.save_pretrained(folder)
            processor.save_pretrained(folder)
    return HFTarget.from_pretrained(str(folder))


def k_of(name: str) -> int:
    """Identities per class of a model."""
    return int(MODELS[name][1].get("k", 1))


def drawn_faces(options: argparse.Namespace) -> Setting:
    """64 people; of decoys there are 192. Identities are recognized by attributes, as the nearest of all 256."""
    recognizer = attribute_network(options.output_dir / "recognizer.safetensors")
    data, priors = cache(lambda seed: drawn(seed, K)), [load_generator(str(one)) for one in options.drawn_priors]

    def train(name: str, seed: int) -> Trained:
        some, people = data(seed), sample_identities(K * CLASSES, 1000 + seed)
        mine, tests = is_private(some, some.shown), torch.arange(len(some.test)) // TEST
        alone = some.images[mine], some.shown[mine] // K
        folder = options.output_dir / "models" / f"drawn-{seed}-{list(MODELS).index(name)}"
        target = trained(name, *(alone if k_of(name) == 1 else (some.images, some.shown)), seed, folder)
        mine = is_private(some, tests)

        def evaluate(images: Tensor) -> dict[str, list[float]]:
            return by_name(decoys.measures(images, images, target, priors[0], some, people, recognizer))

        return Trained(target, some.test[mine], tests[mine] // K, evaluate)

    numbers = {"steps": 30, "first": 20, "later": 5, "candidates": 500, "lr": 0.1, "path": 25, "samples": 10,
               "epochs": 6, "robust": 3}  # fmt: skip
    public = Subset(load_public_images(None, SIDE), range(PUBLIC))
    return Setting(CLASSES, 2, numbers, priors, public, train)


# Real faces


class Shown:
    """A target as a defense sees a model in training, whose inputs are images in [0, 1]."""

    dtype = torch.float32

    def __init__(self, target: Target) -> None:
        self.target, self.config = target, SimpleNamespace(num_labels=target.num_classes)

    def __call__(self, pixel_values: Tensor) -> Any:
        """Scores of images."""
        return SimpleNamespace(logits=self.target(pixel_values))


def anti_adversarial(target: Target, data: Cached, settings: Settings, seed: int, epochs: int) -> None:
    """Go on with a head by ``at_at``, in front of it a network that is frozen."""
    defense, count, progress = ATAT(ATATConfig.from_dict(settings)), itertools.count(), Progress("fit")
    run: Any = SimpleNamespace(model=Shown(target), pixel_scale=lambda _: PixelScale())
    defense.begin(run)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        draws = StepDraws.of_batch(seed, next(count), len(images), len(images))
        batch = defense.on_batch({"pixel_values": images, "labels": labels}, draws, progress)
        out = Forward(target(batch["pixel_values"]), batch["labels"], training=True)
        return torch.stack(list(defense.loss(out, progress).values())).sum()

    torch.manual_seed(seed)
    fit(cast(nn.Module, target.head), data, [(loss, epochs, 2e-3)], 0.01, 64)


FACES = "bolly100, k = 4"
"""Setting of ``benchmarks.decoy_faces``, whose people, heads and evaluation model these are."""
FEW_STEPS = {"steps": 2}
"""Steps of an adversarial example of real faces; together they are as long as the five of the defense."""


def real_faces(options: argparse.Namespace) -> Setting:
    """25 people of bolly100, 75 as decoys: heads on a frozen network. Another network recognizes them among all 100."""
    folder = options.output_dir / "kept"
    here: Any = SimpleNamespace(data=options.data, output_dir=folder)
    body, b = Embedding(options.data, "A").requires_grad_(False), Embedding(options.data, "B")
    cell = cache(lambda model, seed: decoy_faces.trained(FACES, seed, model, here))

    def train(name: str, seed: int) -> Trained:
        defense, settings = MODELS[name]
        judge, own = cell("decoys", seed), cell(defense if defense in decoy_faces.MODELS else "undefended", seed)
        people, classes = own.people, len(own.deal.private)
        head: Any = copy.deepcopy(own.target.head)
        target = KeptTarget(body, head, classes, folder)
        if defense == "at_at":
            file = folder / f"head-{seed}-{list(MODELS).index(name)}.safetensors"
            if not file.is_file():
                images = people["train"][own.deal.rows].float() / 255
                changed = settings | FEW_STEPS | {"step": 2.5 * ATATConfig.from_dict(settings).step}
                anti_adversarial(target, Cached(images, own.deal.identities), changed, seed, options.epochs)
                write_whole(file, save(head.state_dict()))
            head.load_state_dict(load_file(file))

        def evaluate(images: Tensor) -> dict[str, list[float]]:
            labels, scores = torch.arange(classes).repeat_interleave(len(images) // classes), embed(b, images)
            found = decoy_faces.evaluated(target, images, scores @ judge.means.T, labels, judge.deal.class_of)
            return found["everyone"]

        mine = (own.identity >= 0) & (own.identity < classes)
        return Trained(target, people["test"][mine].float() / 255, own.identity[mine], evaluate)

    numbers = {
        "steps": 20,
        "first": 12,
        "later": 4,
        "candidates": 400,
        "lr": 0.15,
        "path": 21,
        "samples": 4,
        "epochs": 3,
    }
    priors, public = [load_generator(str(one)) for one in options.faces_priors], load_images(options.public, PUBLIC)[0]
    return Setting(decoy_faces.SETTINGS[FACES].private, 2, numbers, priors, list(public), train, ("surrogate@robust",))


SETTINGS = {"drawn": drawn_faces, "bolly100": real_faces}


# The cells


def attacked(setting: Setting, model: Trained, row: Row, seed: int) -> dict[str, Any]:
    """Attack each class, and evaluate what was rebuilt."""
    prior, count, begin = setting.priors[row.prior], setting.classes * setting.images, time.process_time()
    if row.spec:
        attack = parse_attack(row.spec.format(**setting.numbers)).attack
        with tempfile.TemporaryDirectory() as place:
            spent = attack.prepare_for(model.target, prior, setting.public, Path(place), seed)
            found = attack.run(model.target, prior, range(setting.classes), images_per_class=setting.images, seed=seed)
        images, cost = found.images.float(), spent + found.cost
    else:
        images, cost = samples_of(prior, count, named_rng(seed, "benchmarks/frontier/samples")), Cost()
    seconds = time.process_time() - begin
    measures = model.evaluate(images)
    kept = {"images": measures[HEADLINE], "best guess": measures[guesses(HEADLINE)]}
    return {**kept, "passes": cost.target_passes / count, "seconds": seconds / count, "rebuilt": count}


def accuracy(model: Trained) -> dict[str, Any]:
    """Accuracy of each person."""
    with torch.no_grad():
        right = torch.cat([
            topk_correct(model.target(some), of)
            for some, of in zip(model.test.split(64), model.labels.split(64), strict=True)
        ])  # fmt: skip
    return {"accuracy": per_person(right, model.labels)}


def robust(model: Trained) -> dict[str, Any]:
    """Robust accuracy on a test image of each person."""
    one = torch.stack([(model.labels == person).nonzero()[0, 0] for person in model.labels.unique()])
    found = {eps: robust_accuracy(model.target, model.test[one], model.labels[one], eps) for eps in RADII}
    return {f"{eps:g}": share.to_dict() for eps, share in found.items()}


PARTS = {"accuracy": accuracy, "robust": robust}


def run(options: argparse.Namespace) -> None:
    """Compute the cells that have no file, training by training."""
    torch.set_num_threads(1)
    for seed, name in itertools.product(options.seeds, options.settings):
        setting = SETTINGS[name](options)
        train = cache(setting.train)
        for attack, model in itertools.product(["accuracy", *ATTACKS, "robust"], MODELS):
            row = ATTACKS.get(attack)
            file = options.output_dir / f"{name} {seed} {attack} {model}.json".replace(", ", "-").replace(" ", "_")
            left_out = {attack, model} & {*setting.without, *options.without}
            if left_out or file.is_file() or (row and (model not in row.models or row.prior >= len(setting.priors))):
                continue
            begin, known = time.process_time(), {"setting": name, "seed": seed, "attack": attack, "model": model}
            some = train(model, seed)
            found = PARTS[attack](some) if row is None else attacked(setting, some, row, seed)
            write_json(file, known | found)
            print(f"{file.name}: {time.process_time() - begin:.0f} s of processor time", flush=True)


# The tables


Cells = list[dict[str, Any]]
MEASURES = {"images": "recognized images", "best guess": "best guess"}


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, draw the figure, and print the tables."""
    cells = [json.loads(file.read_text()) for file in sorted(options.output_dir.glob("*.json"))]
    write_whole(options.output, ("[\n" + ",\n".join(map(json.dumps, cells)) + "\n]\n").encode())
    draw(cells, options.output.with_suffix(".png"))
    print(tables(cells))


def tables(cells: Cells) -> str:
    """The tables of docs/results/frontier.md."""
    found = []
    for setting in SETTINGS:
        mine = [one for one in cells if one["setting"] == setting]
        if not mine:
            continue
        models = {model: by_seed(mine, "accuracy", model) for model in MODELS}
        rows = []
        for model, some in models.items():
            if some:
                accuracy, less = compared(some, models[FIRST], "accuracy")
                shares = [mean_of(by_seed(mine, "robust", model), eps) for eps in RADII]
                rows.append([model, str(len(some)), accuracy, less, *shares])
        head = ["model", "trainings", "test accuracy", "points against none"]
        found.append(table([setting, *head[1:], *(f"robust at {eps:g}" for eps in RADII)], rows))
        rows = []
        for attack, model in itertools.product(ATTACKS, MODELS):
            some = by_seed(mine, attack, model)
            if some:
                controls = by_seed(mine, attack, FIRST) or by_seed(mine, "plg", FIRST)
                shown = [part for name in MEASURES for part in compared(some, controls, name)]
                several = list(some.values())
                passes, hits, seconds = (
                    float(np.mean([np.mean(one[name]) for one in several])) for name in ("passes", "images", "seconds")
                )
                rate = f"{1000 * hits / passes:.1f}" if passes else "–"
                rows.append([attack, model, str(len(some)), *shown, f"{passes:.0f}", rate, f"{seconds:.2f}"])
        against = [name for title in MEASURES.values() for name in (title, "points against none")]
        cost = ["passes per image", "recognized images per 1,000 passes", "seconds per image"]
        found.append(table([f"{setting}: attack", *head[:2], *against, *cost], rows))
    return "\n\n".join(found)


def by_seed(cells: Cells, attack: str, model: str) -> dict[int, dict[str, Any]]:
    """Trainings of a cell."""
    return {one["seed"]: one for one in cells if (one["attack"], one["model"]) == (attack, model)}


def compared(some: dict[int, dict[str, Any]], controls: dict[int, dict[str, Any]], name: str) -> tuple[str, str]:
    """A measure with its interval over people and trainings, and its distance from that of the undefended models."""
    both = [seed for seed in some if seed in controls]
    values, theirs = (np.array([of[seed][name] for seed in both]) for of in (some, controls))
    level = pooled(np.array([one[name] for one in some.values()]))
    return level, "" if not both or some == controls else points(values - theirs)


def mean_of(some: dict[int, dict[str, Any]], eps: float) -> str:
    """Mean robust accuracy."""
    return f"{100 * np.mean([one[f'{eps:g}']['value'] for one in some.values()]):.0f} %" if some else "–"


def draw(cells: Cells, file: Path) -> None:
    """One point per training: robust accuracy, and the share of images of ``plg`` that are recognized."""
    from matplotlib.figure import Figure

    known = [name for name in SETTINGS if any((one["setting"], one["attack"]) == (name, "robust") for one in cells)]
    figure = Figure(figsize=(4.5 * len(known), 3.6), layout="tight")
    axes = figure.subplots(1, len(known), squeeze=False)
    for axis, setting in zip(axes[0], known, strict=True):
        mine = [one for one in cells if one["setting"] == setting]
        for model in MODELS:
            models, leaks = by_seed(mine, "robust", model), by_seed(mine, "plg", model)
            both = [seed for seed in models if seed in leaks]
            if both:
                x = [100 * models[seed][f"{RADII[-1]:g}"]["value"] for seed in both]
                axis.plot(x, [100 * np.mean(leaks[seed]["images"]) for seed in both], "o", label=model)
        axis.set(title=setting, xlabel=f"robust accuracy at {RADII[-1]:g}, %", ylabel="recognized images, %")
        axis.set_xlim(-5, 105)
        axis.set_ylim(bottom=0)
    axes[0][0].legend(fontsize=8)
    write_figure(file, figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser, command = parsers("python -m benchmarks.frontier", __doc__, run, summarize)
    command.add_argument("--data", type=Path, required=True, help="folder of the face sets")
    command.add_argument("--public", type=Path, required=True, help="public faces: parquet file")
    command.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="trainings, in this order")
    command.add_argument("--drawn-priors", nargs="+", type=Path, required=True, help="folders of a GAN and a flow")
    command.add_argument("--faces-priors", nargs="+", type=Path, required=True, help="folders of a GAN and a flow")
    command.add_argument("--epochs", type=int, default=2, help="of at_at on real faces")
    command.add_argument(
        "--without", nargs="+", default=[], choices=[*ATTACKS, *MODELS, *PARTS], help="what to leave out"
    )
    options = parser.parse_args(argv)
    options.step(options)


if __name__ == "__main__":
    main()
