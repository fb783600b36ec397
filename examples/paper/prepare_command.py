"""`calor-hf prepare`: the paper's image sets, as distributed, to folders that the other commands read."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from calor_hf.recipes.common import log_to_terminal
from examples.paper.prepare import SETS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 for a source or an output folder that is refused, or a full disk; 130 after Ctrl-C.
    """
    options = _parser().parse_args(list(sys.argv[1:] if argv is None else argv))
    log_to_terminal()
    folder = Path(options.output_dir)
    try:
        done = SETS[options.name](Path(options.source), folder, options.image_size)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on with what is missing", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"calor-hf prepare: {error}", file=sys.stderr)
        return 2
    print(f"{done.written} images written, {done.kept} were there, {done.unreadable} unreadable: {folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="calor-hf prepare",
        description="Crop and resize an image set of the paper, once. Nothing is downloaded, the source is only read,"
        " and the same command goes on where it was stopped.",
    )
    add = parser.add_argument
    add("name", choices=sorted(SETS), help="facescrub (actors/faces/NAME, actresses/faces/NAME), celeba"
        " (img_align_celeba, identity_CelebA.txt; the 1000 people with most images), ffhq (thumbnails128x128 or"
        " images1024x1024), imagenette (train, val)")  # fmt: skip
    add("--source", required=True, help="folder with the set as it is distributed")
    add("--output-dir", required=True, help="new folder for the result: train and test, or for ffhq all in one")
    add("--image-size", type=int, default=64, help="side in pixels; default: 64")
    return parser


if __name__ == "__main__":
    sys.exit(main())
