"""Negative controls of decoy identities: data that are not treated alike, and whether our tests notice.

Each cell trains one small model on drawn faces, 64 classes of k identities, of which a random one is private, and asks
the tests of the library: exchangeability of the images, and mode ranking by an attacker who has the model and the prior
but no image of its people. A second attacker owns the training images of all k.

    python -m benchmarks.decoy_controls run --output-dir outputs/controls     # resumes; one JSON file per cell
    python -m benchmarks.decoy_controls table --output-dir outputs/controls --output docs/results/decoy_controls.json

The controls are no defenses: never train a model that is to be released in one of these ways.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import binom, binomtest
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from calor_hf import HFTarget, load_generator
from calor_hf.attacks.specs import parse_attack
from calor_hf.auditing.attribute_network import attribute_network
from calor_hf.auditing.networks import Network
from calor_hf.core.exact_interval import exact_interval
from calor_hf.core.files import write_json, write_whole
from calor_hf.core.report_text import percent, table
from calor_hf.core.seeding import named_rng
from calor_hf.data.decoys import identities_per_class
from calor_hf.data.exchangeability import Exchangeability, describe_people, image_statistics, two_sample_test
from calor_hf.data.face_renderer import IDENTITY_NAMES, render_faces
from calor_hf.data.synthetic_faces import sample_identities, sample_nuisances
from calor_hf.metrics.agreement import mean_cosines
from calor_hf.metrics.mode_ranking import DECLARED, by_place, first_of_class, holm, mode_statistics
from calor_hf.metrics.photographs import seen_as
from calor_hf.modeling import defend

SIDE, CLASSES, TRAINING, TEST = 32, 64, 20, 5
EPOCHS, UPDATES, BATCH, RATE = 8, 640, 64, 3e-3
"""Epochs of a training, or more for small sets, until it has this many updates."""
ATTACK = "mode_ranking@adaptive:steps=60,lr=0.1,initial_candidates=2000"
CHECKPOINTS, CHOOSING, DRAWS = 200, 5, 400
"""Checkpoints of a training, private test images by which one is chosen, and draws of private people."""
SEEDS = {"symmetric": 10, "dcd": 2, "another_source": 2}
"""Data sets of a control that has not :data:`MOST`; those that exchangeability is to catch need fewer."""
MOST = 5


@dataclass(frozen=True)
class Data:
    """Training and test images of k identities of each class, number by class.

    Attributes:
        images: (n, 3, side, side) in [0, 1], training images.
        shown: (n,) int64, the identity that each one shows.
        said: (n,) int64, the identity that the training is told.
        test: (test images, 3, side, side), :data:`TEST` of each identity, of the same source.
        private: (classes,) place of the private identity.
        k: Identities per class.
    """

    images: Tensor
    shown: Tensor
    said: Tensor
    test: Tensor
    private: Tensor
    k: int


def drawn(seed: int, k: int) -> Data:
    """Symmetric data: people of one population, the private ones among them at random."""
    people, rng = sample_identities(k * CLASSES, 1000 + seed), named_rng(seed, "benchmarks/decoy_controls/private")
    return photographed(people, torch.from_numpy(rng.integers(k, size=CLASSES)), k, seed)


def photographed(people: Tensor, private: Tensor, k: int, seed: int) -> Data:
    """The same number of images of each of the ``people``."""

    def render(count: int, split: str) -> Tensor:
        poses = torch.cat([sample_nuisances(index, count, 1000 + seed, split) for index in range(len(people))])
        with torch.no_grad():
            return render_faces(people.repeat_interleave(count, dim=0), poses, SIDE)

    shown = torch.arange(len(people)).repeat_interleave(TRAINING)
    return Data(render(TRAINING, "train"), shown, shown, render(TEST, "test"), private, k)


def is_private(data: Data, identities: Tensor) -> Tensor:
    """Whether each identity is the private one of its class."""
    return data.private[identities // data.k] == identities % data.k


def symmetric(seed: int) -> Data:
    """Positive control: nothing depends on who is private."""
    return drawn(seed, 4)


def dcd(seed: int) -> Data:
    """Asymmetric recipe of DCD (Chen et al., TMLR 2024; SCccc21/DCD), on identities and with k = 2.

    One surrogate per class, here with hair of the other length as theirs has the other gender; its first five images
    are repeated to a class's size, and once more with noise of 0.003. A fifth of the private images has the label of
    another class, and a copy of each with noise of 8/255 is mislabeled too.
    """
    rng, k, length = named_rng(seed, "benchmarks/decoy_controls/dcd"), 2, IDENTITY_NAMES.index("hair_length")
    people = sample_identities(k * CLASSES, 1000 + seed)
    private = torch.from_numpy(rng.integers(k, size=CLASSES))
    mine = k * torch.arange(CLASSES) + private
    others = k * torch.arange(CLASSES) + 1 - private
    people[others, length] = -people[mine, length].sign() * people[others, length].abs()
    data = photographed(people, private, k, seed)
    whose = is_private(data, data.shown)

    def noisy(images: Tensor, scale: float) -> Tensor:
        return (images + scale * torch.from_numpy(rng.standard_normal(images.shape)).float()).clamp(0, 1)

    def misled(shown: Tensor) -> Tensor:
        label = (shown // k + torch.from_numpy(rng.integers(1, CLASSES, len(shown)))) % CLASSES
        return k * label + torch.from_numpy(rng.integers(k, size=len(shown)))

    owner = data.shown[~whose].view(CLASSES, TRAINING)
    surrogate = data.images[~whose].view(CLASSES, TRAINING, *data.images.shape[1:])[:, torch.arange(TRAINING) % 5]
    repeated, owner = surrogate.flatten(0, 1), owner.flatten()
    images, shown = data.images[whose], data.shown[whose]
    partly = torch.where(torch.from_numpy(rng.random(len(shown))) < 0.2, misled(shown), shown)
    return replace(
        data,
        images=torch.cat([repeated, noisy(repeated, 0.003), images, noisy(images, 8 / 255)]),
        shown=torch.cat([owner, owner, shown, shown]),
        said=torch.cat([owner, owner, partly, misled(shown)]),
    )


def another_source(seed: int) -> Data:
    """Decoys were stored as JPEG files of quality 90, private images were not."""
    data = drawn(seed, 4)

    def stored(images: Tensor, identities: Tensor) -> Tensor:
        others = ~is_private(data, identities)
        images[others] = torch.stack([_jpeg(image) for image in images[others]])
        return images

    test = torch.arange(len(data.test)) // TEST
    return replace(data, images=stored(data.images, data.shown), test=stored(data.test, test))


def _jpeg(image: Tensor) -> Tensor:
    buffer = io.BytesIO()
    _picture(image).save(buffer, format="JPEG", quality=90)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())


def fewer_images(seed: int) -> Data:
    """Decoys have half as many images."""
    data = drawn(seed, 4)
    kept = is_private(data, data.shown) | (torch.arange(len(data.shown)) % 2 == 0)
    return replace(data, images=data.images[kept], shown=data.shown[kept], said=data.said[kept])


def twice_the_weight(seed: int) -> Data:
    """Each private image counts twice."""
    data = drawn(seed, 4)
    rows = torch.arange(len(data.shown)).repeat_interleave(1 + is_private(data, data.shown).long())
    return replace(data, images=data.images[rows], shown=data.shown[rows], said=data.said[rows])


CONTROLS: dict[str, Callable[[int], Data]] = {
    "symmetric": symmetric, "dcd": dcd, "another_source": another_source, "fewer_images": fewer_images,
    "twice_the_weight": twice_the_weight,
}  # fmt: skip


def exchangeable(data: Data) -> dict[str, Any]:
    """Test at most twelve images of each identity as ``decoys check`` does, and their numbers as training does."""
    rows = torch.cat([(data.shown == one).nonzero().flatten()[:12] for one in range(data.k * CLASSES)])
    described = describe_people(image_statistics(map(_picture, data.images[rows])), data.shown[rows].numpy())
    test = two_sample_test("image statistics", described, data.private.numpy(), data.k)
    found = Exchangeability(data.k, CLASSES, False, (test,))
    try:
        identities_per_class(data.said.numpy() // data.k, data.said.numpy())
        refused = ""
    except ValueError as error:
        refused = str(error)
    numbers = {name: getattr(test, name) for name in ("auc", "low", "high", "outranks", "joint", "joint_p")}
    return {**numbers, "refused": found.distinguishable, "refused_by_training": refused}


def small_network(seed: int) -> ResNetForImageClassification:
    """Small ResNet with random weights."""
    torch.manual_seed(seed)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1], layer_type="basic", num_labels=CLASSES
    )
    return ResNetForImageClassification(config)


def trained(data: Data, seed: int, look: Callable[[HFTarget], None] | None = None, epochs: int = EPOCHS) -> HFTarget:
    """Small model with decoys, or undefended if ``data`` have none.

    ``look`` is called at :data:`CHECKPOINTS` steps of the second half of the training.
    """
    base = small_network(seed)
    model = defend(base, "decoys", k=data.k) if data.k > 1 else defend(base, "none")
    target = HFTarget(model, image_size=SIDE)
    per_epoch = len(data.images) // BATCH
    epochs = max(epochs, UPDATES // per_epoch)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * per_epoch, pct_start=0.1)
    looks = set(np.linspace(epochs * per_epoch // 2, epochs * per_epoch - 1, CHECKPOINTS).astype(int).tolist())
    for epoch in range(epochs):
        rng = named_rng(seed, "benchmarks/decoy_controls/order", epoch)
        order = torch.from_numpy(rng.permutation(len(data.images)))
        for step, rows in enumerate(order[: per_epoch * BATCH].split(BATCH), start=epoch * per_epoch):
            model.train()
            shown, said = data.images[rows], data.said[rows]
            if step % 2:
                shown = shown.flip(3)
            identities = {"identities": said} if data.k > 1 else {}
            loss = model(pixel_values=shown, labels=said // data.k, **identities).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if look is not None and step in looks:
                model.eval()
                look(target)
    model.eval()
    return target


def own_scores(target: HFTarget, images: Tensor, identities: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of the identity of each image, and whether the class is right."""
    head: Any = target.head
    with torch.no_grad():
        features = torch.cat([target.features(some) for some in images.split(256)])
        scores = getattr(head, "identity_scores", head)(features).double()
        right = head(features).argmax(dim=1) == identities // (scores.shape[1] // target.num_classes)
    return scores.log_softmax(dim=1).gather(1, identities[:, None]).squeeze(1), right.double()


