"""The private images that an audit holds reconstructions against; no attack sees them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PrivateImages:
    """Images of the people that the target was trained on.

    Attributes:
        name: Of the data set.
        images: (m, 3, height, width) bytes: those the target was trained on.
        labels: (m,) int64.
        held_images: (h, 3, height, width) bytes: others of the same people, of the test split; None: there are none.
        held_labels: (h,) int64.
        label_names: Name of each class.
        true_identity: (classes, k) numbers of the people, where they are known; drawn faces alone.
        identity_names: k names of these numbers.
    """

    name: str
    images: Tensor
    labels: Tensor
    held_images: Tensor | None = None
    held_labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    true_identity: Tensor | None = None
    identity_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for other shapes and types."""
        for images, labels in ((self.images, self.labels), (self.held_images, self.held_labels)):
            if images is None or labels is None:
                continue
            if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
                raise ValueError(
                    f"expected images (m, 3, height, width) as bytes and a label each, got {tuple(images.shape)} "
                    f"{images.dtype} and {len(labels)} labels"
                )

    def of(self, classes: Sequence[int]) -> "PrivateImages":
        """Training images of some classes; held-out ones of all, who serve as impostors.

        Raises:
            ValueError: a class without training images.
        """
        wanted = torch.tensor(list(classes))
        missing = sorted(set(wanted.tolist()) - set(self.labels.tolist()))
        if missing:
            raise ValueError(f"no private images of the classes {missing[:5]}; pass the data the target learned from")
        rows = torch.isin(self.labels, wanted)
        return PrivateImages(
            self.name,
            self.images[rows],
            self.labels[rows],
            self.held_images,
            self.held_labels,
            self.label_names,
            self.true_identity,
            self.identity_names,
        )
