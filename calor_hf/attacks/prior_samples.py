"""Samples of a prior, for attacks that learn about the target from images."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.targets.frozen import frozen


class PriorSamples(Dataset[Tensor]):
    """Samples of a generator instead of public images.

    Args:
        target: For device and number of classes.
        generator: The prior.
        count: Number of images.
        seed: Seed of the latents.
        in_turn: The wanted classes take turns; otherwise they are drawn.
    """

    def __init__(self, target: Any, generator: Generator[Any], count: int, seed: int, in_turn: bool = False) -> None:
        rng = named_rng(seed, "attacks/drawn-images", count)
        images = []
        with frozen(generator), torch.no_grad():
            for start in range(0, count, 250):
                latents = generator.sample_latents(250, rng).to(target.device, generator.dtype)
                labels = torch.from_numpy(rng.integers(0, target.num_classes, 250)).to(target.device)
                if in_turn:
                    labels = torch.arange(start, start + 250, device=target.device) % target.num_classes
                # Kept as bytes, as public images are stored: a quarter of the memory of floats.
                images.append((generator(latents, labels).clamp(0, 1) * 255).round().byte().cpu())
        self.images = torch.cat(images)[:count]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index].float() / 255
