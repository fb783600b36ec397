"""Files that run without transformers: ONNX for onnxruntime, and programs of ``torch.export``."""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calor_hf._version import __version__
from calor_hf.data.pixel_input import PixelInput, pixel_input_of
from calor_hf.heads.features import scores_of
from calor_hf.modeling.base_model import defense_of
from calor_hf.modeling.configuration_defended import DefendedConfig

FORMATS = ("onnx", "torch")
METADATA_FILE = "calor_hf.json"  # inside a torch.export archive
_BATCH = torch.export.Dim("batch", max=2**31)  # without an end, torch 2.7 finds that it may have none
_SINGLE_FILE = 1_900_000_000  # bytes; ONNX files end at 2 GiB, larger weights go into a file next to it


def export_model(
    model: PreTrainedModel,
    path: str | PathLike[str],
    format: str = "onnx",
    processor: Any = None,
    images: bool = False,
    image_size: int | None = None,
    overwrite: bool = False,
    tolerance: float = 1e-4,
) -> float:
    """Write ``model`` as one file, and compare its output with the model's.

    The file turns a batch of any size into ``logits`` (batch, classes). Its metadata describe the input, with the
    numbers of the image processor (ONNX: ``metadata_props``; torch: ``calor_hf.json`` in the archive). The names of the
    classes do not: they may be people's.

    Args:
        model: Image classification model, defended or not; put into evaluation mode.
        path: File to write; larger weights than 1.9 GB go into ``path`` + ``.data`` (ONNX).
        format: ``onnx``, or ``torch`` for ``torch.export``.
        processor: Image processor, for its numbers.
        images: The input is ``images`` in [0, 1] of the size that the model reads, normalized inside; else it is
            what the image processor gives.
        image_size: Side of the images, if neither processor nor configuration states it.
        overwrite: Replace an existing file.
        tolerance: Largest difference of a logit that is accepted.

    Returns:
        Largest difference of a logit, over two batches of other sizes than the one that was traced.

    Raises:
        FileExistsError: ``path`` exists.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime are missing.
        ValueError: a model or format that cannot be exported.
        RuntimeError: the file gives other scores than the model; it is not kept.
    """
    path = Path(path)
    _check(model, path, format, images, processor, overwrite)
    pixels = pixel_input_of(model, processor, image_size)
    scores = _Scores(model.eval(), pixels if images else None)
    name = "images" if images else model.main_input_name
    draw = torch.Generator().manual_seed(0)
    traced, *others = (torch.rand(count, 3, *pixels.size, generator=draw, dtype=model.dtype) for count in (2, 1, 3))
    metadata = _metadata(model, pixels, name, processor is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, torch.no_grad():
        part = Path(folder) / path.name
        run = (_write_onnx if format == "onnx" else _write_torch)(scores, traced, name, metadata, part)
        difference = max(_difference(run, scores, batch) for batch in others)
        if not difference <= tolerance:
            raise RuntimeError(
                f"the exported file gives other scores than the model: a logit differs by {difference:.2g}, allowed "
                f"are {tolerance:.2g}; nothing was written. Another version of torch or onnxscript may help"
            )
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the separate weights first
            file.replace(path.parent / file.name)
    return difference


def _check(model: PreTrainedModel, path: Path, format: str, images: bool, processor: Any, overwrite: bool) -> None:
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; pass one of {', '.join(FORMATS)}")
    if format == "torch" and path.suffix != ".pt2":
        raise ValueError(f"torch.export reads files that end in .pt2 alone, got {path.name}; name it {path.stem}.pt2")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; choose another file, or overwrite it (--overwrite)")
    if images and processor is None:
        raise ValueError("images in [0, 1] are normalized with the image processor's numbers; pass one (processor=)")
    if format == "torch":
        return
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f'ONNX needs {", ".join(missing)}: pip install "calor-hf[onnx]"')
    if model.dtype != torch.float32:
        raise ValueError(f"ONNX files are written in float32, the model is in {model.dtype}; load it in float32")
    if defense_of(model).stochastic:
        raise ValueError(
            "this model draws noise for every image, and onnxruntime draws other noise, so that its scores could not "
            "be checked; use format torch, or train mid with sample_at_eval=false"
        )


class _Scores(nn.Module):
    """Logits alone, from pixel values or from images in [0, 1]."""

    def __init__(self, model: PreTrainedModel, pixels: PixelInput | None) -> None:
        super().__init__()
        self.model = model
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pixels is None else self.pixels.normalize(x)
        return scores_of(self.model(**{self.model.main_input_name: x}, return_dict=True))


def _write_onnx(
    scores: _Scores, traced: Tensor, name: str, metadata: dict[str, str], path: Path
) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    # It would list operators of torchvision, which nothing here needs.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        program: Any = torch.onnx.export(
            scores, (traced,), dynamo=True, verbose=False, input_names=[name], output_names=["logits"],
            dynamic_shapes=({0: _BATCH},),
        )  # fmt: skip
    program.model.metadata_props.update(metadata)
    size = sum(weight.nbytes for weight in scores.parameters())
    program.save(str(path), external_data=size > _SINGLE_FILE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {name: x.numpy()})[0])


def _write_torch(
    scores: _Scores, traced: Tensor, _: str, metadata: dict[str, str], path: Path
) -> Callable[[Tensor], Tensor]:
    program = torch.export.export(scores, (traced,), dynamic_shapes=({0: _BATCH},))
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})
    return cast("Callable[[Tensor], Tensor]", torch.export.load(path).module())


def _difference(run: Callable[[Tensor], Tensor], scores: _Scores, batch: Tensor) -> float:
    outputs = []
    for each in (run, scores):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for a head that draws noise
            outputs.append(each(batch))
    return float((outputs[0] - outputs[1]).abs().max())


def _metadata(model: PreTrainedModel, pixels: PixelInput, name: str, with_processor: bool) -> dict[str, str]:
    config = model.config
    if name == "images":
        meaning = f"RGB images in [0, 1], (batch, 3, {pixels.size[0]}, {pixels.size[1]}); normalized inside"
    elif with_processor:
        meaning = "(images in [0, 1] * scale + offset - mean) / std, RGB, or BGR where reverse_channels says so"
    else:
        meaning = "what the model's image processor gives; it was not at hand, so its numbers are not here"
    about = {
        "input": f"{name}: {meaning}",
        "architecture": getattr(config, "base_class", None) or type(model).__name__,
        "defense": config.defense if isinstance(config, DefendedConfig) else "none",
        "num_labels": config.num_labels,
        "calor_hf_version": __version__,
    }
    numbers = asdict(pixels) if with_processor else {"size": pixels.size}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in {**about, **numbers}.items()}
