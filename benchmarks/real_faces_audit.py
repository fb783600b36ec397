"""Undefended against CALoR under attack, on real faces: prints numbers, keeps images out of the repository.

The target is a frozen public face network (MobileFaceNet, 128 numbers) with a head trained on private people; the prior
a GAN of public people; the evaluation model another MobileFaceNet, trained on other data, that no one else here looks
at. A
reconstruction counts as a success if the evaluation model finds it nearer to the mean of its person's private images
than to that of any other person.

    calor-hf prior --dataset DATA/lfw_public_64/train.parquet --image-size 32 --settings width=32 steps=3000 \
        --output-dir outputs/prior_lfw
    python -m benchmarks.real_faces_audit --data DATA --prior outputs/prior_lfw --output-dir outputs/real
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.evaluation_model import interval
from benchmarks.mobilefacenet import Embedding
from calor_hf import LowRankHead, __version__
from calor_hf.attacks import ATTACKS
from calor_hf.auditing import run_attack
from calor_hf.core.seeding import named_rng
from calor_hf.defenses.calor import confidence_adaptation_loss
from calor_hf.generators import load_generator
from calor_hf.targets.base import Target


@dataclass
class Cached:
    """Embeddings (n, 128) with labels (n,): what a frozen body leaves to be trained on."""

    features: Tensor
    labels: Tensor


class FaceTarget(Target):
    """Frozen embedding and trained head."""

    def __init__(self, body: Embedding, head: nn.Module, num_classes: int) -> None:
        self.module = nn.ModuleDict({"body": body, "head": head}).eval()
        self.head, self.num_classes, self.image_size = head, num_classes, (64, 64)
        self._body = body

    def features(self, images: Tensor) -> Tensor:
        """(batch, 128) embeddings."""
        return self._body(images)  # type: ignore[no-any-return]


def load_images(file: Path, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels of a parquet file, ``most`` at most."""
    data = load_dataset("parquet", data_files=str(file), split="train" if most is None else f"train[:{most}]")
    images = torch.stack([torch.from_numpy(np.array(row.convert("RGB"))) for row in data["image"]])
    return images.permute(0, 3, 1, 2).float() / 255, torch.tensor(data["label"])


@torch.no_grad()
def embed(net: nn.Module, images: Tensor) -> Tensor:
    """Embeddings, batch by batch."""
    return torch.cat([net(batch) for batch in images.split(128)])


def samples_of(prior: Any, count: int, rng: np.random.Generator) -> Tensor:
    """(count, 3, side, side) samples of a prior in [0, 1]."""
    latents = prior.sample_latents(count, rng).float()
    with torch.no_grad():
        return torch.cat([prior(some) for some in latents.split(64)]).clamp(0, 1)


Stage = tuple[Callable[[Tensor, Tensor], Tensor], int, float]
"""Loss of inputs and labels, epochs, and learning rate."""


def fit(module: nn.Module, data: Cached, stages: Sequence[Stage], weight_decay: float = 0.5, batch: int = 256) -> None:
    """Train a head, or a network, stage by stage; ``data`` are its inputs with their labels."""
    for loss, epochs, rate in stages:
        optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(data.labels)).split(batch):
                optimizer.zero_grad()
                loss(data.features[rows], data.labels[rows]).backward()
                optimizer.step()
            schedule.step()
    module.eval()


def train_head(train: Cached, classes: int, rank: int | None, seed: int) -> nn.Module:
    """Head over the embeddings: a linear one by cross-entropy, or CALoR's of ``rank`` in its two stages."""
    torch.manual_seed(seed)
    width = train.features.shape[1]
    head = nn.Linear(width, classes) if rank is None else LowRankHead(width, classes, rank)
    stages: list[Stage] = [(lambda x, y: F.cross_entropy(head(x), y), 30, 5e-3)]
    if rank is not None:
        stages.append((lambda x, y: confidence_adaptation_loss(head(x), y), 10, 5e-4))
    fit(head, train, stages)
    return head


def accuracy(head: nn.Module, data: Cached) -> tuple[float, float]:
    """Accuracy, and mean probability of the true class."""
    with torch.no_grad():
        p = head(data.features).softmax(1)
    rows = torch.arange(len(p))
    return float((p.argmax(1) == data.labels).double().mean()), float(p[rows, data.labels].mean())


