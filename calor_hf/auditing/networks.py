"""Networks that evaluate reconstructions: evaluation models, and extractors of features."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from calor_hf.auditing.extractors import SOURCES, StandardExtractor
from calor_hf.core.label_names import class_order
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import HFTarget

BATCH = 128
ROLES = ("evaluation_model", "second_evaluation_model", "embedding", "extractor")


@dataclass(frozen=True)
class Network:
    """Network that reads images in [0, 1] of any size.

    Attributes:
        name: Name in the report; a name in ``extractors.SOURCES`` is reserved for the network there.
        module: The network itself.
        features: (batch, 3, height, width) in [0, 1] → (batch, d).
        head: (batch, d) features → (batch, classes) logits; None for a network that is no classifier.
        class_names: Names of its classes; empty if they are not known.
    """

    name: str
    module: nn.Module
    features: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor] | None = None
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for another network under a name whose numbers are compared with published ones."""
        self.module.eval()
        if self.name in SOURCES and not (isinstance(self.module, StandardExtractor) and self.module.name == self.name):
            raise ValueError(
                f"the name '{self.name}' belongs to the network that published tables use; give yours another name, or "
                f"pass the word {self.name} alone to have that one loaded"
            )

    def for_classes(self, class_names: Sequence[str], role: str) -> "Network":
        """Return the network with logits in the order of the target's ``class_names``.

        Raises:
            ValueError: other classes than the target's.
        """
        order = class_order(self.class_names, class_names, f"the {role} '{self.name}'") if self.class_names else None
        head = self.head
        if order is None or head is None:
            return self
        return replace(self, head=lambda features: head(features)[:, order], class_names=tuple(class_names))

    @torch.no_grad()
    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute features and logits in batches.

        Args:
            images: (n, 3, height, width) in [0, 1], or uint8.

        Returns:
            (n, d) features, and (n, classes) logits or None; float32 on the CPU.
        """
        device = next((weight.device for weight in self.module.parameters()), torch.device("cpu"))
        dtype = next((weight.dtype for weight in self.module.parameters()), torch.float32)
        features, logits = [], []
        for batch in images.split(BATCH):
            x = batch.to(device)
            seen = self.features((x.float() / 255 if x.dtype == torch.uint8 else x).to(dtype))
            features.append(seen.flatten(1).float().cpu())
            if self.head is not None:
                logits.append(self.head(seen).float().cpu())
        return torch.cat(features), torch.cat(logits) if logits else None


def load_network(source: "str | Network | Target | nn.Module", name: str = "") -> Network:
    """Load or wrap a network.

    Args:
        source: Name in ``extractors.SOURCES``, such as ``inception_fid`` (a folder is ``./inception_fid``);
            folder or Hub id of an image classifier of transformers; ``module:function``, where the function takes
            nothing and returns an ``nn.Module`` that turns images in [0, 1] into features; or one of these in memory.
        name: Name in the report; defaults to ``source``.

    Raises:
        ValueError: the function does not exist or returns something else, or a named network is not available.
        OSError: the model does not exist.
    """
    if isinstance(source, Network):
        return source
    if isinstance(source, str) and source in SOURCES:
        source = StandardExtractor(source)
    elif isinstance(source, str) and ":" not in source:
        folder, source = source, HFTarget.from_pretrained(source)
        name = name or f"{type(source.module).__name__} ({folder})"
    if isinstance(source, Target):
        names = tuple(source.class_names)
        return Network(name or type(source.module).__name__, source.module, source.features, source.head, names)
    if isinstance(source, StandardExtractor):
        name = source.name
    if isinstance(source, nn.Module):
        return Network(name or type(source).__name__, source, source)
    module, _, function = source.partition(":")
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"expected a network as package.module:function, got {source!r} ({error})") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{source} returned {type(made).__name__}, not an nn.Module of images in [0, 1] to features")
    return Network(name or source, made, made)
