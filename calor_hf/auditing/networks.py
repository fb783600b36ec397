"""Networks that evaluate reconstructions: evaluation models, and extractors of features."""

import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from calor_hf.auditing.extractors import SOURCES, StandardExtractor
from calor_hf.core.digests import tensor_digest
from calor_hf.core.label_names import class_order
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import HFTarget

BATCH = 128
IDENTITY_COMMAND = (
    "calor-hf train --role evaluation --model ANOTHER_ARCHITECTURE --dataset DATA --label-column identities"
)
"""Training of an evaluation model for data with decoys, for messages."""
_ROUNDING = 0.01  # relative difference of logits, up to that of weights in bfloat16
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
        folder: Folder or Hub id that it was loaded from, or None.
    """

    name: str
    module: nn.Module
    features: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor] | None = None
    class_names: Sequence[str] = ()
    folder: str | None = None

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

    def for_identities(self, identities: Tensor, role: str) -> "Network":
        """Return the network with a score for each identity of data with decoys, in the order of their numbers.

        A classifier of classes or of private identities alone is refused: it gives the face of a decoy to a private
        identity, so it would count decoys as leaks.

        Args:
            identities: (identities,) numbers in the data.
            role: Role of the network, for errors.

        Raises:
            ValueError: the network classifies something else.
        """
        head, count, order = self.head, len(identities), identities
        if head is None:
            return self

        def check(classes: int) -> None:
            if classes != count:
                raise ValueError(
                    f"the {role} '{self.name}' has {classes} classes, and the data hold {count} identities, private "
                    f"ones and decoys, which it must tell apart; train one with {IDENTITY_COMMAND}"
                )

        if self.class_names:
            check(len(self.class_names))
            own = class_order(self.class_names, [str(number) for number in range(count)], f"the {role} '{self.name}'")
            order = identities if own is None else torch.tensor(own)[identities]

        def scores(features: Tensor) -> Tensor:
            logits = head(features)
            check(logits.shape[1])
            return logits[:, order.to(logits.device)]

        return replace(self, head=scores, class_names=())

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


def check_different(networks: Mapping[str, Network], *size: int) -> None:
    """Refuse networks that are copies of the target, of the control, or of each other, under whatever name.

    A copy has the same weights, or nearly the same logits on noise, which networks that were trained apart never have.

    Args:
        networks: By role; the extractor only describes images, and may be any of them.
        size: Height and width of the noise.

    Raises:
        ValueError: two are the same.
    """
    noise = torch.rand(8, 3, *size, generator=torch.Generator().manual_seed(0))
    weights = {
        role: {tensor_digest(tensor) for tensor in network.module.state_dict().values() if tensor.numel() > 1}
        for role, network in networks.items()
    }
    with torch.random.fork_rng(devices=[]):  # of stochastic heads
        answers = {role: network.outputs(noise)[1] for role, network in networks.items()}
    judges = [role for role in ("target", "control", *ROLES) if role in networks and role != "extractor"]
    for one, other in itertools.combinations(judges, 2):
        held = weights[other] and weights[other] <= weights[one]
        if held or networks[one].module is networks[other].module or _alike(answers[one], answers[other]):
            first, second = (role.replace("_", " ") for role in (one, other))
            raise ValueError(
                f"the {second} is the {first} or a copy of it, and agrees with it whatever the images show; pass "
                "another network, trained on its own"
            )


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether logits are the same up to rounding of the weights, and not constant."""
    if one is None or other is None or one.shape != other.shape:
        return False
    one, other = (logits - logits.mean(dim=1, keepdim=True) for logits in (one, other))
    return float(one.norm()) > 0 and float((one - other).norm()) < _ROUNDING * float(one.norm())


def load_network(source: "str | Network | Target | nn.Module", name: str = "") -> Network:
    """Load or wrap a network.

    Args:
        source: Name in ``extractors.SOURCES``, such as ``inception_fid`` (a folder is ``./inception_fid``);
            folder or Hub id of an image classifier of transformers; ``module:function``, whose function takes
            nothing and returns an ``nn.Module`` that turns images in [0, 1] into features; or one of these in memory.
        name: Name in the report; defaults to ``source``.

    Raises:
        ValueError: the function does not exist or returns something else, or a named network is not available.
        OSError: the model does not exist.
    """
    if isinstance(source, Network):
        return source
    folder = None
    if isinstance(source, str) and source in SOURCES:
        source = StandardExtractor(source)
    elif isinstance(source, str) and ":" not in source:
        folder, source = source, HFTarget.from_pretrained(source)
        name = name or f"{type(source.module).__name__} ({folder})"
    if isinstance(source, Target):
        names = tuple(source.class_names)
        own_name = type(source.module).__name__
        return Network(name or own_name, source.module, source.features, source.head, names, folder)
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
