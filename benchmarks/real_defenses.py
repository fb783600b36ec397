"""All defenses on real faces: a frozen face network, heads of the same private people, and the attacks on each.

    python -m benchmarks.real_defenses public --data DATA --output outputs/public.parquet
    calor-hf prior --dataset outputs/public.parquet --image-size 32 \
        --settings width=32 discriminator_steps=1 batch_size=32 lr=5e-4 steps=7052 --output-dir GAN
    python -m benchmarks.real_defenses ridge --data DATA --public outputs/public.parquet --output-dir PRIOR
    python -m benchmarks.real_defenses search --data DATA --output-dir OUT    # strengths, by held-out images
    python -m benchmarks.real_defenses choose --output-dir OUT                # writes OUT/strengths.json
    python -m benchmarks.real_defenses run --data DATA --prior PRIOR --gan GAN --output-dir OUT
    python -m benchmarks.real_defenses curves --data DATA --prior PRIOR --output-dir OUT
    python -m benchmarks.real_defenses second --data DATA --prior PRIOR --output-dir OUT    # another evaluation model
    python -m benchmarks.real_defenses table --cells OUT --output docs/results/real_defenses.json

``DATA`` holds the face sets. Each cell is a JSON file that the same command does not compute again. OUT/images holds
what was rebuilt, OUT/models the models, OUT/kept what the networks saw; ``--kept`` names another folder for the latter.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from benchmarks.adaptation import arguments
from benchmarks.decoy_faces import (
    FEW,
    SETTINGS,
    Classes,
    Setting,
    classes_of,
    dealt,
    loaded,
    number_of,
    per_person,
    without_test,
)
from benchmarks.face_classifier import face_classifier, face_processor
from benchmarks.frontier import Identified, by_seed, compared
from benchmarks.handcrafted import Handcrafted, reduced
from benchmarks.mobilefacenet import Embedding
from benchmarks.real_faces import kept
from benchmarks.real_faces_audit import embed, samples_of
from calor_hf import CALoRTrainer, DefenseTrainer, HFTarget, load_generator, train_prior
from calor_hf._version import __version__
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.files import write_figure, write_json, write_whole
from calor_hf.core.report_text import table
from calor_hf.core.seeding import named_rng
from calor_hf.data.loading import load_public_images
from calor_hf.defenses.base import Strength
from calor_hf.heads.features import scores_of
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.identification_game import log_odds
from calor_hf.metrics.membership import membership
from calor_hf.metrics.statistics import pooled_interval
from calor_hf.modeling import DefendedForImageClassification, defend
from calor_hf.priors.ridge import RidgePriorConfig, RidgePriorTraining

Settings = dict[str, Any]

EACH = 4
"""Images of each class and attack."""
PLG = "steps=20,views=2,initial_candidates=1000,lr=0.1"
GAN = "plg over a GAN"
ATTACKS = {
    "plg": f"plg:{PLG}",
    "adaptive": f"plg@adaptive:{PLG}",
    "ppa": "ppa:steps=20,restarts=1,final_views=0,smoothing=views,samples=2,initial_candidates=1000",
    "auto": "auto:effort=10",
    GAN: "plg:steps=30,views=2,initial_candidates=1000,lr=0.1",
}
FEWER = {GAN: 2, "auto": 1}
"""Images of each class, of attacks that have fewer (of ``auto``: of each member)."""
ADAPTIVE = {"decoys": f"mode_ranking@adaptive:{PLG}", "at_at": f"plg@smoothed:{PLG},samples=2"}
"""Attack of the row ``adaptive`` on a defense, as the ensemble ``auto`` has it."""
RATES = {"learning_rate": 5e-3, "weight_decay": 0.5, "num_train_epochs": 30, "adapt_epochs": 10,
         "per_device_train_batch_size": 256}  # fmt: skip
"""Training on features that are kept, of the images and of their mirror images."""
LOW_RANK = {"learning_rate": 2e-2}
"""The same for low-rank heads, whose features have their own length, as ``benchmarks.decoy_faces search`` found."""
ON_IMAGES: dict[str, Settings] = {
    "random_erasing": {"num_train_epochs": 8},
    "trap_mid": {"num_train_epochs": 2, "learning_rate": 2e-3},
    "at_at": {"num_train_epochs": 1, "learning_rate": 2e-3},
}
"""Training of the defenses that change images, on images."""
GOES_ON = ("trap_mid", "at_at")
"""Of these, those whose training starts from the undefended head, as a step takes long."""
FALSE_ACCEPTS = (1e-2, 1e-3)
LOSS = 0.01
"""Accuracy that a defense may lose."""
PARTITIONS = (100, 101)


def spaced(name: str, weakest: float, strongest: float, count: int = 5, whole: bool = False, **rest: Any) -> Any:
    """Settings of ``count`` strengths, evenly by the logarithm."""
    strength = Strength(name, weakest, strongest, log=True, whole=whole)
    return [{name: strength.at(place / (count - 1)), **rest} for place in range(count)]


def ranks(setting: Setting) -> list[Settings]:
    """Ranks of a head of as many classes as there are private people."""
    found: list[Settings] = spaced("rank", 0.8 * setting.private, 0.32 * setting.private, whole=True)
    return found


MODELS: dict[str, tuple[str, Callable[[Setting], list[Settings]]]] = {
    "none": ("none", lambda _: [{}]),
    "calor": ("calor", ranks),
    "loft": ("loft", ranks),
    "mid": ("mid", lambda _: spaced("beta", 0.0025, 0.04)),
    "bido": ("bido", lambda _: spaced("lambda_out", 0.1, 30, layers=("classifier",))),
    "label_smoothing": ("label_smoothing", lambda _: spaced("alpha", -0.02, -0.5)),
    "random_erasing": ("random_erasing", lambda _: [{"max_area": area} for area in (0.4, 0.6, 0.9)]),
    "trap_mid": ("trap_mid", lambda _: spaced("weight", 0.05, 0.8, 3)),
    "at_at": ("at_at", lambda _: [
        {"steps": 2, "eps": eps, "step": eps / 2, "weight": weight}
        for eps, weight in ((0.0005, 0.08), (0.0015, 0.12), (0.005, 0.2), (0.01, 0.25), (0.02, 0.3))
    ]),
    "decoys": ("decoys", lambda setting: [{"k": setting.k}]),
    "decoys, low rank": ("decoys", lambda setting: spaced("rank", 80, 24, whole=True, k=setting.k)),
}  # fmt: skip
"""Defense of each model, and its strengths, from the weakest on; the first model is what others are compared with."""
FIRST = next(iter(MODELS))
CURVES: dict[str, Callable[[Setting], list[Settings]]] = {
    name: strengths for name, (_, strengths) in MODELS.items() if name not in (FIRST, "trap_mid")
} | {"decoys": lambda setting: [{"k": k} for k in range(2, setting.k + 1)]}
"""Strengths of each curve; ``trap_mid``, whose row is not marked, has none."""


# The public images


def public(options: argparse.Namespace) -> None:
    """Write the images of the prior: LFW of people in no cell, UTKFace in the same geometry, all mirrored too."""
    from datasets import Dataset as Table
    from datasets import Features, load_dataset
    from datasets import Image as Column

    lfw, utk = (
        load_dataset("parquet", data_files=str(options.data / name / "train.parquet"), split="train")
        for name in ("lfw_public_64", "utk_public_64")
    )
    people = np.array(lfw["label"])
    images = [*lfw.select(np.flatnonzero(np.bincount(people)[people] < FEW))["image"], *map(as_lfw, utk["image"])]
    images += [ImageOps.mirror(one) for one in images]
    Table.from_dict({"image": images}, features=Features({"image": Column()})).to_parquet(options.output)


def as_lfw(image: Image.Image) -> Image.Image:
    """UTKFace with the eyes where LFW has them: 0.455 of the side apart at a height of 0.21, and 0.422 at 0.353."""
    side, border, scale = image.width, image.width // 4, 0.455 / 0.422
    wide = np.pad(np.asarray(image.convert("RGB")), ((border, border), (border, border), (0, 0)), mode="edge")
    left, top = side * (1 - scale) / 2 + border, side * (0.21 - 0.353 * scale) + border
    return Image.fromarray(wide).transform(
        image.size, Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), Image.Resampling.BICUBIC
    )


def ridge(options: argparse.Namespace) -> None:
    """Fit the linear decoder to network A's features of the public images."""
    images, base = load_public_images(str(options.public), 64), face_classifier(options.data, 2)
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        face_processor().save_pretrained(folder)
        target = HFTarget.from_pretrained(folder)
    ridge_prior(target, images, options.output_dir, len(images) // 128)


def ridge_prior(target: HFTarget, images: Any, folder: Path, steps: int, overwrite: bool = False) -> Any:
    """The prior `ridge` of a model, which reads 128 public images in each step."""
    training = RidgePriorTraining(RidgePriorConfig(steps=steps))
    return train_prior(training, images, folder, target=target, save_steps=steps, overwrite=overwrite)


def prior_of(options: argparse.Namespace, attack: str) -> tuple[Path, Any]:
    """Folder and generator of the prior that an attack uses."""
    place = options.gan if attack == GAN else options.prior
    return place, loaded_prior(place)


@cache
def loaded_prior(place: Path) -> Any:
    """The generator in a folder."""
    return load_generator(str(place), image_size=64)


# The people and their models


@dataclass(frozen=True, eq=False)
class World:
    """People of a setting and a seed.

    Attributes:
        setting: The setting.
        people: The set, as ``benchmarks.decoy_faces.loaded`` has it.
        alone: Classes of the private people.
        dealt: Classes of the same people with decoys.
    """

    setting: Setting
    people: dict[str, Tensor]
    alone: Classes
    dealt: Classes

    @classmethod
    def of(cls, people: dict[str, Tensor], setting: Setting, seed: int) -> "World":
        """Draw the people."""
        deal = dealt(people, setting, seed)
        return cls(setting, people, *(classes_of(people, deal, decoys) for decoys in (False, True)))

    def test(self, features: str = "A") -> tuple[Tensor, Tensor, Tensor]:
        """Features of all test images, the person of each (private ones first), and which ones are private."""
        owner = number_of(self.dealt.people, self.people["test/people"])
        return self.people[f"test/{features}"], owner, (owner >= 0) & (owner < self.setting.private)


def untrained(world: World, name: str, settings: Settings, data: Path, **more: Any) -> DefendedForImageClassification:
    """Network A with a head; ``more`` is for ``face_classifier``."""
    defense, scale = MODELS[name][0], {"feature_scale": 1.0} if "rank" in settings else {}
    base = face_classifier(data, world.setting.private, projection=defense == "bido", **scale, **more)
    return defend(base, defense, **settings)


def trained(world: World, name: str, settings: Settings, seed: int, data: Path) -> DefendedForImageClassification:
    """Train a head on features of network A, or on images."""
    defense, people, k = MODELS[name][0], world.people, int(settings.get("k", 1))
    rates = RATES | ON_IMAGES.get(name, {}) | (LOW_RANK if "rank" in settings else {})
    own = world.dealt if defense == "decoys" else world.alone
    torch.manual_seed(seed)
    model = untrained(world, name, settings, data)
    both = torch.cat([people["train/A"][own.rows], people["train/mirrored"][own.rows]])
    features = Identified(both, own.identities.repeat(2), k)
    shown = features
    if name in ON_IMAGES:
        shown = Identified(people["train"][own.rows] / 127.5 - 1, own.identities, k)
        rates |= {"per_device_train_batch_size": 64}
    if name in GOES_ON:
        start = trained(world, FIRST, {}, seed, data)
        model.classification_head.load_state_dict(start.classification_head.state_dict())
    return through_stages(model, shown, features, seed, head_only=defense != "bido", **rates)


def through_stages(
    model: DefendedForImageClassification, images: Identified, evaluated: Identified, seed: int, **rates: Any
) -> DefendedForImageClassification:
    """Train a model by the library's trainer; the checkpoint is chosen without a limit of accuracy."""
    with tempfile.TemporaryDirectory() as place:
        kind = CALoRTrainer if model.config.defense == "calor" else DefenseTrainer
        trainer: DefenseTrainer = kind(
            model=model, args=arguments(place, seed, **rates), train_dataset=images, eval_dataset=evaluated,
            processing_class=face_processor(),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train_stages()
    return trainer.bare_model.eval()  # type: ignore[no-any-return]


class Once(HFTarget):
    """Looks at images that need no gradient once for all models, as their network is the same.

    Attributes:
        folder: Folder of what it saw.
    """

    folder: Path

    def features(self, images: Tensor) -> Tensor:
        """(batch, 128) inputs of the classifier."""
        if torch.is_grad_enabled():
            return super().features(images)
        body: Any = self._body
        return scores_of(body(kept(lambda some: body.features(2 * some - 1), self.folder)(images)))


def accuracy(model: Any, world: World) -> list[float]:
    """Accuracy of each private person on test images."""
    features, owner, mine = world.test()
    torch.manual_seed(0)  # the noise of MID
    with torch.no_grad():
        return per_person(topk_correct(model(pixel_values=features[mine]).logits, owner[mine]), owner[mine])


def membership_of(model: Any, world: World, own: Classes) -> float:
    """Area under the curve of membership inference by the loss, of private people's training and test images."""
    features, owner, mine = world.test()
    trained_on = number_of(world.dealt.people, world.people["train/people"][own.rows])
    ours = trained_on < world.setting.private
    torch.manual_seed(0)  # the noise of MID
    with torch.no_grad():
        seen, held = (
            model(pixel_values=some).logits for some in (world.people["train/A"][own.rows[ours]], features[mine])
        )
    return membership(seen, trained_on[ours], held, owner[mine])[0].value


# Strengths


def slug(*parts: Any) -> str:
    """Name of a cell's file."""
    return " ".join(map(str, parts)).replace(", ", "-").replace(" = ", "").replace(" ", "_")


def search(options: argparse.Namespace) -> None:
    """Accuracy of all strengths on a fifth of the training images, in partitions that ``run`` does not use."""
    for name, partition in itertools.product(options.settings, PARTITIONS):
        part = without_test(loaded(SETTINGS[name].people, options.data, options.kept), partition)
        world = World.of(part, SETTINGS[name], partition)
        for model in options.models:
            if model in ON_IMAGES and partition != PARTITIONS[0]:
                continue
            for place, settings in enumerate(MODELS[model][1](SETTINGS[name])):
                file, begin = options.output_dir / "search" / f"{slug(name, partition, model, place)}.json", time.time()
                if file.is_file():
                    continue
                found = accuracy(trained(world, model, settings, partition, options.data), world)
                known = {"setting": name, "partition": partition, "model": model, "settings": settings}
                write_json(file, known | {"accuracy": found})
                print(f"{file.stem}: {settings}: {100 * np.mean(found):.2f} %, {time.time() - begin:.0f} s", flush=True)


def choose(options: argparse.Namespace) -> None:
    """The strongest settings that lose at most a point of held-out accuracy, or the weakest if all lose more."""
    cells = [json.loads(file.read_text()) for file in (options.output_dir / "search").glob("*.json")]
    chosen: dict[str, dict[str, Settings]] = {}
    for name, model in itertools.product(SETTINGS, MODELS):
        known: list[tuple[Settings, float]] = []
        for settings in MODELS[model][1](SETTINGS[name]):
            as_json = json.loads(json.dumps(settings))
            some = [one for one in cells if (one["setting"], one["model"], one["settings"]) == (name, model, as_json)]
            first = {one["partition"]: one for one in cells if (one["setting"], one["model"]) == (name, FIRST)}
            lost = [np.mean(first[one["partition"]]["accuracy"]) - np.mean(one["accuracy"]) for one in some]
            if lost:
                known.append((settings, float(np.mean(lost))))
                print(f"{name}: {model}, {settings}: {100 * np.mean(lost):.2f} points lost", flush=True)
        if known:
            fits = [settings for settings, lost in known if lost <= LOSS]
            chosen.setdefault(name, {})[model] = fits[-1] if fits else known[0][0]
    write_json(options.output_dir / "strengths.json", chosen)
    print(json.dumps(chosen, indent=1))


# The cells


@dataclass(frozen=True)
class Judge:
    """Network B, and what it knows of the people.

    Attributes:
        net: The network.
        means: (people, 128) of unit length: the mean training image of each person of the set, private ones first.
        thresholds: By false-accept rate, (private people,) least cosine to their mean.
        class_of: (people,) class of each; −1 for people of none.
        photos: Training images of each private person, (images, 128) of unit length.
    """

    net: Embedding
    means: Tensor
    thresholds: dict[float, Tensor]
    class_of: Tensor
    photos: list[Tensor]

    @classmethod
    def of(cls, world: World, data: Path) -> "Judge":
        """Thresholds are those of real test images of other people."""
        people, seen = world.people, F.normalize(world.people["train/B"])
        others = [one for one in range(len(people["strata"])) if one not in world.dealt.people]
        photos = [seen[people["train/people"] == one] for one in [*world.dealt.people, *others]]
        means = F.normalize(torch.stack([one.mean(0) for one in photos]))
        tests, owner, _ = world.test("B")
        cosines = F.normalize(tests) @ means.T
        false = [cosines[owner != one, one].sort(descending=True).values for one in range(world.setting.private)]
        limits = {rate: torch.stack([one[int(rate * len(one))] for one in false]) for rate in FALSE_ACCEPTS}
        class_of = torch.cat([world.dealt.class_of, torch.full((len(others),), -1)])
        return cls(Embedding(data, "B"), means, limits, class_of, photos[: world.setting.private])

    def measured(self, target: HFTarget, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
        """Measures by person of images in [0, 1], as many of each class, side by side."""
        seen = F.normalize(embed(self.net, images))
        cosines = seen @ self.means.T
        nearest, own = cosines.argmax(1), cosines.gather(1, labels[:, None]).squeeze(1)
        torch.manual_seed(0)  # the noise of MID
        with torch.no_grad():
            sure = log_odds(target(images), labels)
        each = (len(labels.unique()), -1)
        by_person = (nearest == labels).view(each).double()
        chosen = sure.view(each).argmax(1, keepdim=True)
        verified = {rate: (own > limit[labels]).view(each).double() for rate, limit in self.thresholds.items()}
        found = {
            "images": by_person.mean(1),
            "best guess": by_person.gather(1, chosen).squeeze(1),
            ONE_OF_N: by_person.amax(1),
            HITS: (self.class_of[nearest] == labels).view(each).double().mean(1),
            TOP5: topk_correct(cosines, labels, 5).view(each).double().mean(1),
            DISTANCE: torch.stack([
                torch.cdist(some, self.photos[label]).amin(1).mean()
                for some, label in zip(seen.view(*each, seen.shape[1]), labels.view(each)[:, 0], strict=True)
            ]),
        }  # fmt: skip
        found |= {f"verified at {rate:g}": of.mean(1) for rate, of in verified.items()}
        found |= {f"best guess verified at {rate:g}": of.gather(1, chosen).squeeze(1) for rate, of in verified.items()}
        return {name: [round(float(one), 4) for one in of] for name, of in found.items()}


ONE_OF_N, TOP5, DISTANCE, MEMBERSHIP = "one of n", "top 5", "distance", "membership"
HITS = "private person or decoy"
PAIRED = ("images", "best guess", ONE_OF_N)
"""Measures whose distance from the undefended models is shown."""
MEASURES = ("images", HITS, "best guess", ONE_OF_N, *(f"verified at {rate:g}" for rate in FALSE_ACCEPTS))


def controls(prior: Any, count: int, seed: int) -> Tensor:
    """(count, 3, 64, 64) samples of the prior, that are measured like reconstructions."""
    return samples_of(prior, count, named_rng(seed, "benchmarks/real_defenses/samples"))


def attacked(
    target: HFTarget, world: World, judge: Judge, prior: Any, spec: str, each: int, seed: int, images_file: Path
) -> dict[str, Any]:
    """Attack each class, and evaluate what was rebuilt, and as many samples of the prior."""
    classes, begin, parsed = world.setting.private, time.process_time(), parse_attack(spec)
    # With fewer images than identities it would leave out the private one of some classes.
    each = max(each, world.setting.k) if parsed.kind == "mode_ranking" else each
    with tempfile.TemporaryDirectory() as place:
        spent = parsed.attack.prepare_for(target, prior, None, Path(place), seed)
        found = parsed.attack.run(target, prior, range(classes), images_per_class=each, seed=seed)
    seconds, images = time.process_time() - begin, found.images.float()
    write_whole(images_file, save({"images": (255 * images).round().byte(), "labels": found.labels}))
    samples = controls(prior, len(images), seed)
    return {
        "spec": spec, "effort": parsed.effort, "passes": (spent + found.cost).target_passes / len(images),
        "seconds": seconds / len(images), "each": len(images) // classes,
        **judge.measured(target, images, found.labels),
        "samples": judge.measured(target, samples, found.labels),
    }  # fmt: skip


def cells(options: argparse.Namespace, plan: Callable[[str, str], Iterator[tuple[str, Settings]]]) -> None:
    """Compute the cells that have no file; ``plan`` gives a setting's strengths of a model, each with a name."""
    (options.output_dir / "images").mkdir(parents=True, exist_ok=True)
    for seed, name in itertools.product(options.seeds, options.settings):
        setting = SETTINGS[name]
        people, judge = loaded(setting.people, options.data, options.kept), cache(partial(Judge.of, data=options.data))
        # The private people and their classes are the same with any k.
        worlds = {k: World.of(people, replace(setting, k=k), seed) for k in range(2, setting.k + 1)}
        for attack, model in itertools.product(["accuracy", *options.attacks], options.models):
            for strength, settings in plan(name, model):
                key, world = slug(name, seed, attack, model + strength), worlds[int(settings.get("k", setting.k))]
                file, begin = options.output_dir / f"{key}.json", time.process_time()
                if file.is_file():
                    if told(json.loads(file.read_text())["settings"]) != told(settings):
                        raise SystemExit(
                            f"{file} has other settings than {told(settings)}; delete it, or take another folder"
                        )
                    continue
                folder = options.output_dir / "models" / slug(name, seed, model + strength)
                if not (folder / "config.json").is_file():
                    trained(world, model, settings, seed, options.data).save_pretrained(folder)
                    face_processor().save_pretrained(folder)
                target = cast(Once, Once.from_pretrained(str(folder)))
                target.folder = options.kept / "A"
                place, prior = prior_of(options, attack)
                known = {"setting": name, "seed": seed, "attack": attack, "model": model, "strength": strength,
                         "settings": settings, "prior": place.name, "version": __version__}  # fmt: skip
                if attack == "accuracy":
                    own = world.dealt if MODELS[model][0] == "decoys" else world.alone
                    found: dict[str, Any] = {"accuracy": accuracy(target.module, world),
                                             MEMBERSHIP: membership_of(target.module, world, own)}  # fmt: skip
                else:
                    spec = ADAPTIVE.get(MODELS[model][0], ATTACKS[attack]) if attack == "adaptive" else ATTACKS[attack]
                    images = options.output_dir / "images" / f"{key}.safetensors"
                    found = attacked(target, world, judge(world), prior, spec, FEWER.get(attack, EACH), seed, images)
                write_json(file, known | found)
                numbers = " ".join(f"{one} {100 * np.mean(found[one]):.1f} %," for one in ("accuracy", *MEASURES[:4])
                                   if one in found)  # fmt: skip
                print(f"{file.stem}: {numbers} {time.process_time() - begin:.0f} s of processor time", flush=True)


def run(options: argparse.Namespace) -> None:
    """Compute the cells of the table, with the strengths that ``choose`` wrote, or else the middle ones."""
    cells(options, lambda name, model: iter([("", strength_of(options, name, model))]))


def curves(options: argparse.Namespace) -> None:
    """Compute the cells of all strengths of some models; those of the chosen one are the table's."""

    def plan(name: str, model: str) -> Iterator[tuple[str, Settings]]:
        own = strength_of(options, name, model)
        for place, settings in enumerate(CURVES[model](SETTINGS[name])):
            yield ("", own) if told(settings) == told(own) else (f" {place}", settings)

    cells(options, plan)


def strength_of(options: argparse.Namespace, name: str, model: str) -> Settings:
    """Settings of a model in the table."""
    file, every = options.output_dir / "strengths.json", MODELS[model][1](SETTINGS[name])
    chosen = json.loads(file.read_text()) if file.is_file() else {}
    found: Settings = chosen.get(name, {}).get(model, every[len(every) // 2])
    return found


def told(settings: Settings) -> str:
    """Settings of a model, but for the layers."""
    return ", ".join(f"{key} = {value:.3g}" for key, value in settings.items() if key != "layers")


# The second evaluation model


SECOND = ("images, second", "best guess, second")
"""Measures by it: whether the nearest of the private people alone is the right one."""
AGREEMENT = "agreement"
"""Whether both evaluation models name the same of the private people."""


def second(options: argparse.Namespace) -> None:
    """Add measures by a model of hand-crafted features to the cells, and cells of its accuracy on real images."""

    @cache
    def learned(name: str) -> tuple[dict[str, Tensor], Handcrafted]:
        people = loaded(name, options.data, options.kept)
        return people, Handcrafted().fit(people["train"] / 255, people["train/people"])

    left = {one: unjudged(options.output_dir, *one) for one in itertools.product(options.settings, options.seeds)}
    if options.gan is None and any(cell["attack"] == GAN for some in left.values() for cell in some.values()):
        raise SystemExit(f"cells of '{GAN}' need --gan, the prior whose samples they are compared with")
    for (name, seed), some in left.items():
        people, model = learned(SETTINGS[name].people)
        world = World.of(people, SETTINGS[name], seed)
        both = partial(named, model, Judge.of(world, options.data), world.dealt.people[: world.setting.private])
        _, owner, mine = world.test()
        for kind, change in (("real images", Tensor.clone), ("real images at 32 pixels", reduced)):
            by_second, by_b = both(change(people["test"][mine] / 255))
            right = {SECOND[0]: by_second == owner[mine], AGREEMENT: by_second == by_b}
            found = {measure: per_person(of, owner[mine]) for measure, of in right.items()}
            known = {"setting": name, "seed": seed, "attack": "second", "model": kind, "strength": ""}
            write_json(options.output_dir / f"{slug(name, seed, kind)}.json", known | found)
            print(f"{slug(name, seed, kind)}: {percents(found)}", flush=True)
        for file, cell in some.items():
            saved = load_file(options.output_dir / "images" / f"{file.stem}.safetensors")
            folder = options.output_dir / "models" / slug(name, seed, cell["model"] + cell["strength"])
            target = HFTarget.from_pretrained(str(folder))
            samples = controls(prior_of(options, cell["attack"])[1], len(saved["labels"]), seed)
            for of, images in ((cell, saved["images"] / 255), (cell["samples"], samples)):
                of |= by_person(target, images, saved["labels"], *both(images))
            write_json(file, cell)
            print(f"{file.stem}: {percents(cell)}; samples: {percents(cell['samples'])}", flush=True)


def unjudged(folder: Path, name: str, seed: int) -> dict[Path, dict[str, Any]]:
    """Cells with images that the second evaluation model has not seen, by their file."""
    cells = {file: json.loads(file.read_text()) for file in sorted(folder.glob(f"{slug(name, seed)}_*.json"))}
    return {
        file: cell
        for file, cell in cells.items()
        if SECOND[0] not in cell and (folder / "images" / f"{file.stem}.safetensors").is_file()
    }


def named(model: Handcrafted, judge: Judge, mine: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """(batch,) place in ``mine``, the private people, of the nearest by hand-crafted features, and by network B."""
    cosines = F.normalize(embed(judge.net, images)) @ judge.means[: len(mine)].T
    return model.scores(images)[:, mine].argmax(1), cosines.argmax(1)


def by_person(target: HFTarget, images: Tensor, labels: Tensor, by_second: Tensor, by_b: Tensor) -> dict[str, Any]:
    """Measures by person, and how many images neither, the second, B, and both evaluation models recognize."""
    torch.manual_seed(0)  # the noise of MID
    with torch.no_grad():
        chosen = log_odds(target(images), labels).view(len(labels.unique()), -1).argmax(1, keepdim=True)
    right = (by_second == labels).view(len(chosen), -1).double()
    same = (by_second == by_b).view(len(chosen), -1).double()
    found = {SECOND[0]: right.mean(1), SECOND[1]: right.gather(1, chosen).squeeze(1), AGREEMENT: same.mean(1)}
    both = torch.bincount((by_second == labels).long() + 2 * (by_b == labels).long(), minlength=4).tolist()
    return {name: [round(float(one), 4) for one in of] for name, of in found.items()} | {"neither to both": both}


def percents(found: dict[str, Any]) -> str:
    """Means of the measures, for the log."""
    means = [f"{name} {100 * np.mean(found[name]):.1f} %" for name in (*SECOND, AGREEMENT) if name in found]
    return ", ".join([*means, *map(str, found.get("neither to both", ()))])


# The table


Cells = list[dict[str, Any]]
PUBLISHED = {
    "none": (98.5, 99.2, 100), "calor": (96.8, 47.2, 68.8), "mid": (96.8, 99.6, 100), "bido": (96.3, 98.4, 99.8),
    "label_smoothing": (96.4, 64.6, 73.2),
}  # fmt: skip
"""CALoR's Table 2, in per cent: `plg`, 530 people of FaceScrub, a ResNet-152 first trained on MS-Celeb-1M."""
WORST = "worst case"


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, draw the figure, and print the tables."""
    if options.cells is not None:
        gather(options.cells, "*_*.json", options.output)
    found = json.loads(options.output.read_text(encoding="utf-8"))
    draw(found, options.output.with_suffix(".png"))
    print(tables(found))


def gather(folder: Path, pattern: str, output: Path) -> Cells:
    """Write the cells of a folder as one JSON file, a line each."""
    found: Cells = [json.loads(file.read_text()) for file in sorted(folder.glob(pattern))]
    write_whole(output, ("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n").encode())
    return found


def worst(some: Cells, model: str) -> Cells:
    """For each training one cell: by measure, what the most successful attack has, of several on all trainings."""
    first = by_seed(some, "plg", model)
    known = {attack: by_seed(some, attack, model) for attack in ATTACKS if attack != GAN}
    known = {attack: of for attack, of in known.items() if {*first} <= {*of}}
    if not first or len(known) < 2:
        return []
    found: Cells = [{"attack": WORST, "model": model, "seed": seed, "attacks": [*known]} for seed in first]
    for name in MEASURES:
        most = max(known.values(), key=lambda of: np.mean([of[seed][name] for seed in first]))
        for cell in found:
            cell[name] = most[cell["seed"]][name]
    return found


def shown(some: dict[int, dict[str, Any]], first: dict[int, dict[str, Any]]) -> list[str]:
    """Each measure, some with the distance from the undefended models."""
    both = {name: compared(some, first, name) for name in MEASURES}
    return [part for name, (level, less) in both.items() for part in ([level, less] if name in PAIRED else [level])]


def tables(cells: Cells) -> str:
    """The tables of docs/results/real_defenses.md; † marks models that may lose more than a point of accuracy."""
    found: list[str] = []
    for setting in SETTINGS:
        mine = [one for one in cells if one["setting"] == setting and not one["strength"]]
        if not mine:
            continue
        mine += [one for model in MODELS for one in worst(mine, model)]
        rows: list[list[str]] = []
        titles = dict.fromkeys(MODELS, "")
        for model in MODELS:
            some, first = by_seed(mine, "accuracy", model), by_seed(mine, "accuracy", FIRST)
            if not some:
                continue
            both = [seed for seed in some if seed in first]
            lost = np.array([np.subtract(first[seed]["accuracy"], some[seed]["accuracy"]) for seed in both])
            titles[model] = model + (" †" if both and pooled_interval(lost)[2] > LOSS else "")
            used = "; ".join(dict.fromkeys(told(one["settings"]) for one in some.values()))
            rows.append([titles[model], used, str(len(some)), *compared(some, first, "accuracy")])
        head = ["model", "settings", "trainings", "test accuracy", "points against none"]
        found.append(table([f"{setting}: {head[0]}", *head[1:]], rows))
        rows = []
        for attack, model in itertools.product([*ATTACKS, WORST], MODELS):
            some = by_seed(mine, attack, model)
            if not some:
                continue
            several, first = list(some.values()), by_seed(mine, attack, FIRST) or by_seed(mine, "plg", FIRST)
            cost = ["", ""] if attack == WORST else [
                f"{np.mean([one['passes'] for one in several]):.0f}",
                f"{np.mean([one['seconds'] for one in several]):.1f}",
            ]  # fmt: skip
            rows.append([attack, titles[model] or model, str(len(some)), *shown(some, first), *cost])
            if model == FIRST and attack != WORST:
                samples = {seed: one["samples"] for seed, one in some.items()}
                rows.append([attack, "samples of the prior", str(len(some)), *shown(samples, {}), "", ""])
        measures = [part for name in MEASURES for part in ([name, "points against none"] if name in PAIRED else [name])]
        found.append(table([f"{setting}: attack", "model", "trainings", *measures, "passes", "seconds"], rows))
        found.append(table_as_published(mine))
        if any(SECOND[0] in one for one in mine):
            found.append(table_of_second(mine))
        if any(one["strength"] for one in cells if one["setting"] == setting):
            found.append(table_of_strengths(setting, [one for one in cells if one["setting"] == setting]))
    return "\n\n".join(found)


def table_as_published(cells: Cells) -> str:
    """Measures of `plg` as CALoR's tables have them, next to those of its Table 2."""
    rows = []
    for model in MODELS:
        some, seen = by_seed(cells, "plg", model), by_seed(cells, "accuracy", model)
        if not some or not seen:
            continue
        ours = [compared(of, {}, name)[0] for of, name in ((seen, "accuracy"), (some, "images"), (some, TOP5))]
        means = [
            np.mean([np.mean(one[name]) for one in of.values()]) for of, name in ((some, DISTANCE), (seen, MEMBERSHIP))
        ]
        rows.append([model, *ours, *(f"{mean:.2f}" for mean in means), *map(str, PUBLISHED.get(model, ("",) * 3))])
    head = ["test accuracy", "Acc@1", "Acc@5", "δ", "membership AUC"]
    return table(["plg", *head, *(f"published {name}" for name in head[:3])], rows)


def table_of_strengths(setting: str, cells: Cells) -> str:
    """Accuracy and leakage of the cells that `curves` computed."""
    rows, measures = [], [("accuracy", "accuracy"), *(("plg", name) for name in PAIRED[:2]), (WORST, PAIRED[1])]
    first = at_strength(cells, FIRST, {})
    for model, settings in [(name, some) for name in CURVES for some in CURVES[name](SETTINGS[setting])]:
        mine = at_strength(cells, model, settings)
        some, worst_of = by_seed(mine, "plg", model), by_seed(mine, WORST, model)
        if some:
            parts = list[str]()
            for attack, name in measures:
                of = by_seed(mine, attack, model)
                parts += compared(of, by_seed(first, attack, FIRST), name) if of else ("", "")
            attacks = ", ".join(next(iter(worst_of.values()))["attacks"]) if worst_of else ""
            rows.append([model, told(settings), str(len(some)), *parts, attacks])
    heads = ["test accuracy", *PAIRED[:2], f"{WORST}: {PAIRED[1]}"]
    titles = [part for head in heads for part in (head, "points against none")]
    return table([f"{setting}: curve", "settings", "trainings", *titles, "of"], rows)


def at_strength(cells: Cells, model: str, settings: Settings) -> Cells:
    """A model's cells with some settings, and its worst case."""
    mine = [one for one in cells if one["model"] == model and told(one.get("settings", {})) == told(settings)]
    return mine + worst(mine, model)


def table_of_second(cells: Cells) -> str:
    """The second evaluation model on real images, on reconstructions, and on samples of the prior."""
    judged = [one for one in cells if SECOND[0] in one]
    rows = [
        ["", kind, str(len(some)), compared(some, {}, SECOND[0])[0], "", "", "", compared(some, {}, AGREEMENT)[0]]
        for kind in dict.fromkeys(one["model"] for one in judged if one["attack"] == "second")
        for some in [by_seed(judged, "second", kind)]
    ]
    for attack, model in itertools.product(ATTACKS, MODELS):
        some = by_seed(judged, attack, model)
        first = by_seed(judged, attack, FIRST) or by_seed(judged, "plg", FIRST)
        kinds = {model: some} | ({"samples of the prior": {seed: one["samples"] for seed, one in some.items()}}
                                 if model == FIRST else {})  # fmt: skip
        for kind, of in kinds.items() if some else ():
            parts = [part for name in SECOND for part in compared(of, first if of is some else {}, name)]
            rows.append([attack, kind, str(len(of)), *parts, compared(of, {}, AGREEMENT)[0]])
    against = "points against none"
    return table(["attack", "model", "trainings", SECOND[0], against, SECOND[1], against, AGREEMENT], rows)


def draw(cells: Cells, file: Path) -> None:
    """Change of accuracy and of best guess against undefended models: of the table's rows, and along the curves."""
    from matplotlib.figure import Figure

    known = [name for name in SETTINGS if any(one["setting"] == name for one in cells)]
    figure = Figure(figsize=(12, 4.2 * len(known)), layout="constrained")
    rows = figure.subplots(len(known), 2, squeeze=False, sharex=True, sharey=True)
    for axes, setting in zip(rows, known, strict=True):
        mine = [one for one in cells if one["setting"] == setting]
        first = at_strength(mine, FIRST, {})
        if not by_seed(first, WORST, FIRST):
            first += [one | {"attack": WORST} for one in first if one["attack"] == "plg"]
        for axis, attack in zip(axes, ("plg", WORST), strict=True):
            for place, model in enumerate(list(MODELS)[1:]):
                row = [one for one in mine if one["model"] == model and not one["strength"]]
                for x, y in changes([row + worst(row, model)], first, attack):
                    more, less = ([[one[0] - one[1]], [one[2] - one[0]]] for one in (x, y))
                    axis.errorbar(x[:1], y[:1], less, more, "o", color=f"C{place}", capsize=3, label=model)
                every = CURVES[model](SETTINGS[setting]) if model in CURVES else []
                line = changes([at_strength(mine, model, settings) for settings in every], first, attack)
                if len(line) > 1:
                    axis.plot(*np.array(line)[:, :, 0].T, ".-", color=f"C{place}", linewidth=0.8)
            axis.axhline(0, color="gray", linewidth=0.8)
            axis.axvline(0, color="gray", linewidth=0.8)
            axis.set_xscale("symlog", linthresh=2)
            axis.set_xticks(ticks := [-20, -10, -5, -2, -1, 0, 1], map(str, ticks))
            axis.set(title=f"{setting}: {attack}", xlabel="test accuracy, points against none",
                     ylabel="best guess, points against none")  # fmt: skip
            axis.set_visible(bool(axis.containers))
    figure.legend(*rows[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    write_figure(file, figure)


def changes(models: Sequence[Cells], first: Cells, attack: str) -> list[Any]:
    """Points against undefended models, on the trainings that all have.

    Returns:
        For each model that has cells of the attack, (2, 3): accuracy and best guess, mean and ends of the interval.
    """
    pairs = (("accuracy", "accuracy"), (attack, PAIRED[1]))
    known = [
        [{one["seed"]: np.array(one[name]) for one in of if one["attack"] == kind} for kind, name in pairs]
        for of in (first, *models)
    ]
    if not all(known[0]):
        return []
    known = [one for one in known if all(one)]
    seeds = sorted(set.intersection(*(set(of) for one in known for of in one)))
    return [
        100 * np.array([
            pooled_interval(np.array([some[seed] - control[seed] for seed in seeds]))
            for some, control in zip(of, known[0], strict=True)
        ])
        for of in known[1:] if seeds
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_defenses", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    steps = parser.add_subparsers(required=True)
    ours = [name for name, setting in SETTINGS.items() if setting.frozen and not setting.fifths]
    for step in (public, ridge, search, choose, run, curves, second, summarize):
        name = "table" if step is summarize else step.__name__
        command = steps.add_parser(name, help=step.__doc__)
        command.set_defaults(step=step, kept=None)
        if step is summarize:
            command.add_argument("--cells", type=Path, help="folder of the cells; default: the JSON file as it is")
            command.add_argument("--output", type=Path, required=True)
            continue
        if step is not choose:
            command.add_argument("--data", type=Path, required=True, help="folder of the face sets")
        if step is public:
            command.add_argument("--output", type=Path, required=True, help="parquet file")
            continue
        command.add_argument("--output-dir", type=Path, required=True, help="folder of the cells")
        if step is ridge:
            command.add_argument("--public", type=Path, required=True, help="parquet file that `public` wrote")
        if step in (choose, ridge):
            continue
        command.add_argument("--kept", type=Path, help="what the networks see of images; default: OUTPUT_DIR/kept")
        command.add_argument("--settings", nargs="+", choices=ours, default=ours)
        if step is not search:
            command.add_argument("--prior", type=Path, required=True, help="what `ridge` wrote")
            command.add_argument("--gan", type=Path, help=f"prior of the attack '{GAN}'")
            command.add_argument("--seeds", nargs="+", type=int, default=[0] if step is curves else [0, 1, 2])
        if step is second:
            continue
        models = list(CURVES if step is curves else MODELS)
        command.add_argument("--models", nargs="+", choices=models, default=models)
        if step is not search:
            attacks = ["plg"] if step is curves else ["plg", "adaptive"]
            command.add_argument("--attacks", nargs="*", choices=ATTACKS, default=attacks)
    options = parser.parse_args(argv)
    if GAN in getattr(options, "attacks", ()) and options.gan is None:
        parser.error(f"the attack '{GAN}' needs --gan")
    if hasattr(options, "kept") and hasattr(options, "output_dir"):
        options.kept = options.kept or options.output_dir / "kept"
    torch.set_num_threads(1)
    disable_progress_bar()
    options.step(options)


if __name__ == "__main__":
    main()
