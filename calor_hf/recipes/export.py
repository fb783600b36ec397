"""A model as one ONNX or torch.export file, checked against the model."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

from calor_hf.core.config import setting
from calor_hf.core.files import reading
from calor_hf.core.saved_config import check_config, processor_of
from calor_hf.modeling.export import FORMATS, export_model
from calor_hf.recipes.common import log_to_terminal


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of :func:`export`."""

    model: str = field(
        metadata={"positional": True, "help": "folder or Hub id of an image classification model, defended or not"}
    )
    output: Path = field(metadata={"metavar": "FILE", "help": "file to write"})
    format: str = setting("onnx", "onnx, or torch (torch.export)", choices=FORMATS)
    images: bool = setting(
        False, "the file takes images in [0, 1] and normalizes them; default: it takes the image processor's output"
    )
    image_size: int | None = setting(None, "side in pixels, if the model does not say it")
    revision: str | None = setting(None, "branch, tag or commit on the Hub; default: newest")
    overwrite: bool = setting(False, "replace the file")


def export(options: ExportOptions) -> float:
    """Write the file and compare its scores with the model's.

    Returns:
        Largest difference of a logit.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is off.
        RuntimeError: the file gives other scores than the model.
        ValueError: no model that can be exported.
    """
    path = options.output
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"{path} is there already; choose another --output, or pass --overwrite")
    log_to_terminal()
    hub = {"revision": options.revision} if options.revision else {}
    check_config(options.model, **hub)
    with reading(f"the model in {options.model}"):
        model = AutoModelForImageClassification.from_pretrained(options.model, dtype=torch.float32, **hub)
    difference = export_model(
        model, path, options.format, processor_of(options.model, **hub), images=options.images,
        image_size=options.image_size, overwrite=options.overwrite,
    )  # fmt: skip
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); largest difference of a logit: {difference:.2g}")
    return difference