def evaluated(images: Tensor, labels: Tensor, evaluation_model: nn.Module, means: Tensor) -> dict[str, Any]:
    """Success by the evaluation model: nearest person's mean; share of images, of people with one success, top five."""
    scores = F.normalize(embed(evaluation_model, images)) @ means.T
    topk_correct = scores.argmax(1) == labels
    top5 = (scores.topk(5, dim=1).indices == labels[:, None]).any(1)
    identities = labels.unique()
    rows = torch.arange(len(labels))
    return {
        "top1": float(topk_correct.double().mean()),
        "top1_interval": interval(topk_correct, labels),
        "top5": float(top5.double().mean()),
        "people_with_a_success": float(
            torch.stack([topk_correct[labels == p].any() for p in identities]).double().mean()
        ),
        "cosine_to_own_mean": float(scores[rows, labels].mean()),
    }


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "gmi, ce": ("gmi", {}),
    "plg, ce": ("plg", {"objective": "ce"}),
    "plg, ce, straight_through": ("plg", {"objective": "ce", "gradient": "straight_through"}),
    "plg, poincare": ("plg", {"objective": "poincare"}),
    "plg, max_margin": ("plg", {}),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train the heads, attack them, print and save the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", nargs="*", default=list(RUNS))
    options = parser.parse_args(argv)
    body, evaluation_model = Embedding(options.data, "A"), Embedding(options.data, "B")
    private, labels = load_images(options.data / "bolly100_64" / "train.parquet")
    test_images, test_labels = load_images(options.data / "bolly100_64" / "test.parquet")
    file = options.output_dir / "embeddings.safetensors"
    if not file.is_file():
        inputs = {"train": private, "mirrored": private.flip(3), "test": test_images}
        made = {name: embed(body, images) for name, images in inputs.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({**made, "evaluation_model": embed(evaluation_model, private)}, file)
    cached = load_file(file)
    features, mirrored = cached["train"], cached["mirrored"]
    train = Cached(torch.cat([features, mirrored]), labels.repeat(2))
    test = Cached(cached["test"], test_labels)
    of_evaluation_model = F.normalize(cached["evaluation_model"])
    means = F.normalize(torch.stack([of_evaluation_model[labels == c].mean(0) for c in range(int(labels.max()) + 1)]))
    prior = load_generator(options.prior)
    report: dict[str, Any] = {
        "version": __version__,
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    report["judge on test images"] = evaluated(test_images, test_labels, evaluation_model, means)
    chosen = list(range(options.people))
    wanted = torch.tensor(chosen).repeat_interleave(options.images)
    for name, rank in (("undefended", None), (f"calor, rank {options.rank}", options.rank)):
        head = train_head(train, len(means), rank, options.seed)
        found: dict[str, Any] = {"test_accuracy": accuracy(head, test)[0]}
        found["training_accuracy"], found["training_confidence"] = accuracy(head, train)
        print(name, found, flush=True)
        target = FaceTarget(body, head, len(means))
        with torch.no_grad():
            latents = prior.sample_latents(
                len(wanted), named_rng(options.seed, "benchmarks/real_faces_audit/samples")
            ).float()
            found["samples of the prior"] = evaluated(prior(latents), wanted, evaluation_model, means)
        for run in options.runs:
            attack, settings = RUNS[run]
            if rank is None and "gradient" in settings:
                continue  # there is no Tanh to go past
            kind = ATTACKS.get(attack)
            config = kind.configure(steps=options.steps, **settings)
            folder = options.output_dir / name.replace(", ", "-").replace(" ", "") / run.replace(", ", "-")
            result = run_attack(
                kind(config), target, prior, chosen, folder, name=attack, target_name=name,
                images_per_class=options.images, seed=options.seed, chunk_size=40, resume=True,
            )  # fmt: skip
            found[run] = evaluated(result.images, result.labels, evaluation_model, means)
            found[run]["target_confidence"] = float(result.scores.mean())
            found[run]["seconds"] = round(result.cost.seconds)
            print(f"  {run:28} {found[run]}", flush=True)
        report[name] = found
    options.output_dir.mkdir(parents=True, exist_ok=True)
    (options.output_dir / "numbers.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