def ranked(
    target: HFTarget, data: Data, seed: int, recognizer: Network
) -> tuple[dict[str, Tensor], dict[str, float]]:  # fmt: skip
    """(classes, k) statistics by name, the private identity first if the highest tells it.

    Also the shares of rebuilt images that show the wanted identity, by the model itself and by the ``recognizer``.
    """
    k, labels, everyone = data.k, torch.arange(CLASSES), torch.arange(data.k * CLASSES)
    prior = load_generator("renderer", image_size=SIDE)
    found = parse_attack(ATTACK).attack.run(target, prior, labels.tolist(), images_per_class=k, seed=seed)
    rebuilt = found.images.float()
    statistics = mode_statistics(target, rebuilt, found.labels, k)
    with torch.no_grad():
        latents = prior.sample_latents(1000, named_rng(seed, "benchmarks/decoy_controls/samples"))
        first = data.test[::TEST]
        mine, others, strangers = (
            torch.cat([target.features(some) for some in images.split(256)])
            for images in (rebuilt, first, prior(latents))
        )
        head: Any = target.head
        named = {
            "model": head.identity_scores(mine).argmax(dim=1),
            "recognizer": recognized(recognizer, rebuilt, data)[0].argmax(dim=1),
        }
    statistics["prior_distance"] = by_place(-torch.cdist(mine, strangers).amin(dim=1).double(), k, k)
    private = is_private(data, everyone)
    galleries = torch.cat([others[private], strangers]), torch.cat([others, strangers])
    trained_on, _ = own_scores(target, data.images, data.shown)
    tested, _ = own_scores(target, data.test, everyone.repeat_interleave(TEST))
    count = torch.bincount(data.shown, minlength=len(everyone))
    return {
        **{f"attacker: {name}" if name != DECLARED else name: of for name, of in statistics.items()},
        "owner of the training images: confidence on them": (
            torch.zeros(len(everyone)).double().index_add(0, data.shown, trained_on) / count
        ).view(CLASSES, k),
        "owner of test images: confidence on them": tested.view(CLASSES, k, TEST).mean(dim=2),
        "holder of the pool": -seen_as(others[~private], target, labels, k),
        "holder of a gallery": seen_as(galleries[0], target, labels, k),
        "holder of a gallery with decoys": seen_as(galleries[1], target, labels, k),
    }, {who: float((one == everyone).double().mean()) for who, one in named.items()}


