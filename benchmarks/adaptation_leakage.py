"""Confidence adaptation against a temperature, under attack: drawn faces, and real ones with a frozen network.

    calor-hf prior --image-size 32 --minutes 10 --output-dir outputs/drawn-prior
    python -m benchmarks.adaptation_leakage run --data DATA --drawn-prior outputs/drawn-prior \
        --faces-prior outputs/prior --output-dir outputs/adaptation_leakage    # resumes; one JSON file per cell
    python -m benchmarks.adaptation_leakage table --output-dir outputs/adaptation_leakage \
        --output docs/results/adaptation_leakage.json

``DATA`` holds the face sets; the prior of real faces is that of ``benchmarks.decoy_faces``. All settings were chosen on
other people and trainings.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import adaptation, adaptation_heads, effort
from benchmarks.decoy_controls import parsers
from benchmarks.decoy_faces import loaded, of_people, pooled
from benchmarks.mobilefacenet import Embedding
from benchmarks.real_faces import KeptTarget
from benchmarks.real_faces_audit import embed
from calor_hf import HFTarget, load_generator
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.files import write_json, write_whole
from calor_hf.core.report_text import table
from calor_hf.data.loading import load_splits
from calor_hf.defenses.calor import target_confidence
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.identification_game import log_odds
from calor_hf.metrics.statistics import pooled_interval
from calor_hf.targets.base import Target

PEOPLE, CLASSES = 40, 100
CA = "AdamW 5e-4"
"""Optimizer of the heads' adaptation: the one that moves single images most, at no measured cost of accuracy."""
MODELS = {
    "undefended": "undefended", "temperature": "undefended, temperature",
    "temperature, CA": "undefended, temperature, CA", "LoR": "cross-entropy", "LoR, CA as is": "as_is",
    "LoR, temperature": "temperature", "LoR, temperature, CA": "temperature, CA",
}  # fmt: skip
"""Models, and the ways of ``benchmarks.adaptation`` that give them."""
PAIRS = (
    ("temperature", "undefended"), ("temperature, CA", "temperature"), ("LoR", "undefended"),
    ("LoR, temperature", "LoR"), ("LoR, temperature, CA", "LoR, temperature"), ("LoR, CA as is", "LoR, temperature"),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """People, models and attacks.

    Attributes:
        images: Images of each person and attack.
        attacks: Spec and share of the published effort, by name.
        models: Targets of a seed with their numbers, by model.
        logits: (n, classes) scores of the evaluation model.
        prior: Generator of the attacks.
    """

    images: int
    attacks: dict[str, tuple[str, float]]
    models: Callable[[int], Iterator[tuple[str, Target, dict[str, Any]]]]
    logits: Callable[[Tensor], Tensor]
    prior: Any


ATTACKS = (("plg, max_margin", "ppa", "adaptive"), ("plg, ce", "if_gmi"), ("plg, poincare",))
"""In the order in which they are run."""


def scalars(numbers: dict[str, Any]) -> dict[str, float]:
    """Numbers of a model without those by person."""
    return {key: value for key, value in numbers.items() if not isinstance(value, list)}


AIM = f"{target_confidence(adaptation.B):.4f}"


def drawn(options: argparse.Namespace) -> Setting:
    """Small networks trained as a whole on drawn faces, with the evaluation model of ``benchmarks.effort``."""
    side, rank, epochs = effort.SIDE, 20, (20, 5)
    splits = load_splits(num_identities=CLASSES, image_size=side, seed=effort.SEED)
    judge = effort.network("evaluation-model", options.output_dir / "networks", effort.SEED)
    labels = np.asarray(splits.train["label"])

    def models(seed: int) -> Iterator[tuple[str, Target, dict[str, Any]]]:
        for way, trainer in adaptation.trainings(splits, seed, side, rank, epochs, list(adaptation.GOES_ON)):
            numbers = scalars(adaptation.measure(trainer, labels))
            yield way, HFTarget(trainer.model.eval(), trainer.processing_class), numbers

    steps = "steps=30,views=0,initial_candidates=500,lr=0.1"
    attacks = {
        "plg, max_margin": (f"plg:{steps}", 1.0), "plg, ce": (f"plg:objective=ce,{steps}", 1.0),
        "plg, poincare": (f"plg:objective=poincare,{steps}", 1.0),
        "ppa": ("ppa:restarts=1,final_views=0,initial_candidates=500", 1.0),
        "if_gmi": ("if_gmi:initial_candidates=500", 1.0),
        "adaptive": (f"plg@adaptive:objective=ce,aim={AIM},{steps}", 1.0),
    }  # fmt: skip
    return Setting(4, attacks, models, judge, load_generator(str(options.drawn_prior), image_size=side))


def faces(options: argparse.Namespace) -> Setting:
    """Heads on a frozen face network, of bolly100; another face network recognizes people."""
    people, folder = loaded("bolly100", options.data, options.output_dir / "kept"), options.output_dir / "kept"
    parts = {"train": people["train/A"], "mirrored": people["train/mirrored"], "train_labels": people["train/people"],
             "test": people["test/A"], "test_labels": people["test/people"]}  # fmt: skip
    body, judge = Embedding(options.data, "A"), Embedding(options.data, "B")
    means = F.normalize(torch.stack([people["train/B"][of].mean(dim=0) for of in of_people(people["train/people"])]))
    rank = adaptation.SETS["bolly100"][2]

    def models(seed: int) -> Iterator[tuple[str, Target, dict[str, Any]]]:
        for way, head in adaptation_heads.heads(parts, rank, seed):
            numbers = scalars(adaptation_heads.measure(head, parts))
            yield way.removesuffix(f", {CA}"), KeptTarget(body, head, CLASSES, folder), numbers

    steps = "steps=20,views=0,initial_candidates=400,lr=0.15"
    attacks = {
        "plg, max_margin": (f"plg:{steps}", 1.0), "plg, ce": (f"plg:objective=ce,{steps}", 1.0),
        "plg, poincare": (f"plg:objective=poincare,{steps}", 1.0),
        "ppa": ("ppa:restarts=1,final_views=0,initial_candidates=400", 0.4),
        "if_gmi": ("if_gmi:initial_candidates=400", 1 / 3),
        "adaptive": (f"plg@adaptive:objective=ce,aim={AIM},{steps}", 1.0),
    }  # fmt: skip
    prior = load_generator(str(options.faces_prior))
    return Setting(2, attacks, models, lambda images: embed(judge, images) @ means.T, prior)


SETTINGS = {"drawn": drawn, "bolly100": faces}


def run(options: argparse.Namespace) -> None:
    """Compute the cells that have no file: some attacks of all trainings, and then the others."""
    torch.set_num_threads(1)
    settings = {name: SETTINGS[name](options) for name in options.settings}

    @cache
    def models(name: str, seed: int) -> dict[str, tuple[Target, dict[str, Any]]]:
        found = {way: (target, numbers) for way, target, numbers in settings[name].models(seed)}
        return {model: found[way] for model, way in MODELS.items()}

    for group, seed, name in itertools.product(ATTACKS, options.seeds, settings):
        for attack, model in itertools.product(group, MODELS):
            slug = f"{name} {seed} {attack} {model}".replace(", ", "-").replace(" ", "_")
            file = options.output_dir / f"{slug}.json"
            if attack in settings[name].attacks and not file.is_file():
                target, numbers = models(name, seed)[model]
                known = {"setting": name, "seed": seed, "attack": attack, "model": model, "numbers": numbers}
                begin = time.process_time()
                found = attacked(settings[name], target, attack, seed)
                seconds = time.process_time() - begin
                write_json(file, known | found | {"cpu_seconds": seconds})
                print(f"{file.name}: {seconds:.0f} s of processor time", flush=True)


def attacked(setting: Setting, target: Target, attack: str, seed: int) -> dict[str, Any]:
    """Attack each person; for each image, how the evaluation model and the target see it."""
    spec, effort_share = setting.attacks[attack]
    rebuilt = parse_attack(spec, budget=effort_share).attack.run(
        target, setting.prior, range(PEOPLE), images_per_class=setting.images, seed=seed, chunk_size=20
    )
    images, labels = rebuilt.images.float(), rebuilt.labels
    with torch.no_grad():
        logits, odds = setting.logits(images), log_odds(target(images), labels)
    others = (logits < logits.gather(1, labels[:, None])).double().sum(dim=1) / (CLASSES - 1)
    by_person = {"recognized": topk_correct(logits, labels), "others_less_alike": others, "odds": odds,
                 "score": rebuilt.scores}  # fmt: skip
    return {
        "spec": spec, "effort": effort_share, "gradients": rebuilt.cost.target_gradients,
        **{name: of.view(PEOPLE, -1).tolist() for name, of in by_person.items()},
    }  # fmt: skip


# The tables

Images = dict[str, NDArray[np.float64]]
"""(trainings, people, images) numbers of images, by name."""
MEASURES: dict[str, Callable[[Images], NDArray[np.float64]]] = {
    "best guess": lambda of: np.take_along_axis(of["recognized"], of["odds"].argmax(-1, keepdims=True), -1)[..., 0],
    "in any image": lambda of: of["recognized"].max(-1),
    "images": lambda of: of["recognized"].mean(-1),
    "others less alike": lambda of: of["others_less_alike"].mean(-1),
}
"""(trainings, people) whether the image that the target likes best is recognized, whether any is, the share that is,
and the share of other people that the images resemble less."""
NUMBERS = ("test_accuracy", "train_confidence", "deviation", "ca_loss")
ALL = "all together"


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, and print the tables."""
    cells = [
        {key: np.round(value, 3).tolist() if isinstance(value, list) else value for key, value in cell.items()}
        for cell in (json.loads(file.read_text()) for file in sorted(options.output_dir.glob("*.json")))
    ]
    write_whole(options.output, ("[\n" + ",\n".join(map(json.dumps, cells)) + "\n]\n").encode())
    print(tables(cells))


def gathered(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Images]]]:
    """Images by setting, attack and model, of the trainings that all models have; of all attacks together, too."""
    by = {(one["setting"], one["attack"], one["model"], one["seed"]): one for one in cells}
    every, found = sorted({int(one["seed"]) for one in cells}), dict[str, dict[str, dict[str, Images]]]()

    def stacked(setting: str, attack: str, model: str, seeds: Sequence[int]) -> Images:
        some = [by[setting, attack, model, seed] for seed in seeds]
        return {name: np.array([one[name] for one in some]) for name in ("recognized", "others_less_alike", "odds")}

    for setting in SETTINGS:
        whole = {
            attack: [seed for seed in every if all((setting, attack, model, seed) in by for model in MODELS)]
            for attack in itertools.chain(*ATTACKS)
        }
        whole = {attack: seeds for attack, seeds in whole.items() if seeds}
        if not whole:
            continue
        found[setting] = {
            attack: {model: stacked(setting, attack, model, seeds) for model in MODELS}
            for attack, seeds in whole.items()
        }
        common = [seed for seed in every if all(seed in seeds for seeds in whole.values())]
        together = {model: [stacked(setting, attack, model, common) for attack in whole] for model in MODELS}
        found[setting][ALL] = {
            model: {name: np.concatenate([one[name] for one in several], axis=2) for name in several[0]}
            for model, several in together.items()
        }
    return found


def tables(cells: Sequence[dict[str, Any]]) -> str:
    """The tables of docs/results/adaptation_leakage.md."""
    models = {(one["setting"], one["model"], one["seed"]): one["numbers"] for one in cells}
    use = []
    for setting, model in itertools.product(SETTINGS, MODELS):
        some = [numbers for (*one, _), numbers in models.items() if one == [setting, model]]
        if some:
            use.append(
                [setting, model, str(len(some)), *(f"{np.mean([one[key] for one in some]):.4f}" for key in NUMBERS)]
            )
    found = [table(["people", "model", "trainings", *(adaptation.COLUMNS[key] for key in NUMBERS)], use)]
    for setting, attacks in gathered(cells).items():
        columns = {f"{ALL}: {name}": (ALL, measure) for name, measure in MEASURES.items()}
        columns |= {attack: (attack, MEASURES["images"]) for attack in attacks if attack != ALL}
        counts = {attack: len(next(iter(of.values()))["odds"]) for attack, of in attacks.items()}
        trainings = ["trainings", *(str(counts[attack]) for attack, _ in columns.values())]
        levels = [
            [model, *(pooled(measure(attacks[attack][model])) for attack, measure in columns.values())]
            for model in MODELS
        ]
        changes = [
            [f"{model} − {control}", *(
                points(measure(attacks[attack][model]) - measure(attacks[attack][control]))
                for attack, measure in columns.values()
            )]
            for model, control in PAIRS
        ]  # fmt: skip
        found += [table([setting, *columns], [*levels, trainings]), table([f"{setting}, points", *columns], changes)]
    return "\n\n".join(found)


def points(values: NDArray[np.float64]) -> str:
    """Mean of differences over (trainings, people) in points, with its interval over both."""
    mean, low, high = pooled_interval(values)
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser, command = parsers("python -m benchmarks.adaptation_leakage", __doc__, run, summarize)
    command.add_argument("--data", type=Path, required=True, help="folder of the face sets")
    command.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="trainings, in this order")
    command.add_argument("--drawn-prior", type=Path, required=True, help="of drawn faces, of 32 pixels: folder")
    command.add_argument("--faces-prior", type=Path, required=True, help="of real faces: folder")
    options = parser.parse_args(argv)
    options.step(options)


if __name__ == "__main__":
    main()
