"""Feature extractors of published tables, by name, from the libraries that distribute them.

None of these libraries comes with ours: each imports torchvision. They are imported when a network is asked for, and
they fetch its weights themselves, once.
"""

import importlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.metrics.fid import INCEPTION


@dataclass(frozen=True)
class Source:
    """Where a network is kept and what it reads.

    Attributes:
        module: Module of the library.
        kind: Class in it.
        install: Words after ``pip install``.
        weights: Address that the library fetches them from.
        hub: Whether it keeps them in torch's ``hub/checkpoints``; else in ``checkpoints``.
        options: Arguments of the class.
        size: Side in pixels that images are resized to; None means that the network does that itself.
        scale: The network is given scale · x + offset of images x in [0, 1].
        offset: Added after scaling.
    """

    module: str
    kind: str
    install: str
    weights: str
    hub: bool
    options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    scale: float = 1.0
    offset: float = 0.0

    @property
    def folder(self) -> Path:
        """Folder in which the library looks for the weights before it downloads them."""
        hub = Path(torch.hub.get_dir())
        return (hub if self.hub else hub.parent) / "checkpoints"


_INCEPTION: dict[str, Any] = {
    "module": "pytorch_fid.inception",
    "kind": "InceptionV3",  # as it comes: the 2048 pooled features, of images in [0, 1] that it resizes to 299 pixels
    "install": "pytorch-fid",
    "weights": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "hub": True,
}
_FACES: dict[str, Any] = {
    "module": "facenet_pytorch",
    "kind": "InceptionResnetV1",  # 512 unit features
    "install": "--no-deps facenet-pytorch",  # its own list asks for an old torch
    "weights": "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
    "hub": False,
    "options": {"pretrained": "vggface2"},
    "size": 160,
}
SOURCES = {
    INCEPTION: Source(**_INCEPTION),
    # As PPA and MIBench do it: images in [-1, 1], of which the network makes [-3, 1].
    f"{INCEPTION}_legacy_range": Source(**_INCEPTION, scale=2.0, offset=-1.0),
    "inception_resnet_vggface2": Source(**_FACES, scale=2.0, offset=-1.0),
    # As MIBench does it at low resolution: images in [0, 1] for a network that was trained on [-1, 1].
    "inception_resnet_vggface2_legacy_scale": Source(**_FACES),
}


class StandardExtractor(nn.Module):
    """A library's network behind the size and scaling that the published numbers were made with.

    Args:
        name: In :data:`SOURCES`.

    Raises:
        KeyError: no such name.
        ValueError: the library or the weights are not available; the message says what to install, or which file to
            add.

    Source:
        mseitzer/pytorch-fid `inception.py`; timesler/facenet-pytorch `inception_resnet_v1.py`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.source = name, SOURCES[name]
        self.network = _built(name, self.source)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, d) features of (batch, 3, height, width) images in [0, 1]."""
        size = self.source.size
        if size is not None:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)
        found = self.network(self.source.scale * images + self.source.offset)
        features: Tensor = found[0] if isinstance(found, list) else found
        return features.flatten(1)


def _built(name: str, source: Source) -> nn.Module:
    library = source.module.split(".")[0]
    other = "or pass a network of your own as package.module:function"
    try:
        kind = getattr(importlib.import_module(source.module), source.kind)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # RuntimeError: torchvision of another torch
        raise ValueError(
            f"'{name}' is a network of {library}, which does not import here ({error}); pip install {source.install}, "
            f"with the torchvision that was built for torch {torch.__version__}; {other}"
        ) from error
    try:
        with _tensors_alone():
            network: nn.Module = kind(**source.options)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{library} has no weights for '{name}' ({first_line}); on a machine with a network connection, download "
            f"{source.weights}, and put the file as it is into {source.folder}; {other}"
        ) from error
    return network.eval()


@contextmanager
def _tensors_alone() -> Iterator[None]:
    # Both libraries may unpickle what they fetched; this makes torch.load refuse everything but weights.
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