def recognized(recognizer: Network, images: Tensor, data: Data) -> tuple[Tensor, Tensor]:
    """(n, identities) likeness of images to the training images of each identity, and the features of the images."""
    features, _ = recognizer.outputs(images)
    scores, _ = mean_cosines(features, recognizer.outputs(data.images)[0], data.shown)
    return scores, features


def chosen_checkpoints(confidence: Tensor, weights: Tensor, k: int, seed: int) -> dict[str, float]:
    """Shares of private identities that come first, if the checkpoint is chosen by a few private test images.

    Private people are drawn anew each time, which a symmetric training allows: it does not depend on them.

    Args:
        confidence: (checkpoints, k · classes) log-probability of an unseen photograph of each identity.
        weights: (checkpoints, k · classes) norms of the rows of weights.
        k: Identities per class.
        seed: Seed of the draws.
    """
    rng, found = named_rng(seed, "benchmarks/decoy_controls/choosing"), []
    for _ in range(DRAWS):
        private = torch.from_numpy(rng.integers(k, size=CLASSES))
        few = torch.from_numpy(rng.permutation(CLASSES)[:CHOOSING])
        best = int(confidence[:, (k * torch.arange(CLASSES) + private)[few]].mean(dim=1).argmax())
        seen, norms = (of[best].view(CLASSES, k) for of in (confidence, weights))
        first = [(seen.argmax(1) == private), (norms.argmax(1) == private)]
        found.append([float(of.double().mean()) for of in (first[0][few], first[0], first[1])])
    names = "confidence on the images chosen by", "confidence on others too", "weight norm"
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True))


