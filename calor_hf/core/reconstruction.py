"""Result of an attack: rebuilt images and their cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Cost of an attack; images are counted, not batches.

    Attributes:
        generator_passes: Images made by the generator.
        target_passes: Images the target evaluated; for an attack that sees a view, the view's queries.
        target_gradients: Number of these with a gradient back to the pixels.
        seconds: Wall time, summed over processes.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}  # as read from a report
    generator_passes: int = 0
    target_passes: int = 0
    target_gradients: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        mine, theirs = asdict(self), asdict(other)
        return Cost(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class Reconstruction:
    """Rebuilt images of some classes, on the CPU.

    Attributes:
        images: (n, 3, height, width) in [0, 1].
        labels: (n,) int64: the class that each image is meant to show; images of a class lie together.
        latents: (n, ...) what the generator made them from.
        scores: (n,) probability of the label by the target itself: the attacker's own view, not a success rate. An
            attack that sees labels alone knows only whether the target's is the wanted one: 1 or 0.
        cost: Cost of the attack.
    """

    images: Tensor
    labels: Tensor
    latents: Tensor
    scores: Tensor
    cost: Cost

    @classmethod
    def join(cls, parts: Sequence["Reconstruction"]) -> "Reconstruction":
        """One reconstruction of several, classes in ascending order; if a class comes twice, the first counts.

        Raises:
            ValueError: ``parts`` is empty.
        """
        if not parts:
            raise ValueError("no reconstructions to join")
        seen: set[int] = set()
        kept: list[tuple[int, Reconstruction, Tensor]] = []
        cost = Cost()
        for part in parts:
            fresh = [label for label in part.labels.unique().tolist() if label not in seen]
            seen.update(fresh)
            kept += [(label, part, part.labels == label) for label in fresh]
            cost = cost + part.cost if fresh else cost
        kept.sort(key=lambda item: item[0])

        def gather(name: str) -> Tensor:
            return torch.cat([getattr(part, name)[rows] for _, part, rows in kept])

        return cls(gather("images"), gather("labels"), gather("latents"), gather("scores"), cost)
