"""Options that say which images a model is trained on, for every command that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calor_hf.auditing import PrivateImages
from calor_hf.core.config import setting
from calor_hf.core.files import read_json
from calor_hf.core.report import SYNTHETIC
from calor_hf.data.bad_images import ON_BAD_IMAGE, content_digests
from calor_hf.data.decoys import ABOUT, VERDICT, is_dealt, read_assignment, secret_folder
from calor_hf.data.loading import Splits, load_splits
from calor_hf.targets.hf_target import HFTarget


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the images are, and how they are read; a model is evaluated with the options it was trained with.

    Raises:
        ValueError: a value is refused.
    """

    dataset: str | None = setting(
        None, "Image folder, table (parquet, Arrow, CSV, JSON, webdataset) or Hub id; default: synthetic faces."
    )
    dataset_revision: str | None = setting(None, "Revision of a data set on the Hub.")
    image_column: str | None = setting(None, "Column with the images; default: image, or the only one with images.")
    label_column: str | None = setting(None, "Column with the labels; default: label, or the only one with classes.")
    splits: list[str] = setting(
        [], "Splits to use, such as train=train_clean test=dev; default: all, by their names.", metavar="SPLIT=NAME"
    )
    on_bad_image: str = setting(
        "raise", "Images that cannot be read: raise (list them and stop), or skip them.", known=ON_BAD_IMAGE
    )
    allow_duplicates_across_splits: bool = setting(
        False, "Accept identical images in two splits, which make results look better than they are."
    )
    held_out: float = setting(0.1, "Share of training images used as a missing validation or test split.")

    def __post_init__(self) -> None:
        """Refuse values before any work."""
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"--on-bad-image must be {' or '.join(ON_BAD_IMAGE)}, got {self.on_bad_image}")
        if bad := [word for word in self.splits if not all(word.partition("="))]:
            raise ValueError(f"--splits: expected SPLIT=NAME, such as train=train_clean, got {bad[0]!r}")

    def load(
        self,
        num_identities: int,
        image_size: int = 64,
        stream: str = "private",
        keep: Sequence[str] = (),
        min_images: int = 0,
    ) -> Splits:
        """Load the images; the arguments are those of :func:`~calor_hf.data.loading.load_splits`."""
        splits = load_splits(
            self.dataset,
            image_column=self.image_column,
            label_column=self.label_column,
            splits=dict(word.split("=", 1) for word in self.splits),
            revision=self.dataset_revision,
            held_out=self.held_out,
            on_bad_image=self.on_bad_image,
            num_identities=num_identities,
            image_size=image_size,
            stream=stream,
            keep=keep,
            min_images=min_images,
        )
        if not self.allow_duplicates_across_splits:
            splits.check_duplicates()
        return splits

    def load_for(self, target: HFTarget) -> Splits:
        """Load the images that a target was trained on, with its labels.

        Raises:
            ValueError: other classes than the target's.
        """
        return self.load(target.num_classes, target.image_size[0]).for_classes(target.class_names)

    def private_images(self, target: HFTarget, classes: Sequence[int]) -> PrivateImages:
        """Read training images of some classes of a target, and test images of all.

        Raises:
            FileNotFoundError: the data hold decoys, and their assignment is missing.
            ValueError: other classes than the target's, or an assignment of other data.
        """
        name, side, secret = self.dataset or SYNTHETIC, target.image_size[0], dict[str, Any]()
        shared: dict[str, Any] = {}
        if self.dataset is not None and is_dealt(self.dataset):
            folder = Path(self.dataset).expanduser()
            verdict = secret_folder(folder) / VERDICT
            shared = read_json(folder / ABOUT, {"strata?": str, "base_rate?": float})
            found = read_json(verdict, {"statement": str})["statement"] if verdict.is_file() else ""
            secret = {"assignment": read_assignment(self.dataset), "exchangeability": found}
        splits = self.load_for(target)
        private = PrivateImages.from_dataset(splits, image_size=side, classes=classes, name=name, **secret)
        if private.decoys is not None:
            shared = {name: shared[name] for name in ("strata", "base_rate") if shared.get(name) is not None}
            private = replace(private, decoys=replace(private.decoys, **shared))
        files, held_files = (tuple(content_digests(split)) for split in (splits.train, splits.test))
        return replace(private, files=files, held_files=held_files)
