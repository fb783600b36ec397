"""Images for the report page: reconstructions, and private images only on request."""

import base64
import io
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from calor_hf.core.reconstruction import Reconstruction

SIDE = 96


@dataclass(frozen=True)
class Gallery:
    """Images by attack and class, as ``data:`` URIs.

    Attributes:
        rebuilt: Attack → class → reconstructions.
        nearest: The same shape: the nearest private image of each; empty without private images.
        private: Class → a private image; empty without private images.
    """

    rebuilt: dict[str, dict[int, list[str]]]
    nearest: dict[str, dict[int, list[str]]]
    private: dict[int, str]


def gallery_of(
    found: dict[str, Reconstruction],
    private_images: Tensor | None = None,
    private_labels: Tensor | None = None,
    nearest: dict[str, Tensor] | None = None,
) -> Gallery:
    """Build the gallery of a report.

    Args:
        found: Reconstructions by attack.
        private_images: (m, 3, height, width) bytes; None leaves private images out.
        private_labels: (m,) int64.
        nearest: Attack → (n,) index of the private image nearest to each reconstruction.
    """

    def by_class(images: Tensor, labels: Tensor) -> dict[int, list[str]]:
        return {int(label): [data_uri(image) for image in images[labels == label]] for label in labels.unique()}

    rebuilt = {name: by_class(one.images, one.labels) for name, one in found.items()}
    if private_images is None or private_labels is None:
        return Gallery(rebuilt, {}, {})
    rows = {name: rows for name, rows in (nearest or {}).items() if name in found}
    near = {name: by_class(private_images[index], found[name].labels) for name, index in rows.items()}
    first = {int(label): data_uri(private_images[private_labels == label][0]) for label in private_labels.unique()}
    return Gallery(rebuilt, near, first)


def data_uri(image: Tensor) -> str:
    """Return a (3, height, width) image, bytes or in [0, 1], as a PNG in a ``data:`` URI, at most :data:`SIDE` wide."""
    pixels = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
