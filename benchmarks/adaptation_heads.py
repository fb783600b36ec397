"""Confidence adaptation of a low-rank head on frozen face embeddings: a temperature, and adaptation after it.

The embeddings are those of MobileFaceNet (A), so that a training takes seconds. The head of rank 32 (bolly100) or 10
(ORL) is trained by cross-entropy, divided by the temperature of the target confidence, and adapted for ten epochs
by each of several optimizers, after which it is divided once more.

    python -m benchmarks.adaptation_heads --data DATA --output-dir outputs/adaptation_heads
    python -m benchmarks.adaptation_heads --output-dir outputs/adaptation_heads --table adaptation_heads.json
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.adaptation import CONTROL, SETS, B, by_person, gathered, of_training_images, table
from benchmarks.mobilefacenet import Embedding
from benchmarks.real_faces_audit import embed, load_images
from calor_hf import LowRankHead, confidence_adaptation_loss
from calor_hf.core.calibration import temperature_for
from calor_hf.core.files import write_json
from calor_hf.core.fit import fit
from calor_hf.defenses.calor import target_confidence

EPOCHS, ADAPT_EPOCHS, BATCH = 30, 10, 32
Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
GENTLE: dict[str, Optimizer] = {
    "SGD 1e-3": lambda weights: torch.optim.SGD(weights, 1e-3, momentum=0.9),
    "SGD 1e-2": lambda weights: torch.optim.SGD(weights, 1e-2, momentum=0.9),
    "AdamW 5e-5": lambda weights: torch.optim.AdamW(weights, 5e-5),
    "AdamW 5e-4": lambda weights: torch.optim.AdamW(weights, 5e-4),
}
CHANGED = tuple(f"temperature, CA, {name}" for name in GENTLE)
WAYS = ("cross-entropy", "as_is", "temperature", *CHANGED)


def embeddings(data: Path, folder: Path) -> dict[str, Tensor]:
    """Embeddings of training images, the same mirrored, and test images, with their labels; kept in a file."""
    file = folder.with_suffix(".safetensors")
    if not file.is_file():
        network, found = Embedding(data, "A"), {}
        for part in ("train", "test"):
            images, found[f"{part}_labels"] = load_images(data / folder.name / f"{part}.parquet")
            found[part] = embed(network, images)
            if part == "train":
                found["mirrored"] = embed(network, images.flip(3))
        save_file(found, file)
    return load_file(file)


def heads(parts: dict[str, Tensor], rank: int, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """Train a linear and a low-rank head, and go on from these in each way."""
    x, y = torch.cat([parts["train"], parts["mirrored"]]), parts["train_labels"].repeat(2)
    width, classes = x.shape[1], int(y.max()) + 1
    torch.manual_seed(seed)

    def train(head: nn.Module, loss: Any, optimizer: torch.optim.Optimizer, epochs: int) -> nn.Module:
        def batches(_epoch: int) -> list[Tensor]:
            return list(torch.randperm(len(y)).split(BATCH))

        fit(lambda rows: loss(head(x[rows]), y[rows]), optimizer, batches, epochs, name="the head")
        return head

    @torch.no_grad()
    def divided(head: Any) -> Any:
        divided = copy.deepcopy(head)
        logits, labels = head(parts["train"]).numpy(), parts["train_labels"].numpy()
        for weight in getattr(divided, "last_layer", divided).parameters():
            weight.div_(temperature_for(logits, labels, target_confidence(B)))
        return divided

    def adapted(head: nn.Module, make: Optimizer) -> nn.Module:
        mine = copy.deepcopy(head)
        return train(mine, confidence_adaptation_loss, make(mine.parameters()), ADAPT_EPOCHS)

    linear = nn.Linear(width, classes)
    yield "undefended", train(linear, F.cross_entropy, torch.optim.AdamW(linear.parameters(), 5e-3), EPOCHS)
    head = LowRankHead(width, classes, rank)
    yield "cross-entropy", train(head, F.cross_entropy, torch.optim.AdamW(head.parameters(), 5e-3), EPOCHS)
    start = divided(head)
    yield "temperature", start
    yield "as_is", adapted(head, lambda weights: torch.optim.AdamW(weights, 2e-4))
    for way, make in zip(CHANGED, GENTLE.values(), strict=True):
        further = adapted(start, make)
        yield way, divided(further)
        yield f"{way}, not divided again", further
    rescaled = divided(linear)
    yield "undefended, temperature", rescaled
    for name, make in GENTLE.items():
        yield f"undefended, temperature, CA, {name}", divided(adapted(rescaled, make))


@torch.no_grad()
def measure(head: nn.Module, parts: dict[str, Tensor]) -> dict[str, Any]:
    """Numbers of a head, on all plain training images and on the test images."""
    p = head(parts["train"]).softmax(1).double()
    labels, test_labels = parts["train_labels"], parts["test_labels"]
    confidence = p[torch.arange(len(p)), labels].numpy()
    scores = head(parts["test"]).log_softmax(1)
    right = (scores.argmax(1) == test_labels).numpy()
    return of_training_images(confidence, (p.argmax(1) == labels).numpy(), labels.numpy()) | {
        "test_accuracy": float(right.mean()), "test_nll": float(F.nll_loss(scores, test_labels)),
        "test_accuracy_by_person": by_person(right, right | True, test_labels.numpy()),
    }  # fmt: skip


def cell(name: str, parts: dict[str, Tensor], seed: int) -> dict[str, Any]:
    """Numbers of each head; by person of those whose changes are asked for."""
    found = {way: measure(head, parts) for way, head in heads(parts, SETS[name][2], seed)}
    for one in found.keys() - {*CHANGED, CONTROL}:
        found[one] = {key: value for key, value in found[one].items() if not isinstance(value, list)}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cells that are not there yet, or print the table of those that are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation_heads")
    parser.add_argument("--data", type=Path, help="folder of the face sets")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", type=Path, help="write all cells into this file, and print the table")
    options = parser.parse_args(argv)
    if options.table is not None:
        print(table(gathered(options.output_dir, options.table), WAYS, CHANGED))
        return
    if options.data is None or not options.data.is_dir():
        parser.error(f"--data must be the folder of the face sets, got {options.data}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for name, (folder, *_) in SETS.items():
        parts = embeddings(options.data, options.output_dir / folder)
        for seed in options.seeds:
            file = options.output_dir / f"{name}-seed{seed}.json"
            if not file.is_file():
                write_json(file, cell(name, parts, seed))
                print(file.name, flush=True)


if __name__ == "__main__":
    main()