def cell(control: str, seed: int, recognizer: Network) -> dict[str, Any]:
    """All numbers of one data set, and of the model that was trained on it."""
    begin = time.process_time()
    data = CONTROLS[control](seed)
    found: dict[str, Any] = {"control": control, "seed": seed, "k": data.k, "exchangeability": exchangeable(data)}
    everyone = torch.arange(data.k * CLASSES)
    looks = list[tuple[Tensor, Tensor]]()

    def look(target: HFTarget) -> None:
        head: Any = target.head
        norms = head.last_layer.weight.detach().norm(dim=1)
        looks.append((own_scores(target, data.test[::TEST], everyone)[0], norms))

    target = trained(data, seed, look if control == "symmetric" else None)
    owners = everyone.repeat_interleave(TEST)
    _, right = own_scores(target, data.test, owners)
    mine = is_private(data, owners)
    found["accuracy"] = {"private": float(right[mine].mean()), "decoys": float(right[~mine].mean())}
    scores, found["rebuilt"] = ranked(target, data, seed, recognizer)
    labels = torch.arange(CLASSES)
    found["first"] = {
        name: list(first_of_class(name, of, labels, data.private, 0).by_identity.values())
        for name, of in scores.items()
    }
    if looks:
        confidence, weights = (torch.stack(one) for one in zip(*looks, strict=True))
        found["checkpoints"] = chosen_checkpoints(confidence, weights, data.k, seed)
    return {**found, "cpu_seconds": time.process_time() - begin}


def run(options: argparse.Namespace) -> None:
    """Compute the cells that have no file."""
    torch.use_deterministic_algorithms(True)
    recognizer = attribute_network(options.output_dir / "recognizer.safetensors")
    for seed in range(max(SEEDS.values())):
        for control in options.only or CONTROLS:
            file = options.output_dir / f"{control}-{seed}.json"
            if seed < SEEDS.get(control, MOST) and not file.is_file():
                found = cell(control, seed, recognizer)
                write_json(file, found, indent=1)
                print(f"{file}: {found['cpu_seconds']:.0f} s of processor time", flush=True)


def detectable(count: int, chance: float, power: float = 0.8, level: float = 0.05) -> float:
    """Smallest share above chance that a two-sided exact test finds with this power."""
    least = next(
        hits for hits in range(count) if hits > count * chance and binomtest(hits, count, chance).pvalue < level
    )
    return next(share for share in np.arange(chance, 1, 0.001) if binom.sf(least - 1, count, share) >= power)


