"""The model under attack: white-box, scores only, or labels only."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from calor_hf.core.digests import network_digest, text_digest
from calor_hf.core.report import TargetInfo


class Target(ABC):
    """A classifier of images in [0, 1]; resizing and normalization happen inside, differentiably.

    Attributes:
        module: The network; an attack freezes its weights and restores them.
        head: Maps (batch, features) to (batch, classes) logits, so that an adaptive attack can bypass it.
        num_classes: Number of classes.
        image_size: Height and width of the network's input, in pixels.
        resizes: Whether images of another size are resized to it.
        stochastic: Whether two passes over the same image differ.
        files: SHA-256 of ``weights`` and ``processor`` in the folder that it was loaded from; empty without one.
    """

    module: nn.Module
    head: Callable[[Tensor], Tensor]
    num_classes: int
    image_size: tuple[int, int]
    resizes: bool = True
    stochastic: bool = False
    files: Mapping[str, str | None] = MappingProxyType({})

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """(batch, features) entering the head, from (batch, 3, height, width) in [0, 1]."""

    def __call__(self, images: Tensor) -> Tensor:
        """(batch, classes) logits."""
        return self.head(self.features(images))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; ``LABEL_0`` … if they are not known."""
        return [f"LABEL_{index}" for index in range(self.num_classes)]

    @property
    def scores_identities(self) -> bool:
        """Whether the head was trained with decoys, and has a score for each identity of a class."""
        return hasattr(self.head, "identity_scores")

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's weights."""
        return next(self.module.parameters()).dtype

    def describe(self, name: str) -> TargetInfo:
        """Describe the network for a report, under a name, which may be its folder."""
        config, defense = (getattr(self.module, part, None) for part in ("config", "defense"))
        return TargetInfo(
            name=name,
            model=type(self.module).__name__,
            defense=getattr(config, "defense", None) or ("none" if defense is None else type(defense).__name__),
            settings={} if defense is None else defense.config.to_dict(),
            classes=self.num_classes,
            parameters=sum(weight.numel() for weight in self.module.parameters()),
            **self.files,
        )

    def digests(self) -> dict[str, str]:
        """Return a digest of each part whose change makes it another target."""
        return {
            "weights of the target": network_digest(self.module),
            "image processing of the target": text_digest(getattr(self, "pixel_input", None)),
        }


class _BlackBox:
    """Black-box view of a target; ``released`` are its answers, from probabilities.

    Attributes:
        num_classes: Number of classes.
        image_size: Height and width of the network's input, in pixels.
        stochastic: Whether two answers about the same image differ.
        device: Device of the network; other images are moved there, and the answers back.
        queries: Images answered so far.
    """

    def __init__(self, target: Target, released: Callable[[Tensor], Tensor]) -> None:
        def ask(images: Tensor) -> Tensor:
            with torch.no_grad():
                scores = target(images.detach().to(target.device, target.dtype)).softmax(dim=-1)
            if not scores.isfinite().all():
                raise FloatingPointError("the target's scores became NaN or infinite; check its weights")
            return released(scores).to(images.device)

        self._ask = ask  # a closure, so that no attribute leads to the network
        self.num_classes = target.num_classes
        self.image_size = target.image_size
        self.stochastic = target.stochastic
        self.device = target.device
        self.queries = 0

    def __call__(self, images: Tensor) -> Tensor:
        """Answers for (batch, 3, height, width) images in [0, 1], without gradients.

        Raises:
            FloatingPointError: the network's scores are not finite.
        """
        answers = self._ask(images)
        self.queries += len(images)
        return answers


class ScoreTarget(_BlackBox):
    """Black-box view of a target that gives (batch, classes) probabilities only."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, lambda scores: scores)


class LabelTarget(_BlackBox):
    """Black-box view of a target that gives (batch,) int64 most likely classes only."""

    def __init__(self, target: Target) -> None:
        super().__init__(target, lambda scores: scores.argmax(dim=-1))
