"""Image classifiers of transformers as targets."""

import logging
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from calor_hf.core.files import processor_digest, reading, weights_digest
from calor_hf.core.saved_config import check_config, processor_of
from calor_hf.data.pixel_input import pixel_input_of
from calor_hf.heads.classifier_head import ClassifierHead, MeanOfHeads
from calor_hf.heads.features import scores_of
from calor_hf.heads.find_head import check_heads, find_heads, put_back_heads, take_out_heads
from calor_hf.targets.base import Target

logger = logging.getLogger(__name__)


class HFTarget(Target):
    """Classifier of transformers behind its image processor, whose steps are differentiable.

    Args:
        model: Image classification model, stock or of ``calor_hf``; put into evaluation mode.
        processor: Its image processor, for size, crop, scale and normalization. None means unchanged images in [0, 1].
        image_size: Side of its input images, if neither processor nor configuration states it.
        head: Path of the classifier, if it cannot be found.

    Raises:
        ValueError: the model does not read RGB pixels, its image size is unknown, or no classifier is found.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any = None, image_size: int | None = None, head: str | None = None
    ) -> None:
        self.module = model.eval()
        self.processor = processor
        self.num_classes = int(model.config.num_labels)
        self.pixel_input = pixel_input_of(model, processor, image_size)
        self.image_size = self.pixel_input.size
        self.stochastic = bool(getattr(getattr(model, "defense", None), "stochastic", False))
        if hasattr(model, "classification_head"):  # one of ours: its body has no classifier
            self._body, self._paths = model.backbone, []
            self.head = model.classification_head
        else:
            self._body = model
            self._paths = [head] if head is not None else find_heads(type(model), model.config)
            widths = check_heads(model, self._paths)
            heads = [ClassifierHead(cast(Any, model.get_submodule(path))) for path in self._paths]
            self.head = MeanOfHeads(heads, widths) if len(heads) > 1 else heads[0]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the model's configuration."""
        names = cast(PreTrainedModel, self.module).config.id2label
        return [str(names[index]) for index in range(self.num_classes)]

    @classmethod
    def from_pretrained(cls, source: str, **kwargs: Any) -> "HFTarget":
        """Load a model and its image processor, if any, from a folder or Hub id, as the model's ``from_pretrained``.

        Raises:
            OSError: nothing is found.
            ValueError: files are damaged.
        """
        where = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
        check_config(source, **where)
        with reading(f"the model in {source}"):
            model = AutoModelForImageClassification.from_pretrained(source, **kwargs)
        processor = processor_of(source, **where)
        if processor is None:
            logger.warning("%s has no image processor: it gets the images as they are, in [0, 1]", source)
        target, folder = cls(model, processor), Path(source)
        if folder.is_dir():
            target.files = {"weights": weights_digest(folder), "processor": processor_digest(folder)}
        return target

    def features(self, images: Tensor) -> Tensor:
        """(batch, features) entering the classifier; concatenated for several classifiers."""
        pixels = self.pixel_input(images).to(self.dtype)
        heads = take_out_heads(self._body, self._paths)
        try:
            return scores_of(self._body(**{self._body.main_input_name: pixels}, return_dict=True))
        finally:
            put_back_heads(self._body, self._paths, heads)


def target_of(source: "Target | PreTrainedModel | str", device: torch.device | str = "cpu") -> Target:
    """Return ``source`` (a target, a model of transformers, or its folder or Hub id) as a target on ``device``."""
    if isinstance(source, str):
        source = HFTarget.from_pretrained(source)
    target = source if isinstance(source, Target) else HFTarget(source)
    target.module.to(device)
    return target
