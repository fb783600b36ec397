"""`calor-hf export`: a model as one ONNX or torch.export file, checked against the model."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

from calor_hf.core.files import reading
from calor_hf.core.saved_config import check_config
from calor_hf.data.pixel_input import processor_of
from calor_hf.modeling.export import FORMATS, export_model
from calor_hf.recipes.common import log_to_terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 when the file gives other scores than the model; 2 for options or models that are refused.
    """
    options = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        _run(options)
    except RuntimeError as error:
        print(f"calor-hf export: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"calor-hf export: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf export", description="Write a model as one file that runs without transformers, and check it."
    )
    add = parser.add_argument
    add("model", help="folder or Hub id of an image classification model, defended or not")
    add(
        "--format",
        default="onnx",
        choices=FORMATS,
        help="onnx, or torch (torch.export); default: onnx",
    )
    add("--output", required=True, metavar="FILE", help="file to write")
    add("--images", action="store_true",
        help="the file reads images in [0, 1] of the model's size and normalizes them itself; default: it reads what"
        " the image processor gives")  # fmt: skip
    add("--image-size", type=int, help="side in pixels, where the model does not say it")
    add("--revision", help="branch, tag or commit on the Hub; default: the newest")
    add("--overwrite", action="store_true", help="replace the file")
    return parser


def _run(options: argparse.Namespace) -> None:
    path = Path(options.output)
    if path.exists() and not options.overwrite:
        raise FileExistsError(f"{path} is there already; choose another --output, or pass --overwrite")
    log_to_terminal()
    hub = {"revision": options.revision} if options.revision else {}
    check_config(options.model, **hub)
    with reading(f"the model in {options.model}"):
        model = AutoModelForImageClassification.from_pretrained(options.model, dtype=torch.float32, **hub)
    difference = export_model(
        model,
        path,
        options.format,
        processor_of(options.model, **hub),
        images=options.images,
        image_size=options.image_size,
        overwrite=options.overwrite,
    )
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB); largest difference of a logit: {difference:.2g}")


if __name__ == "__main__":
    sys.exit(main())
