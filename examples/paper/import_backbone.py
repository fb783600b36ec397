"""A face.evoLVe backbone, or random weights, as a base model for ``calor-hf train --model``.

The paper's target and evaluation model at low resolution::

    python examples/paper/import_backbone.py --weights backbone_ir152.pth --depth 152 --image-size 64 \
        --output-dir models/ir152-ms1m-64
    python examples/paper/import_backbone.py --weights backbone_ir50.pth --depth 50 --image-size 112 \
        --output-dir models/ir50-ms1m-112
"""

import argparse
import sys
from collections.abc import Sequence

from examples.paper.convert_ir import convert_ir


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and say where the model is; 2 for a file or folder that is refused."""
    parser = argparse.ArgumentParser(description="Take over a face.evoLVe backbone (IR-50, IR-100, IR-152).")
    parser.add_argument("--weights", help="its state dict, .pth or .safetensors; default: random weights")
    parser.add_argument("--depth", type=int, required=True, help="50, 100 or 152")
    parser.add_argument("--image-size", type=int, required=True, help="side of the images it will read, in pixels")
    parser.add_argument("--output-dir", required=True, help="new folder")
    options = parser.parse_args(argv)
    try:
        convert_ir(options.weights, options.output_dir, options.depth, options.image_size)
    except (ValueError, OSError) as error:
        print(f"import_backbone.py: {error}", file=sys.stderr)
        return 2
    print(f"saved IR-{options.depth} in {options.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
