"""``import-backbone``: a face.evoLVe backbone, or random weights, as a base model."""

import argparse
from collections.abc import Sequence

from examples.paper.convert_ir import convert_ir


def run(argv: Sequence[str]) -> int:
    """Convert, and print where the model is."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper import-backbone",
        description="Convert a face.evoLVe backbone (IR-50, IR-100, IR-152) to a base model for"
        " python -m examples.paper calor-hf train --model.",
    )
    parser.add_argument("--weights", help="its state dict, .pth or .safetensors; default: random weights")
    parser.add_argument("--depth", type=int, required=True, help="50, 100 or 152")
    parser.add_argument("--image-size", type=int, required=True, help="side of the model's images, in pixels")
    parser.add_argument("--output-dir", required=True, help="new folder")
    options = parser.parse_args(argv)
    convert_ir(options.weights, options.output_dir, options.depth, options.image_size)
    print(f"saved IR-{options.depth} in {options.output_dir}")
    return 0
