"""Decoy identities on drawn faces: which private people are named, by prior and number k of identities per class.

Each cell trains one small model on 64 classes, k = 1 being the undefended one, and attacks all classes with ``auto``:

    calor-hf prior --image-size 32 --minutes 10 --output-dir outputs/drawn-prior
    python -m benchmarks.decoys run --prior outputs/drawn-prior --output-dir outputs/decoys   # resumes
    python -m benchmarks.decoys table --output-dir outputs/decoys --output docs/results/decoys_drawn.json

Two recognizers name the identity that an image shows, among all of the data: the network of attributes, which has never
seen these people, and for images of the renderer the numbers that it drew.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoy_controls import (
    CLASSES,
    SIDE,
    TEST,
    Data,
    bounded,
    drawn,
    is_private,
    own_scores,
    parsers,
    recognized,
    trained,
)  # fmt: skip
from calor_hf import HFTarget, load_generator
from calor_hf.attacks.specs import parse_attack
from calor_hf.auditing.attribute_network import attribute_network
from calor_hf.auditing.networks import Network
from calor_hf.core.exact_interval import exact_interval
from calor_hf.core.files import write_json, write_whole
from calor_hf.core.report import HEADLINE, IDENTITIES, MATCH, MATCHED, decoy_hits, guesses
from calor_hf.core.report_text import percent, table
from calor_hf.core.seeding import named_rng
from calor_hf.data.synthetic_faces import sample_identities
from calor_hf.generators import Generator
from calor_hf.metrics import METRICS, Evidence, Measure, View
from calor_hf.metrics.base import measured
from calor_hf.metrics.identification_game import log_odds
from calor_hf.metrics.mode_ranking import DECLARED, first_of_class, mode_statistics
from calor_hf.metrics.statistics import pooled_interval

COUNTS, SEEDS, EPOCHS, EFFORT, LEAST = (1, 2, 4, 8), 3, 16, 5, 4
"""Identities per class, trainings, epochs of each, per cent of the members' published effort, and images that each
member makes of a class, at least: it makes k or more."""
PRIORS = ("renderer", "trained")
RECOGNIZERS = {HEADLINE: IDENTITIES, MATCH: MATCHED}
"""Measures of an image, and of a person, by the network and by the numbers drawn."""


def measures(
    latents: Tensor, images: Tensor, target: HFTarget, prior: Generator[Any], data: Data, people: Tensor,
    recognizer: Network,
) -> list[Measure]:  # fmt: skip
    """Measures of images with their latents, as many of each class."""
    everyone = torch.arange(data.k * CLASSES)
    labels = torch.arange(CLASSES).repeat_interleave(len(images) // CLASSES)
    mine = is_private(data, everyone)
    order = torch.cat([everyone[mine], everyone[~mine]])  # the private identity of class c is identity c
    scores, features = recognized(recognizer, images, data)
    with torch.no_grad():
        sure = log_odds(torch.cat([target(some) for some in images.split(256)]), labels)
    evidence = Evidence(
        images=images, labels=labels, private_images=data.test[:1], private_labels=data.private[:1],
        evaluation_model=View(recognizer.name, features, features[:1], scores[:, order]), attacker_scores=sure,
        identity=prior.identity(latents), enrolled_identities=people[order], identity_labels=order // data.k,
    )  # fmt: skip
    names = ("attack_accuracy", "identity_match", "identification_game", "decoy_hits")
    return measured({name: METRICS.get(name)() for name in names}, evidence)


def cell(
    target: HFTarget, prior: Generator[Any], data: Data, people: Tensor, recognizer: Network, seed: int
) -> dict[str, Any]:  # fmt: skip
    """All numbers of one model, attacked with one prior."""
    attack = parse_attack(f"auto:effort={EFFORT}").attack
    found = attack.run(target, prior, range(CLASSES), images_per_class=max(LEAST, data.k), seed=seed)
    images = found.images.float()
    rng = named_rng(seed, "benchmarks/decoys/samples")
    with torch.no_grad():
        sampled = prior.sample_latents(len(images), rng).float()
        samples = torch.cat([prior(some) for some in sampled.split(256)]).clamp(0, 1)
    by_attack, by_chance = (
        measures(latents, shown, target, prior, data, people, recognizer)
        for latents, shown in ((found.latents, images), (sampled, samples))
    )
    parts = attack.parts(target, prior)
    if data.k > 1:
        rebuilt = parts.index("mode_ranking-adaptive")
        block = torch.arange(len(images)).view(CLASSES, len(parts), -1)[:, rebuilt].flatten()
        modes = mode_statistics(target, images[block], found.labels[block], data.k)[DECLARED]
        by_attack.append(first_of_class("mode_ranking", modes, torch.arange(CLASSES), data.private, len(block)))
    return {
        "images": len(images) // CLASSES, "parts": parts, "chance": {one.name: one.value for one in by_chance},
        "measures": {one.name: list(one.by_identity.values()) for one in by_attack},
    }  # fmt: skip


def accuracies(target: HFTarget, data: Data, recognizer: Network) -> dict[str, float]:
    """Test accuracy of the model on private identities and on all, and of the recognizer."""
    owners = torch.arange(data.k * CLASSES).repeat_interleave(TEST)
    _, right = own_scores(target, data.test, owners)
    named = recognized(recognizer, data.test, data)[0].argmax(dim=1)
    return {
        "private": float(right[is_private(data, owners)].mean()), "all": float(right.mean()),
        "recognizer": float((named == owners).double().mean()),
    }  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Compute the cells that have no file."""
    torch.use_deterministic_algorithms(True)
    recognizer = attribute_network(options.output_dir / "recognizer.safetensors")
    for seed in range(SEEDS):
        for k in COUNTS:
            files = {prior: options.output_dir / f"{prior}-{k}-{seed}.json" for prior in PRIORS}
            missing = [prior for prior, file in files.items() if not file.is_file()]
            if not missing:
                continue
            begin = time.process_time()
            data, people = drawn(seed, k), sample_identities(k * CLASSES, 1000 + seed)
            target = trained(data, seed, epochs=EPOCHS)
            known = {"k": k, "seed": seed, "accuracy": accuracies(target, data, recognizer)}
            known["training_seconds"] = time.process_time() - begin
            for name in missing:
                begin = time.process_time()
                prior = load_generator("renderer" if name == "renderer" else options.prior, image_size=SIDE)
                found = cell(target, prior, data, people, recognizer, seed)
                seconds = time.process_time() - begin
                write_json(files[name], {"prior": name, **known, **found, "attack_seconds": seconds}, indent=1)
                print(f"{files[name]}: {seconds:.0f} s of processor time", flush=True)


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, and print the tables."""
    cells = [json.loads(file.read_text()) for file in sorted(options.output_dir.glob("*-*-*.json"))]
    write_whole(options.output, (json.dumps(cells) + "\n").encode())
    print(tables(cells))


def tables(cells: list[dict[str, Any]]) -> str:
    """The tables of docs/results/decoys_drawn.md, one by each recognizer."""
    groups = [
        [one for one in cells if (one["prior"], one["k"]) == (prior, k)] for prior in PRIORS for k in COUNTS
    ]  # fmt: skip
    groups = [group for group in groups if group]
    first = [
        [str(group[0]["k"]), str(len(group)), *(_mean(group, name) for name in ("private", "all"))]
        for group in groups if group[0]["prior"] == PRIORS[0]
    ]  # fmt: skip
    found = [table(["k", "trainings", "test accuracy, private", "test accuracy, all identities"], first)]
    for image, person in RECOGNIZERS.items():
        rows = []
        for group in groups:
            k, each = group[0]["k"], group[0]["images"]
            if image in group[0]["measures"]:
                names = (decoy_hits(image), person, guesses(image), guesses(image, max(k, 2)))
                shown = [_pooled(group, name) for name in names]
                chance = percent(float(np.mean([one["chance"][guesses(image)] for one in group])))
                ranking = _exact(group, "mode_ranking") if k > 1 else "–"
                rows.append([group[0]["prior"], str(k), str(each), *shown[:3], chance, shown[3], ranking])
        head = ["prior", "k", "images", "any of the k, an image", "private, any image", "best guess",
                "best guess by chance", "within k guesses (2 for k = 1)", "mode ranking"]  # fmt: skip
        found.append(table(head, rows))
    return "\n\n".join(found)


def _mean(group: list[dict[str, Any]], name: str) -> str:
    return percent(float(np.mean([one["accuracy"][name] for one in group])))


def _pooled(group: list[dict[str, Any]], name: str) -> str:
    """Mean over people and trainings, with its interval."""
    return bounded(*pooled_interval(np.array([one["measures"][name] for one in group])))


def _exact(group: list[dict[str, Any]], name: str) -> str:
    """Share of classes of all trainings, with its exact interval."""
    won = np.concatenate([one["measures"][name] for one in group])
    return bounded(float(won.mean()), *exact_interval(round(float(won.sum())), len(won)))


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser, command = parsers("python -m benchmarks.decoys", __doc__, run, summarize)
    command.add_argument("--prior", required=True, help="prior of 32 pixels, of other drawn people: folder")
    options = parser.parse_args(argv)
    options.step(options)


if __name__ == "__main__":
    main()
