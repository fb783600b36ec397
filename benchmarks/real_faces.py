"""The paper's comparison on real faces: a public backbone, six defenses at one accuracy, and the attacks on each.

Everything but the first step is the library's own commands; ``DATA`` holds the face sets.

    python -m benchmarks.real_faces backbone --data DATA --output-dir outputs/backbone
    calor-hf compare --model outputs/backbone --dataset DATA/bolly100_64 --output-dir outputs/real ...
    calor-hf train --role evaluation --dataset DATA/bolly100_64 --output-dir outputs/real_judge ...
    calor-hf prior --dataset DATA/lfw_public_64/train.parquet --image-size 32 --output-dir outputs/prior_lfw ...
    python -m benchmarks.real_faces audit --data DATA --dataset DATA/bolly100_64 --comparison outputs/real \
        --prior outputs/prior_lfw --second-evaluation-model outputs/real_judge --output-dir outputs/real_audits \
        --attacks gmi plg auto
    python -m benchmarks.real_faces table --audits outputs/real_audits --output docs/results/real_comparison.json

No image is written outside the output folders, and the table holds numbers alone.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from benchmarks.mobilefacenet import Embedding
from benchmarks.real_faces_audit import FaceTarget, embed, load_images
from calor_hf import AuditOptions, HFTarget, LeakageReport, PrivateImages, audit, load_generator
from calor_hf.auditing.networks import Network, load_network
from calor_hf.core.files import write_whole
from calor_hf.core.report_text import interval, percent
from calor_hf.core.seeding import named_rng
from calor_hf.data.loading import load_splits
from calor_hf.metrics import Measure
from calor_hf.metrics.statistics import pooled_interval, share_interval
from calor_hf.recipes.runs import markdown, mean_and_range

SIDE = 64
ROW = ("setting", "value", "matched", "validation_accuracy", "train_confidence")
METRICS = ("attack_accuracy", "verification", "agreement")  # the last with a second evaluation model
KEPT = ("value", "low", "high", "images", "identities")


def teach(options: argparse.Namespace) -> None:
    """A small ResNet that looks at public faces as network A does: stands for the paper's pre-trained backbones."""
    images, _ = load_images(options.public or options.data / "lfw_public_64" / "train.parquet")
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".teacher.safetensors")
    if not file.is_file():
        save_file({"answers": embed(Embedding(options.data, "A"), images)}, file)
    wanted = load_file(file)["answers"]
    torch.manual_seed(options.seed)
    config = ResNetConfig(
        embedding_size=24, hidden_sizes=[24, 48, 96, 192], depths=[1, 1, 1, 1], layer_type="basic",
        num_labels=wanted.shape[1],
    )  # fmt: skip
    student = ResNetForImageClassification(config)
    steps = options.epochs * (len(images) // options.batch)
    optimizer = torch.optim.AdamW(student.parameters(), lr=options.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps, pct_start=0.1)
    begin = time.perf_counter()
    for epoch in range(options.epochs):
        rng, losses = named_rng(options.seed, "benchmarks/real_faces", epoch), []
        order = torch.from_numpy(rng.permutation(len(images)))
        for rows in order.split(options.batch):
            if len(rows) < options.batch:
                continue
            seen = vary(images[rows], torch.from_numpy(rng.random((len(rows), 6))).float())
            loss = (1 - F.cosine_similarity(student(2 * seen - 1).logits, wanted[rows])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}: 1 - cosine {sum(losses) / len(losses):.3f}, {time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    student.save_pretrained(folder)
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)


def vary(images: Tensor, numbers: Tensor) -> Tensor:
    """Shifted, zoomed, turned, brighter or darker, half of them mirrored: none of it changes who it is.

    Args:
        images: (batch, 3, height, width) in [0, 1].
        numbers: (batch, 6) in [0, 1).
    """
    zoom = 1 + 0.2 * (numbers[:, 1] - 0.5)
    angle = 0.3 * (numbers[:, 2] - 0.5)
    shift = 0.15 * (numbers[:, 3:5] - 0.5)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    sign = torch.where(numbers[:, 0] < 0.5, -1.0, 1.0)
    theta = torch.stack(
        [torch.stack([sign * cos, -sign * sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    light = 0.7 + 0.6 * numbers[:, 5, None, None, None]
    return (moved * light).clamp(0, 1)


def kept(features: Callable[[Tensor], Tensor], folder: Path) -> Callable[[Tensor], Tensor]:
    """Keep the features of each batch in a folder: all models are evaluated with the same private images."""

    def read(images: Tensor) -> Tensor:
        file = folder / f"{hashlib.sha256(images.numpy().tobytes()).hexdigest()}.safetensors"
        if not file.is_file():
            write_whole(file, save({"features": features(images)}))
        return load_file(file)["features"]

    return read


class KeptTarget(FaceTarget):
    """Looks at images that need no gradient once, as the network is the same for all heads."""

    def __init__(self, body: Embedding, head: nn.Module, num_classes: int, folder: Path) -> None:
        super().__init__(body, head, num_classes)
        self._once = kept(body, folder)

    def features(self, images: Tensor) -> Tensor:
        """(batch, 128) embeddings."""
        return super().features(images) if torch.is_grad_enabled() else self._once(images)


def nearest_mean(data: Path, dataset: Path, folder: Path) -> Network:
    """Network B as a classifier: the person whose mean training image is nearest."""
    folder.mkdir(parents=True, exist_ok=True)
    net = Embedding(data, "B")
    evaluation_model = Network("MobileFaceNet B, nearest mean", net, kept(net, folder))
    images, labels = load_images(dataset / "train.parquet")
    seen = F.normalize(evaluation_model.outputs(images)[0])
    means = F.normalize(torch.stack([seen[labels == person].mean(0) for person in range(int(labels.max()) + 1)]))
    return replace(evaluation_model, head=lambda features: features @ means.T)


def attack(options: argparse.Namespace) -> None:
    """Audit every model of a comparison; attacks that are done are evaluated, and not run again."""
    found = json.loads((options.comparison / "comparison.json").read_text(encoding="utf-8"))
    evaluation_model = nearest_mean(options.data, options.dataset, options.output_dir / "evaluation_model")
    second = (
        load_network(options.second_evaluation_model, "classifier from random weights")
        if options.second_evaluation_model
        else None
    )
    splits = load_splits(str(options.dataset))
    for row in found["defenses"]:
        for seed in row.get("seeds", ()):
            if options.only and row["name"] not in options.only:
                continue
            strength = "" if row["value"] is None else f"-{row['setting']}={row['value']}"
            model = options.comparison / "runs" / f"{row['name']}{strength}-seed{seed}"
            place = options.output_dir / f"{row['name']}-seed{seed}"
            target, begin = HFTarget.from_pretrained(model), time.perf_counter()
            choices = AuditOptions(
                attacks=options.attacks, output_dir=str(place), second_evaluation_model=second,
                embedding=evaluation_model, classes=options.classes, budget=options.budget,
                images_per_class=options.images_per_class, seed=options.seed, anonymize_labels=True,
                target_name=place.name, metrics=METRICS[: 2 + (options.second_evaluation_model is not None)],
                resume=True,
            )  # fmt: skip
            labels, side = choices.labels(target.num_classes), target.image_size[0]
            private = PrivateImages.from_dataset(
                splits.for_classes(target.class_names), image_size=side, classes=labels, name=options.dataset.name
            )
            prior = load_generator(str(options.prior), image_size=target.image_size[0])
            report = audit(target, private, prior, evaluation_model, choices)
            record = {"defense": row["name"], "training_seed": seed, **{key: row[key] for key in ROW}}
            (place / "row.json").write_text(json.dumps(record), encoding="utf-8")
            print(
                f"{place.name}: {time.perf_counter() - begin:.0f} s, {report.strongest and report.strongest.name}",
                flush=True,
            )


def tabulate(options: argparse.Namespace) -> None:
    """Numbers of all audits in one JSON file, and its tables as Markdown."""
    if options.audits is not None:
        cells = [cell_of(path.parent) for path in sorted(options.audits.glob("*/report.json"))]
        lines = ",\n".join(json.dumps(cell) for cell in cells)
        options.output.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(tables(json.loads(options.output.read_text(encoding="utf-8"))))


def cell_of(place: Path) -> dict[str, Any]:
    """Values of one audit that the tables need."""
    report = LeakageReport.load(place / "report.json")
    row = json.loads((place / "row.json").read_text(encoding="utf-8"))
    utility = {measure.name: {key: getattr(measure, key) for key in KEPT} for measure in report.utility}
    attacks = {}
    for result in report.attacks:
        measures = {
            m.name: {**{key: getattr(m, key) for key in KEPT}, "by_identity": list(m.by_identity.values())}
            for m in result.measures if not math.isnan(m.value)
        }  # fmt: skip
        chance_levels = {
            name: {m.name: m.value for m in some if not math.isnan(m.value)}
            for name, some in result.chance_levels.items()
        }
        attacks[result.name] = {
            "settings": result.settings, "cost": asdict(result.cost), "measures": measures,
            "chance_levels": chance_levels,
        }  # fmt: skip
    return {
        **row, "networks": {role: asdict(network) for role, network in report.networks.items()}, "seed": report.seed,
        "effort": report.effort, "version": report.version, "utility": utility, "attacks": attacks,
    }  # fmt: skip


def tables(cells: list[dict[str, Any]]) -> str:
    """A row a defense, pooled over its trainings: its use, each attack, the worst case, and that against no defense."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        strength = "-" if cell["value"] is None else f"{cell['setting']} = {cell['value']:g}"
        rows.setdefault((cell["defense"], strength), []).append(cell)
    undefended = next(some for (name, _), some in rows.items() if name == "none")
    columns = [
        (name, measure) for name, result in cells[0]["attacks"].items() for measure in result["measures"]
        if measure.startswith("attack_accuracy@1")
    ]  # fmt: skip
    worst = next(name for name in cells[0]["attacks"] if name.startswith("auto"))
    plg = next(name for name in cells[0]["attacks"] if name.startswith("plg"))
    names = [measure.partition("[")[2].rstrip("]") or name.partition("-")[0] for name, measure in columns]
    use, found, compared = [], [], []
    for title, some in rows.items():
        validation = shares([mean_and_range(cell["validation_accuracy"])[0] for cell in some])
        seeds = ", ".join(str(cell["training_seed"]) for cell in some)
        accuracy = [cell["utility"]["accuracy"]["value"] for cell in some]
        use.append([*title, seeds, validation, shares(accuracy), *(_pooled(by_identity(some, *c)) for c in columns)])
        chance_levels: dict[str, list[float]] = {}
        for cell in some:
            for name, measures in cell["attacks"][worst]["chance_levels"].items():
                chance_levels.setdefault(name, []).append(measures["identities_recognized"])
        words = [f"{percent(mean_and_range(values)[0], 0)} {name}" for name, values in chance_levels.items()]
        found.append([*title, *(_pooled(by_identity(some, worst, name)) for name in WORST), ", ".join(words)])
        same = [cell for cell in undefended if cell["training_seed"] in {other["training_seed"] for other in some}]
        if title[0] != "none":
            cost = [cell["utility"]["accuracy"]["value"] - value for cell, value in zip(same, accuracy, strict=True)]
            pairs = [(worst, "identities_recognized"), (worst, "attack_accuracy@1"), (plg, "attack_accuracy@1")]
            less = (_pooled(by_identity(same, *c) - by_identity(some, *c), points=True) for c in pairs)
            compared.append([title[0], shares(cost, "points"), *less])
    head = ["people: nearest mean (B)", "images: verified by B at FAR 1e-3", "images: both evaluation models agree"]
    lost = ["accuracy lost", "people, worst case", "images, auto", "images, plg"]
    return "\n\n".join([
        markdown(["defense", "strength", "seeds", "validation", "test accuracy", *names], use),
        markdown(["defense", "strength", *head, "chance level: people"], found),
        markdown(["less than undefended (points)", *lost], compared),
    ])  # fmt: skip


def by_identity(cells: list[dict[str, Any]], attack: str, measure: str) -> NDArray[np.float64]:
    """(trainings, people) one measure of one attack."""
    return np.array([cell["attacks"][attack]["measures"][measure]["by_identity"] for cell in cells])


def shares(values: Sequence[float], unit: str = "%") -> str:
    """Mean of shares or of their differences, and how far they lie apart."""
    mean, low, high = (100 * value for value in mean_and_range(values))
    return f"{mean:.1f} {unit}" + (f" ({low:.1f} to {high:.1f})" if len(values) > 1 else "")


WORST = ("identities_recognized", "verified@FAR=1e-3", "both_evaluation_models@1")


def _pooled(values: NDArray[np.float64], points: bool = False) -> str:
    mean, low, high = pooled_interval(values)
    if points:
        return f"{100 * mean:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
    low, high = share_interval(low, high, values.shape[1])
    shown = Measure("", mean, "share", "leakage", 1, 1, low, high)
    return f"{percent(mean, 0)} [{interval(shown, 0).removesuffix(' %')}]"


def main(argv: Sequence[str] | None = None) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    backbone = commands.add_parser("backbone", help="distil the public face network A into a ResNet")
    backbone.add_argument("--data", type=Path, required=True)
    backbone.add_argument("--output-dir", type=Path, required=True)
    backbone.add_argument("--public", type=Path, help="parquet file of public faces; default: those in DATA")
    backbone.add_argument("--epochs", type=int, default=20)
    backbone.add_argument("--batch", type=int, default=128)
    backbone.add_argument("--lr", type=float, default=3e-3)
    backbone.add_argument("--seed", type=int, default=0)
    backbone.set_defaults(call=teach)
    auditing = commands.add_parser("audit", help="attack every model of a comparison")
    auditing.add_argument("--data", type=Path, required=True)
    auditing.add_argument("--dataset", type=Path, required=True, help="private images")
    auditing.add_argument("--comparison", type=Path, required=True, help="folder of calor-hf compare")
    auditing.add_argument("--only", nargs="*", help="these defenses alone")
    auditing.add_argument("--prior", type=Path, required=True)
    auditing.add_argument(
        "--second-evaluation-model", help="classifier of another family, trained on the private images"
    )
    auditing.add_argument("--attacks", nargs="+", default=["gmi", "plg", "if_gmi", "auto"])
    auditing.add_argument("--budget", default="paper")
    auditing.add_argument("--classes", default="0-19")
    auditing.add_argument("--images-per-class", type=int, default=4)
    auditing.add_argument("--seed", type=int, default=0)
    auditing.add_argument("--output-dir", type=Path, required=True)
    auditing.set_defaults(call=attack)
    table = commands.add_parser("table", help="numbers of all audits")
    table.add_argument("--audits", type=Path, help="default: the tables of the numbers that are in the JSON file")
    table.add_argument("--output", type=Path, required=True, help="JSON file")
    table.set_defaults(call=tabulate)
    options = parser.parse_args(argv)
    options.call(options)


if __name__ == "__main__":
    main()
