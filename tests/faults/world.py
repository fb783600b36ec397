"""A tiny world of files, the commands that work on it, and what is left of them when they end well."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ResNetConfig, ResNetForImageClassification

from tests.attacks.tiny_world import tiny_generator
from tests.hub.released_model import saved_model
from tests.processes.launch import LAUNCHER
from tests.training.small_task import image_processor

IDENTITIES, SIDE = 3, 16
# Of no meaning for the result: how long something took, when and where it was done, and what was spent on it (an attack
# that goes on looks at its starts again, and says so).
SPENT = {
    "seconds", "wall_seconds", "train_seconds", "peak_memory_bytes", "created", "runtime", "total_flos",
    "best_model_checkpoint", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "train_runtime",
    "train_samples_per_second", "train_steps_per_second", "generator_passes", "target_passes", "target_gradients",
    "checksum",
    "train_loss",  # of the Trainer of transformers: the mean since the process began
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A command.

    Attributes:
        words: It, with ``{world}`` for the folder of the inputs; what it makes goes to ``out``.
        unit: Optimizer steps between two things that are finished: most that a kill may cost.
        status: Exit status of the undisturbed command.
    """

    words: str
    unit: int
    status: int = 0

    def given(self, world: Path) -> list[str]:
        """The words for a world."""
        return [word.format(world=world, launcher=LAUNCHER) for word in self.words.split()]


_TRAINING = (
    "--model {world}/base --dataset {world}/faces --per-device-train-batch-size 8 --use-cpu --report-to none "
    "--max-accuracy-drop 100 --confidence-tolerance 1e-9 --warmup-steps 0 --output-dir out"
)
_STEPS = 4  # of an epoch
WORKS = {
    "training": Work(f"train --undefended-epochs 1 --rank 2 --num-train-epochs 2 --adapt-epochs 2 {_TRAINING}", _STEPS),
    "prior": Work(
        "prior --dataset {world}/faces --image-size 16 --save-steps 1 --output-dir out --settings steps=4 "
        "discriminator_steps=1 batch_size=4 width=4 latent_dim=4",
        2,
    ),
    "audit": Work(
        "audit {world}/target --dataset {world}/faces "
        "--evaluation-model {world}/evaluation-model --generator {world}/prior --images-per-class "
        "1 --chunk-size 1 --skip-power --output-dir out --attacks gmi:steps=4 plg:steps=4,initial_candidates=8,views=1",
        4,
        4,  # four steps have no power
    ),
    "comparison": Work(
        "compare --defenses loft --trials 1 --launcher {launcher} --num-train-epochs 2 " + _TRAINING, _STEPS
    ),
    "fixed": Work("compare --defenses loft:rank=2 --launcher {launcher} --num-train-epochs 1 " + _TRAINING, _STEPS),
}


def make_world(folder: Path) -> Path:
    """Faces, a base model, a target that knows them, an evaluation model, a prior and a model to publish."""
    rng, faces = np.random.default_rng(0), list[Image.Image]()
    for person in range(IDENTITIES):
        place = folder / "faces" / f"person {person}"
        place.mkdir(parents=True)
        pattern = rng.integers(0, 256, (SIDE, SIDE, 3))
        for index in range(12):
            noisy = np.clip(pattern + rng.normal(0, 40, pattern.shape), 0, 255).astype(np.uint8)
            faces.append(Image.fromarray(noisy))
            faces[-1].save(place / f"{index:02d}.png")
    for name, width in (("base", 8), ("target", 6), ("evaluation-model", 4)):
        torch.manual_seed(width)
        config = ResNetConfig(
            embedding_size=4, hidden_sizes=[width, 2 * width], depths=[1, 1], layer_type="basic", num_labels=IDENTITIES,
            id2label={i: f"person {i}" for i in range(IDENTITIES)},
        )  # fmt: skip
        model, processor = ResNetForImageClassification(config), image_processor()
        processor.size = {"height": SIDE, "width": SIDE}
        if name == "target":
            pixels, labels = processor(faces, return_tensors="pt"), torch.arange(IDENTITIES).repeat_interleave(12)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            for _ in range(20):
                optimizer.zero_grad()
                model(**pixels, labels=labels).loss.backward()
                optimizer.step()
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    tiny_generator("dcgan", torch.float32).save_pretrained(folder / "prior")
    saved_model(folder / "model")
    return folder


def result(folder: Path) -> dict[str, Any]:
    """All that a command left, by file: content where it is the same each time, else that it is there and whole."""
    return {
        path.relative_to(folder).as_posix(): content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log"
    }


def content(path: Path) -> Any:
    if path.suffix == ".json":
        return numbers(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".safetensors":
        digest = hashlib.sha256()
        for name, value in sorted(load_file(path).items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.numpy().tobytes())
        return digest.hexdigest()
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            return image.size
    if path.name == "checkpoint.pt":
        return sorted(torch.load(path, weights_only=True))
    return path.stat().st_size > 0


def numbers(value: Any, place: str = "") -> dict[str, str]:
    """Content of a JSON file without what was spent, by its place there."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        parts = [numbers(one, f"{place}/{name}") for name, one in pairs if name not in SPENT]
        return {name: text for part in parts for name, text in part.items()}
    return {place: repr(value)}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Differences between two results."""
    missing = [f"{name} is in one of them only" for name in sorted(found.keys() ^ expected.keys())]
    both = [(name, found[name], expected[name]) for name in sorted(found.keys() & expected.keys())]
    inside = [
        f"{name}{place}: {a.get(place)}, undisturbed {b.get(place)}"
        for name, a, b in both
        if isinstance(a, dict)
        for place in sorted(a.keys() | b.keys())
        if a.get(place) != b.get(place)
    ]
    others = [f"{name}: {a}, undisturbed {b}" for name, a, b in both if not isinstance(a, dict) and a != b]
    return missing + inside + others
