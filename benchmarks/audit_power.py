"""Power of an audit by data and prior: ceilings on drawn faces and on real ones, one JSON file per cell, resumable.

    calor-hf prior --image-size 32 --settings width=16 discriminator_steps=1 steps=1200 --output-dir outputs/prior_drawn
    calor-hf prior --dataset DATA/lfw_public_64/train.parquet --image-size 32 \
        --settings width=16 discriminator_steps=1 steps=1500 --output-dir outputs/prior_lfw
    python -m benchmarks.audit_power --target outputs/demo/calor --evaluation-model outputs/demo/evaluation-model \
        --drawn-prior outputs/prior_drawn --data DATA --real-prior outputs/prior_lfw --output-dir outputs/power

On drawn faces the true identity judges what the renderer draws, the evaluation model what other priors draw, and the
target guides. On real faces face network B judges and network A guides; neither learned these
people, and target and evaluation model have no say. A spoiled prior is the trained one with a last layer of a tenth.

``--share N`` measures instead the cost of the check and of ``auto`` with its published effort, on N drawn people:
images of the renderer, and seconds of processor time.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks.mobilefacenet import Embedding
from calor_hf import AuditOptions, HFTarget, PrivateImages, load_generator
from calor_hf.auditing.audit import reconstruct
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import Network
from calor_hf.auditing.power import Power
from calor_hf.core.files import write_json
from calor_hf.core.report_text import percent
from calor_hf.data.loading import load_splits
from calor_hf.generators import Generator
from calor_hf.recipes.runs import markdown

SIDE, PEOPLE, IMAGES_PER_CLASS = 64, 20, 8


def spoiled(prior: Generator[Any]) -> Generator[Any]:
    """The prior with a last layer of a tenth."""
    with torch.no_grad():
        for weight in list(prior.last.parameters()):  # type: ignore[union-attr]
            weight *= 0.1
    return prior


def nearest_mean(network: Embedding, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Head of a face network that scores the cosine to the mean image of each person."""
    with torch.no_grad():
        features = torch.cat([network(some.float() / 255) for some in images.split(128)])
    means = F.normalize(torch.stack([features[labels == label].mean(dim=0) for label in labels.unique()]), dim=1)
    return lambda seen: F.normalize(seen, dim=1) @ means.T


def untrained(classes: int) -> HFTarget:
    """Target of random weights."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=classes)
    return HFTarget(ResNetForImageClassification(config), image_size=SIDE)


def share(options: argparse.Namespace) -> str:
    """Cost of the power check and of ``auto``, as a table."""
    people, prior, made, rows = range(options.share), load_generator("renderer", image_size=SIDE), list[int](), []
    evaluator = _evaluator("drawn faces", prior, options, people)
    evaluator.private_views  # noqa: B018 - any audit needs them
    prior.register_forward_hook(lambda *call: made.append(len(call[-1])))
    with tempfile.TemporaryDirectory() as folder:
        audit = AuditOptions(classes=people, output_dir=folder)
        for name, work in (
            ("power", lambda: Power(evaluator, audit.images_per_class, audit.chunk_size).checks()),
            ("auto", lambda: reconstruct(evaluator.target, prior, people, audit)),
        ):
            made.clear()
            begin = time.process_time()
            work()
            rows.append([name, f"{sum(made):,}", f"{time.process_time() - begin:.0f}"])
    return markdown(["", "images of the renderer", "seconds"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cells that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", help="model of the drawn faces: folder")
    parser.add_argument("--evaluation-model", help="of the drawn faces: folder")
    parser.add_argument("--drawn-prior", help="trained on drawn faces of other people: folder")
    parser.add_argument("--data", type=Path, help="folder of the real faces")
    parser.add_argument("--real-prior", help="trained on public real faces: folder")
    parser.add_argument("--share", type=int, metavar="N", help="people for measuring the cost")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/power"))
    options = parser.parse_args(argv)
    if options.share:
        print(share(options))
        return
    cells: dict[tuple[str, str], Callable[[], Generator[Any]]] = {}
    if options.evaluation_model:
        cells["drawn faces", "renderer"] = lambda: load_generator("renderer", image_size=SIDE)
    for data, folder in (("drawn faces", options.drawn_prior), ("bolly100", options.real_prior)):
        if folder is not None:
            cells[data, "trained"] = lambda folder=folder: load_generator(folder)  # type: ignore[misc]
            cells[data, "spoiled"] = lambda folder=folder: spoiled(load_generator(folder))  # type: ignore[misc]
    rows = []
    for (data, name), load in cells.items():
        file = options.output_dir / f"{data} {name}.json".replace(" ", "_")
        if not file.is_file():
            begin = time.perf_counter()
            checks = Power(_evaluator(data, load(), options), IMAGES_PER_CLASS, 256).checks()
            found = {check.name: asdict(check) for check in checks}
            write_json(file, {"checks": found, "seconds": time.perf_counter() - begin}, indent=1)
        cell = json.loads(file.read_text())
        shown = [
            f"{percent(check['images']['value'])} / {percent(check['identities']['value'])} "
            f"({percent(check['chance'])} / {percent(check['chance_identities'])})"
            for check in cell["checks"].values()
        ]
        rows.append([data, name, *shown, f"{cell['seconds']:.0f} s"])
    print(markdown(["data", "prior", "resolution", "prior", "guided", "time"], rows))


def _evaluator(
    data: str, prior: Generator[Any], options: argparse.Namespace, people: Sequence[int] = range(PEOPLE)
) -> Evaluator:  # fmt: skip
    source = None if data == "drawn faces" else str(options.data / "bolly100_64")
    private = PrivateImages.from_dataset(load_splits(source), image_size=SIDE, name=data)
    networks: dict[str, Any] = {}
    if source is None:
        target, model = HFTarget.from_pretrained(options.target), options.evaluation_model
    else:
        judge, guide = Embedding(options.data, "B"), Embedding(options.data, "A")
        second = Network("network A", guide, guide, nearest_mean(guide, private.images, private.labels))
        networks = {"embedding": Network("network B", judge, judge), "second_evaluation_model": second}
        target, model = (untrained(len(private.label_names)) for _ in range(2))  # which have no say
    return Evaluator(target, private, prior, list(people), model, AuditOptions(**networks))


if __name__ == "__main__":
    main()
