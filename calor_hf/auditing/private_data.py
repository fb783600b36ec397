"""Private images that an audit compares reconstructions with; no attack sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from calor_hf.core.digests import images_digest
from calor_hf.core.label_names import class_order
from calor_hf.data.face_renderer import IDENTITY_NAMES
from calor_hf.data.loading import Splits
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import drawn_identities
from calor_hf.generators import RENDERER, Generator

PRIOR_COMMAND = "calor-hf prior --dataset PUBLIC_IMAGES --image-size 32 --minutes 20"
"""Training of a prior at the size of this machine, for messages."""


@dataclass(frozen=True)
class PrivateImages:
    """Images of the identities that the target was trained on.

    Attributes:
        name: Name of the data set.
        images: (m, 3, height, width) uint8, the training images of the target.
        labels: (m,) int64.
        held_images: (h, 3, height, width) uint8, images of the same identities that the target was not trained on, or
            None.
        held_labels: (h,) int64.
        label_names: Name of each class.
        true_identity: (classes, k) parameters of each identity, known for drawn faces only.
        identity_names: k names of these parameters.
        files: Digests of the files of all training images, to tell whether a network was trained on them.
        held_files: Digests of the files of the held-out images.
    """

    name: str
    images: Tensor
    labels: Tensor
    held_images: Tensor | None = None
    held_labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    true_identity: Tensor | None = None
    identity_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    held_files: tuple[str, ...] = ()

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

    @classmethod
    def from_dataset(
        cls, train: Any, test: Any = None, *, image_size: int, classes: Sequence[int] | None = None,
        name: str = "private images",
    ) -> "PrivateImages":  # fmt: skip
        """Read the images of a ``datasets.Dataset``, or of several splits of one.

        Args:
            train: Training images of the target, with columns ``image`` and ``label``; or a mapping such as a
                ``DatasetDict`` with a split ``train`` and perhaps ``test``; or ``Splits``.
            test: Images that the target was not trained on, or None.
            image_size: Side in pixels that the images are resized to.
            classes: Classes whose training images are read; None means all.
            name: Name of the data set. It has no say in whether the images are drawn faces: these are drawn again
                and compared.

        Raises:
            ValueError: a column is missing.
        """
        if isinstance(train, Splits):
            train, test = train.train, train.test
        elif isinstance(train, Mapping):
            train, test = train["train"], train.get("test", test)
        for split in (train, test):
            if split is not None and not {"image", "label"} <= set(split.column_names):
                raise ValueError(f"expected columns image and label, got {', '.join(split.column_names)}; rename them")
        images, labels = labeled_pixels(train, image_size, classes)
        held_images, held_labels = (None, None) if test is None else labeled_pixels(test, image_size)
        label_names = tuple(getattr(train.features["label"], "names", ()))
        truth = drawn_identities(train, classes)
        known = () if truth is None else tuple(IDENTITY_NAMES)
        return cls(name, images, labels, held_images, held_labels, label_names, truth, known)

    def for_classes(self, class_names: Sequence[str]) -> "PrivateImages":
        """Return the same images, with the labels of a target whose classes have these names.

        Raises:
            ValueError: other classes than the target's.
        """
        order = class_order(self.label_names, class_names, f"'{self.name}'") if self.label_names else None
        if order is None:
            return self
        number = torch.tensor(order).argsort()
        return replace(
            self,
            labels=number[self.labels],
            held_labels=None if self.held_labels is None else number[self.held_labels],
            label_names=tuple(class_names),
            true_identity=None if self.true_identity is None else self.true_identity[order],
        )

    @property
    def drawn(self) -> bool:
        """Whether the identities were drawn by this library, so that no one is shown and the truth is known."""
        return self.true_identity is not None

    @property
    def digest(self) -> str:
        """SHA-256 of all images with their class names, whatever their order; not to be published."""
        parts = ((self.images, self.labels), (self.held_images, self.held_labels))
        pairs = [pair for images, labels in parts if images is not None and labels is not None
                 for pair in zip(images, labels.tolist(), strict=True)]  # fmt: skip
        names = [self.label_names[label] if self.label_names else str(label) for _, label in pairs]
        return images_digest((image for image, _ in pairs), names)

    def check_prior(self, prior: Generator[Any]) -> None:
        """Refuse the renderer for images that it did not draw.

        Raises:
            ValueError: the prior draws synthetic faces, and these images are others.
        """
        if prior.name == RENDERER and not self.drawn:
            raise ValueError(
                f"the prior 'renderer' draws synthetic faces, and '{self.name}' holds other images: this audit could "
                f"find nothing; train a prior on public images of the same kind ({PRIOR_COMMAND}) and pass that one"
            )

    def of_classes(self, classes: Sequence[int]) -> "PrivateImages":
        """Keep the training images of some classes, and all held-out images, which serve as impostors too.

        Raises:
            ValueError: a class without training images.
        """
        wanted = torch.tensor(list(classes))
        missing = sorted(set(wanted.tolist()) - set(self.labels.tolist()))
        if missing:
            raise ValueError(f"no private images of the classes {missing[:5]}; pass the data the target learned from")
        rows = torch.isin(self.labels, wanted)
        return replace(self, images=self.images[rows], labels=self.labels[rows])