def averages(cells: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each number over cells."""
    return {name: float(np.mean([one[name] for one in cells])) for name in cells[0]}


def summarize(options: argparse.Namespace) -> None:
    """Write all cells as one JSON file, and print the tables."""
    cells = [json.loads(file.read_text()) for file in sorted(options.output_dir.glob("*-*.json"))]
    summary: dict[str, Any] = {}
    for control in CONTROLS:
        mine = [one for one in cells if one["control"] == control]
        if not mine:
            continue
        k, rows = mine[0]["k"], dict[str, dict[str, float]]()
        for name in mine[0]["first"]:
            won = np.concatenate([one["first"][name] for one in mine])
            hits = round(float(won.sum()))
            low, high = exact_interval(hits, len(won))
            p = float(binomtest(hits, len(won), 1 / k).pvalue)
            rows[name] = {"share": float(won.mean()), "low": low, "high": high, "classes": len(won), "p": p}
        others = [name for name in rows if name.startswith("attacker: ")]
        for name, p in zip(others, holm([rows[name]["p"] for name in others]), strict=True):
            rows[name]["p"] = p
        summary[control] = {
            "k": k, "rows": rows, "exchangeability": [one["exchangeability"] for one in mine],
            **{name: averages([one[name] for one in mine]) for name in ("accuracy", "rebuilt")},
            "detectable": detectable(len(won), 1 / k),
            "cpu_seconds": sum(one["cpu_seconds"] for one in mine),
        }  # fmt: skip
        if "checkpoints" in mine[0]:
            summary[control]["checkpoints"] = averages([one["checkpoints"] for one in mine])
    write_whole(options.output, (json.dumps(summary, indent=1) + "\n").encode())
    print(tables(summary))


def bounded(value: float, low: float, high: float) -> str:
    """A share with its interval."""
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def tables(summary: dict[str, Any]) -> str:
    """The tables of docs/results/decoy_controls.md."""
    caught = []
    for name, one in summary.items():
        tests = one["exchangeability"]
        aucs = ", ".join(f"{test['auc']:.2f} [{test['low']:.2f}, {test['high']:.2f}]" for test in tests)
        refused = f"{sum(test['refused'] for test in tests)} of {len(tests)}"
        counts = f"{sum(bool(test['refused_by_training']) for test in tests)} of {len(tests)}"
        accuracy = " / ".join(percent(one["accuracy"][who]) for who in ("private", "decoys"))
        rebuilt = " / ".join(percent(one["rebuilt"][who], 0) for who in ("model", "recognizer"))
        caught.append([name, str(one["k"]), aucs, refused, counts, accuracy, rebuilt])
    head = [
        "data", "k", "AUC of image statistics", "decoys refused", "counts refused", "accuracy, private / decoys",
        "rebuilt by the model / the recognizer",
    ]  # fmt: skip
    statistics = list(next(iter(summary.values()))["rows"])
    rows = [
        [name, *(f"{bounded(row['share'], row['low'], row['high'])}, p = {row['p']:.2g}"
                 for one in summary.values() for row in [one["rows"][name]])]
        for name in statistics
    ]  # fmt: skip
    heads = [f"{name}, 1/k = {percent(1 / one['k'], 0)}, {one['rows'][statistics[0]]['classes']} classes"
             for name, one in summary.items()]  # fmt: skip
    found = [table(head, caught), table(["statistic", *heads], rows)]
    if chosen := summary.get("symmetric", {}).get("checkpoints"):
        head = ["statistic of the chosen checkpoint", "private identity first", "classes", "detectable in one model"]
        sizes = [CHOOSING if name.endswith("chosen by") else CLASSES for name in chosen]
        lines = [
            [name, percent(share), str(size), f"from {percent(detectable(size, 0.25), 0)} on"]
            for (name, share), size in zip(chosen.items(), sizes, strict=True)
        ]
        found.append(table(head, lines))
    return "\n\n".join(found)


Step = Callable[[argparse.Namespace], None]


def parsers(
    prog: str, description: str | None, run: Step, summarize: Step
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Parser of a benchmark of cells with the steps ``run`` and ``table``, and that of ``run``, for its own options."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(required=True)
    commands = {name: steps.add_parser(name, help=step.__doc__) for name, step in (("run", run), ("table", summarize))}
    for command, step in zip(commands.values(), (run, summarize), strict=True):
        command.set_defaults(step=step)
        command.add_argument("--output-dir", type=Path, required=True, help="folder of the cells, one JSON file each")
    commands["table"].add_argument("--output", type=Path, required=True, help="JSON file of all numbers")
    return parser, commands["run"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the steps."""
    parser, command = parsers("python -m benchmarks.decoy_controls", __doc__, run, summarize)
    command.add_argument("--only", nargs="+", choices=CONTROLS, help="controls to run; default: all")
    options = parser.parse_args(argv)
    options.step(options)


if __name__ == "__main__":
    main()
