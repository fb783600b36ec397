"""Digests of content, which tell networks and images apart, whatever their names are."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_INCIDENTAL = ("_name_or_path", "transformers_version")  # entries of a configuration that change nothing


def tensor_digest(tensor: "Tensor") -> str:
    """Return the SHA-256 of a tensor's type, shape and values."""
    import torch

    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + values.tobytes()).hexdigest()


def network_digest(module: "nn.Module") -> str:
    """Return the SHA-256 of a network's weights with their names, and of its configuration if it has one."""
    config: Any = getattr(module, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    weights = {name: tensor_digest(tensor) for name, tensor in module.state_dict().items()}
    return text_digest([weights, {name: value for name, value in settings.items() if name not in _INCIDENTAL}])


def images_digest(images: Iterable["Tensor"], names: Iterable[str]) -> str:
    """Return the SHA-256 of decoded images with their class names, whatever their order.

    It tells who owns an image whether it is among them, so it is not to be published.
    """
    return text_digest(sorted(f"{name} {tensor_digest(image)}" for image, name in zip(images, names, strict=True)))


def text_digest(content: Any) -> str:
    """Return the SHA-256 of plain values, independent of the order of keys; others count as their text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
