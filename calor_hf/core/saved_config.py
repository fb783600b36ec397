"""Configuration of a saved model, checked before anything is built from it, and its image processor."""

import math
from typing import Any

import transformers
from PIL.Image import Resampling
from transformers import AutoImageProcessor, PretrainedConfig
from transformers.utils import cached_file

from calor_hf.core.files import reading
from calor_hf.core.validation import content_error, size_error


def check_config(source: Any, **kwargs: Any) -> None:
    """Refuse a ``config.json`` that is damaged, or describes a network that no machine can hold.

    ``kwargs`` are ``revision``, ``token``, ``cache_dir`` and other arguments that find the folder or Hub id ``source``.

    Raises:
        OSError: no configuration is found.
        ValueError: it is refused; the message says why.
    """
    with reading(f"the configuration of {source}"):
        values, _ = PretrainedConfig.get_config_dict(source, **kwargs)
    if problem := content_error(values) or size_error(values):
        raise ValueError(f"config.json of {source} is damaged: {problem}")


def processor_of(source: str, **kwargs: Any) -> Any:
    """Image processor of a folder or Hub id, as :func:`plain_processor` gives it; None if it has none.

    Raises:
        ValueError: it has one that cannot be loaded here.
    """
    try:
        with reading(f"the image processor of {source}"):
            return plain_processor(AutoImageProcessor.from_pretrained(source, trust_remote_code=False, **kwargs))
    except (OSError, ValueError, ImportError) as error:
        quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        files = ("preprocessor_config.json", "processor_config.json")
        if not any(cached_file(source, name, **quiet, **kwargs) for name in files):
            return None
        raise ValueError(
            f"the image processor of {source} cannot be loaded ({' '.join(str(error).split())[:500]}); install the "
            "version of transformers or torchvision that it was made for, or save one of this version in the folder, "
            "with the same size and normalization: ViTImageProcessor(size=..., image_mean=..., image_std=...)"
        ) from error


def plain_processor(processor: Any) -> Any:
    """Image processor without timm: the evaluation transform of timm as one that states its steps and can be saved.

    Others are returned as they are. The wrapper of timm gives torch tensors only, has no ``size``, and saves nothing.
    """
    if type(processor).__name__ != "TimmWrapperImageProcessor":
        return processor
    data = processor.data_config
    _, height, width = data["input_size"]
    large = {name: math.floor(side / data["crop_pct"]) for name, side in (("height", height), ("width", width))}
    squeezed = data["crop_mode"] != "center" or height != width
    # PIL, with or without torchvision: the same images on every machine.
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return kind(
        size=large if squeezed else {"shortest_edge": large["height"]},
        crop_size={"height": height, "width": width},
        resample=Resampling[data["interpolation"].upper()],
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
    )
