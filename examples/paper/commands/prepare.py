"""``prepare``: the paper's image sets, as distributed, to folders that ``calor-hf`` reads."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.paper.prepare import SETS


def run(argv: Sequence[str]) -> int:
    """Prepare a set, and print the number of images."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.paper prepare",
        description="Crop and resize an image set of the paper, once. Nothing is downloaded, the source is only read,"
        " and the same command continues after an interruption.",
    )
    add = parser.add_argument
    add("name", choices=sorted(SETS), help="facescrub (actors/faces/NAME, actresses/faces/NAME), celeba"
        " (img_align_celeba, identity_CelebA.txt; the 1000 identities with most images), ffhq (thumbnails128x128 or"
        " images1024x1024), imagenette (train, val)")  # fmt: skip
    add("--source", required=True, help="folder with the set as it is distributed")
    add("--output-dir", required=True, help="new folder: it gets train and test, or for ffhq all images")
    add("--image-size", type=int, default=64, help="side in pixels; default: 64")
    options = parser.parse_args(argv)
    folder = Path(options.output_dir)
    done = SETS[options.name](Path(options.source), folder, options.image_size)
    print(f"{done.written} images written, {done.kept} were there, {done.unreadable} unreadable: {folder}")
    if done.others:
        others = ", ".join(f"{count} {reason}" for reason, count in done.others.items())
        print(f"other files of the source, not in the set: {others}")
    return 0
