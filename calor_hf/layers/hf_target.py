"""An image classifier of transformers, defended or not, as a target of attacks."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from calor_hf.core.files import reading
from calor_hf.core.target import Target
from calor_hf.layers.classifier_head import ClassifierHead, MeanOfHeads
from calor_hf.layers.features import scores_of
from calor_hf.layers.find_head import check_heads, find_heads, put_back_heads, take_out_heads
from calor_hf.layers.module_target import PixelInput
from calor_hf.layers.saved_config import check_config


class HFTarget(Target):
    """A classifier of transformers behind its image processor, whose steps are done on tensors, with gradients.

    Args:
        model: Image classification model, stock or of ``calor_hf``; put into evaluation mode.
        processor: Its image processor, for size, crop, scale and normalisation. None: images in [0, 1] as they are.
        image_size: Side of the images it reads, where neither processor nor configuration say it.
        head: Path of the classifier, where it cannot be found.

    Attributes:
        processor: As given.

    Raises:
        ValueError: the model reads no pixels, its image size is not known, or no classifier is found.
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

    @classmethod
    def from_pretrained(cls, source: str, **kwargs: Any) -> "HFTarget":
        """Target from a folder or a Hub id with a model and, if it has one, an image processor.

        Args:
            source: Folder or Hub id.
            kwargs: Handed to ``from_pretrained`` of the model.

        Raises:
            OSError: nothing is found there.
            ValueError: its files are damaged.
        """
        where = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs}
        check_config(source, **where)
        with reading(f"the model in {source}"):
            model = AutoModelForImageClassification.from_pretrained(source, **kwargs)
        revision = {"revision": kwargs["revision"]} if "revision" in kwargs else {}
        return cls(model, processor_of(source, **revision))

    def features(self, images: Tensor) -> Tensor:
        """(batch, features) entering the classifier; of several classifiers side by side."""
        pixels = self.pixel_input(images).to(self.dtype)
        heads = take_out_heads(self._body, self._paths)
        try:
            return scores_of(self._body(**{self._body.main_input_name: pixels}, return_dict=True))
        finally:
            put_back_heads(self._body, self._paths, heads)


def processor_of(source: str, **kwargs: Any) -> Any:
    """Image processor of a folder or Hub id, or None where there is none."""
    try:
        return AutoImageProcessor.from_pretrained(source, **kwargs)
    except (OSError, ValueError):
        return None


def pixel_input_of(model: PreTrainedModel, processor: Any = None, image_size: int | None = None) -> PixelInput:
    """What an image processor does to images in [0, 1], as one differentiable function.

    Args:
        model: The model; asked for its image size where there is no processor.
        processor: Image processor, or None.
        image_size: Side of the images, where there is no processor.

    Raises:
        ValueError: the model reads no pixels, or the size is not known.
    """
    name = type(model).__name__
    if model.main_input_name not in ("pixel_values", "inputs") or "Siglip2" in name:
        raise ValueError(
            f"{name} reads {model.main_input_name} that are no plain pixels (words or packed patches), so no gradient "
            "reaches an image; choose another architecture"
        )
    if processor is None:
        size = _size_of(image_size or _configured_size(model))
        if size is None:
            raise ValueError(f"the configuration of {name} does not say its image size; pass processor= or image_size=")
        return PixelInput(size, size)
    resize_to = _resize_goal(processor)
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    if crop is None and isinstance(resize_to, int):
        crop = processor.size["shortest_edge"]  # ConvNeXT and its kin cut what they resized too far
    size = _size_of(crop) or _size_of(resize_to) or _size_of(_configured_size(model))
    if size is None:
        raise ValueError(f"{type(processor).__name__} does not say the size of its images; pass one that does")
    normalize = bool(getattr(processor, "do_normalize", False))
    rescale = float(getattr(processor, "rescale_factor", 1 / 255)) if getattr(processor, "do_rescale", True) else 1.0
    return PixelInput(
        size=size,
        resize_to=resize_to if resize_to is not None else size,
        mean=tuple(processor.image_mean) if normalize else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalize else (1.0, 1.0, 1.0),
        scale=1.0 if abs(255 * rescale - 1) < 1e-6 else 255 * rescale,
        offset=-1.0 if getattr(processor, "rescale_offset", False) else 0.0,
        reverse_channels=bool(getattr(processor, "do_flip_channel_order", False)),
    )


def _configured_size(model: PreTrainedModel) -> Any:
    base = getattr(model.config, "base_config", None)  # of a defended model
    return getattr(model.config, "image_size", None) or getattr(base, "image_size", None)


def _resize_goal(processor: Any) -> int | tuple[int, int] | None:
    size = getattr(processor, "size", None)
    if not getattr(processor, "do_resize", False) or size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    short: int | None = size.get("shortest_edge")
    if short is None:
        return _size_of(size)
    share = getattr(processor, "crop_pct", None)  # ConvNeXT and its kin: below 384 pixels, resize more, then crop
    if share is None:
        return int(short)
    return int(short / share) if short < 384 else (int(short), int(short))


def _size_of(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, list | tuple):
        return (int(size[0]), int(size[-1]))
    if "height" in size and "width" in size:
        return (int(size["height"]), int(size["width"]))
    short = size.get("shortest_edge")
    return None if short is None else (int(short), int(short))


def target_of(source: "Target | PreTrainedModel | str", device: torch.device | str = "cpu") -> Target:
    """``source`` as a target on ``device``: a target as it is, a model of transformers, or where one is saved."""
    if isinstance(source, str):
        source = HFTarget.from_pretrained(source)
    target = source if isinstance(source, Target) else HFTarget(source)
    target.module.to(device)
    return target
