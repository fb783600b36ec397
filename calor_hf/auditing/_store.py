"""Reconstructions as safetensors files."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from calor_hf.core.files import parse_json, read_tensors, write_whole
from calor_hf.core.reconstruction import Cost, Reconstruction

_TENSORS = ("images", "labels", "latents", "scores")


def save_reconstruction(found: Reconstruction, path: Path) -> None:
    """Write reconstructions; the file is written completely or not at all.

    Raises:
        NotSavedError: the disk is full, or not writable.
    """
    tensors = {name: getattr(found, name).contiguous() for name in _TENSORS}
    write_whole(path, save(tensors, metadata={"cost": json.dumps(asdict(found.cost))}))


def load_reconstruction(path: str | Path) -> Reconstruction:
    """Read what :func:`save_reconstruction` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """
    tensors, notes = read_tensors(path)
    missing = sorted(set(_TENSORS) - tensors.keys())
    if missing:
        raise ValueError(f"{path} holds no reconstructions: {', '.join(missing)} missing")
    images, labels, latents, scores = (tensors[name] for name in _TENSORS)
    if images.ndim != 4 or images.shape[1] != 3 or labels.dtype != torch.int64 or scores.ndim != 1:
        raise ValueError(
            f"{path} holds no reconstructions: images of shape {tuple(images.shape)}, {labels.dtype} labels"
        )
    if labels.shape != scores.shape or not len(images) == len(labels) == len(latents):
        raise ValueError(
            f"{path} is damaged: it has {len(images)} images, {len(labels)} labels and {len(scores)} scores"
        )
    return Reconstruction(images, labels, latents, scores, cost_of(notes.get("cost", "{}"), str(path)))


def cost_of(text: str, name: str) -> Cost:
    """Read a cost from the JSON text of the file ``name``."""
    noted = parse_json(text, name, dict[str, float])
    unknown = sorted(noted.keys() - asdict(Cost()).keys())
    if unknown:
        raise ValueError(f"{name} is damaged: its cost names {', '.join(unknown[:5])}")
    return Cost(**noted)


@dataclass(frozen=True)
class ChunkStore:
    """Store of the finished chunks of an attack, one file each, read again after a crash.

    Attributes:
        folder: Folder of the chunks.
        result: File of a finished run, which counts as a chunk.
        labels: Classes of the run.
        images_per_class: Images of a finished class.
    """

    folder: Path
    result: Path
    labels: Sequence[int]
    images_per_class: int

    def add(self, found: Reconstruction) -> None:
        """Keep a finished chunk under the name of its first class."""
        save_reconstruction(found, self.folder / f"{int(found.labels[0]):06d}.safetensors")

    def read(self) -> list[Reconstruction]:
        """Chunks with all images of their classes, cut down to the classes of the run."""
        found = []
        for path in [self.result] * self.result.is_file() + sorted(self.folder.glob("*.safetensors")):
            chunk = load_reconstruction(path)
            classes, counts = chunk.labels.unique(return_counts=True)
            whole = [c for c, n in zip(classes.tolist(), counts.tolist(), strict=True) if n == self.images_per_class]
            kept = torch.isin(chunk.labels, torch.tensor([c for c in whole if c in self.labels], dtype=torch.int64))
            if kept.any():
                images, classes, latents, scores = (getattr(chunk, name)[kept] for name in _TENSORS)
                found.append(Reconstruction(images, classes, latents, scores, chunk.cost))
        return found
