"""Private images that an audit compares reconstructions with; no attack sees them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from calor_hf.core.digests import images_digest
from calor_hf.core.label_names import class_order
from calor_hf.data.decoys import IDENTITIES, Assignment
from calor_hf.data.face_renderer import IDENTITY_NAMES
from calor_hf.data.labels import with_labels
from calor_hf.data.loading import Splits
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import dealt_identities, drawn_identities
from calor_hf.generators import RENDERER, Generator

PRIOR_COMMAND = "calor-hf prior --dataset PUBLIC_IMAGES --image-size 32 --minutes 20"
"""Training of a prior at the size of this machine, for messages."""


@dataclass(frozen=True)
class Decoys:
    """The decoys of dealt data, which the target was trained on as on the private identities.

    An audit numbers identities anew: the private one of class c is c, and the decoys follow, class by class.

    Attributes:
        images: (d, 3, height, width) uint8, training images of decoys.
        labels: (d,) int64, their identities, in [classes, k·classes).
        held_images: (h, 3, height, width) uint8, images of decoys that the target was not trained on.
        held_labels: (h,) int64.
        numbers: (k·classes,) int64, number of each identity in the dealt data.
        class_of: (k·classes,) int64, its class.
        exchangeability: Statement of ``decoys check`` about these data; empty without it.
        strata: Column with the same value for all identities of a class; empty without it.
        base_rate: Share of the classes that have its most frequent value.
    """

    images: Tensor
    labels: Tensor
    held_images: Tensor
    held_labels: Tensor
    numbers: Tensor
    class_of: Tensor
    exchangeability: str = ""
    strata: str = ""
    base_rate: float = math.nan

    @property
    def k(self) -> int:
        """Identities per class."""
        return int((self.class_of == 0).sum())

    @property
    def places(self) -> Tensor:
        """(classes,) place of the private identity among the k of its class."""
        return self.numbers[: len(self.numbers) // self.k] % self.k

    def renumbered(self, order: Tensor) -> tuple["Decoys", Tensor]:
        """Return the decoys for classes in another ``order``, (classes,) old numbers; and that of all identities."""
        followers = torch.arange(len(order), len(self.numbers)).reshape(len(order), -1)
        every = torch.cat([order, followers[order].flatten()])
        new = every.argsort()
        labels, held = new[self.labels], new[self.held_labels]
        return replace(self, labels=labels, held_labels=held, numbers=self.numbers[every]), every

    def of_classes(self, wanted: Tensor) -> "Decoys":
        """Keep the training images of the decoys of some classes, and all held-out images."""
        rows = torch.isin(self.class_of[self.labels], wanted)
        return replace(self, images=self.images[rows], labels=self.labels[rows])


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
        true_identity: (classes, p) parameters of each identity, known for drawn faces only; those of decoys follow.
        identity_names: p names of these parameters.
        files: Digests of the files of all training images, to tell whether a network was trained on them.
        held_files: Digests of the files of the held-out images.
        decoys: The decoys, if the data were dealt; ``images`` and ``held_images`` show private identities alone.
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
    decoys: Decoys | None = None

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
        name: str = "private images", assignment: Assignment | None = None, exchangeability: str = "",
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
            assignment: Which identities are private, for data that ``calor-hf decoys deal`` wrote.
            exchangeability: Statement of ``decoys check`` about them.

        Raises:
            ValueError: a column is missing, or the data hold decoys and there is no assignment.
        """
        if isinstance(train, Splits):
            train, test = train.train, train.test
        elif isinstance(train, Mapping):
            train, test = train["train"], train.get("test", test)
        for split in (train, test):
            if split is not None and not {"image", "label"} <= set(split.column_names):
                raise ValueError(f"expected columns image and label, got {', '.join(split.column_names)}; rename them")
        label_names = tuple(getattr(train.features["label"], "names", ()))
        if IDENTITIES in train.column_names:
            if assignment is None or test is None:
                raise ValueError(
                    f"'{name}' holds decoys, so the private images are known by the assignment alone; pass all splits, "
                    "and assignment=calor_hf.data.decoys.read_assignment(FOLDER) of the folder that calor-hf decoys "
                    "deal wrote"
                )
            return cls._from_dealt(train, test, image_size, classes, name, label_names, assignment, exchangeability)
        images, labels = labeled_pixels(train, image_size, classes)
        held_images, held_labels = (None, None) if test is None else labeled_pixels(test, image_size)
        truth = drawn_identities(train, classes)
        known = () if truth is None else tuple(IDENTITY_NAMES)
        return cls(name, images, labels, held_images, held_labels, label_names, truth, known)

    @classmethod
    def _from_dealt(
        cls, train: Any, test: Any, image_size: int, classes: Sequence[int] | None, name: str,
        label_names: tuple[str, ...], assignment: Assignment, exchangeability: str,
    ) -> "PrivateImages":  # fmt: skip
        private, class_of = torch.tensor(assignment.private), torch.empty(assignment.k * len(assignment.private)).long()
        class_of[torch.tensor(train[IDENTITIES])] = torch.tensor(train["label"])
        # Private identities first, then decoys, each by class.
        numbers = (class_of + len(private) * ~torch.isin(torch.arange(len(class_of)), private)).argsort(stable=True)
        class_of, new = class_of[numbers], numbers.argsort()
        every = torch.arange(len(numbers))
        wanted = every if classes is None else every[torch.isin(class_of, torch.tensor(list(classes)))]

        def read(split: Any, people: Tensor) -> tuple[Tensor, ...]:
            identities = new[torch.tensor(split[IDENTITIES])].tolist()
            renamed = with_labels(split, identities, [str(number) for number in every.tolist()])
            images, labels = labeled_pixels(renamed, image_size, people.tolist())
            mine = labels < len(private)
            return images[mine], labels[mine], images[~mine], labels[~mine]

        images, labels, decoys, decoy_labels = read(train, wanted)
        held_images, held_labels, held_decoys, held_decoy_labels = read(test, every)
        names = [name for members in assignment.names for name in members]
        truth = dealt_identities(train, names, numbers[wanted].tolist())
        return cls(
            name, images, labels, held_images, held_labels, label_names,
            true_identity=None if truth is None else truth[numbers],
            identity_names=() if truth is None else tuple(IDENTITY_NAMES),
            decoys=Decoys(decoys, decoy_labels, held_decoys, held_decoy_labels, numbers, class_of, exchangeability),
        )  # fmt: skip

    def for_classes(self, class_names: Sequence[str]) -> "PrivateImages":
        """Return the same images, with the labels of a target whose classes have these names.

        Raises:
            ValueError: other classes than the target's.
        """
        order = class_order(self.label_names, class_names, f"'{self.name}'") if self.label_names else None
        if order is None:
            return self
        number, everyone = torch.tensor(order).argsort(), torch.tensor(order)
        decoys = self.decoys
        if decoys is not None:
            decoys, everyone = decoys.renumbered(everyone)
        return replace(
            self,
            labels=number[self.labels],
            held_labels=None if self.held_labels is None else number[self.held_labels],
            label_names=tuple(class_names),
            true_identity=None if self.true_identity is None else self.true_identity[everyone],
            decoys=decoys,
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
        decoys = None if self.decoys is None else self.decoys.of_classes(wanted)
        return replace(self, images=self.images[rows], labels=self.labels[rows], decoys=decoys)
