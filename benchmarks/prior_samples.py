"""Samples of priors against public images: Fréchet and kernel distance of features, and what training took.

    python -m benchmarks.prior_samples --priors outputs/drawn-prior outputs/drawn-flow --recognizer outputs/recognizer
    python -m benchmarks.prior_samples --priors outputs/prior outputs/flow --public outputs/public.parquet --data DATA

Features are those of the network of attributes (drawn faces, of other people than the priors') or of MobileFaceNet B.
The last row is a part of the public images against the others: what a perfect prior has.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.mobilefacenet import Embedding
from benchmarks.real_faces_audit import embed, load_images, samples_of
from calor_hf import load_generator
from calor_hf.auditing.attribute_network import attribute_network
from calor_hf.core.report_text import table
from calor_hf.core.seeding import named_rng
from calor_hf.data.public_images import labeled_pixels
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.metrics.fid import frechet_distance
from calor_hf.metrics.kid import kernel_distances
from calor_hf.priors.folder import RECORD


def distances(features: Tensor, real: Tensor) -> list[str]:
    """Fréchet distance, and mean kernel distance over subsets."""
    return [f"{frechet_distance(features, real):.3f}", f"{1000 * kernel_distances(features, real).mean():.1f}"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prior_samples", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--priors", nargs="+", type=Path, required=True, help="folders")
    parser.add_argument("--public", type=Path, help="public faces: parquet file; default: drawn faces")
    parser.add_argument("--data", type=Path, help="folder of the face sets, for real faces")
    parser.add_argument("--recognizer", type=Path, help="folder of the network of attributes, for drawn faces")
    parser.add_argument("--count", type=int, default=1000, help="samples")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    side = load_generator(str(options.priors[0])).image_size
    if options.public is None:
        network = attribute_network(options.recognizer / "recognizer.safetensors")
        pixels, _ = labeled_pixels(load_synthetic_faces(2 * options.count // 5, 5, side, 1, stream="public"), side)
        images = pixels.float() / 255

        def features(some: Tensor) -> Tensor:
            return network.outputs(some)[0]
    else:
        images, b = load_images(options.public, 2 * options.count)[0], Embedding(options.data, "B")
        images = torch.nn.functional.interpolate(images, (side, side), mode="area")

        def features(some: Tensor) -> Tensor:
            return embed(b, some)

    seen = features(images)
    real, others = seen[::2], seen[1::2]
    rows = []
    for folder in options.priors:
        prior, begin = load_generator(str(folder)), time.process_time()
        samples = samples_of(prior, options.count, named_rng(0, "benchmarks/prior_samples"))
        seconds = (time.process_time() - begin) / options.count
        record = json.loads((folder / RECORD).read_text())
        rows.append([
            folder.name, f"{record['steps_done']:,}", f"{sum(one.numel() for one in prior.parameters()) / 1e6:.2f}",
            f"{record['seconds'] / 60:.0f}", *distances(features(samples), real), f"{1000 * seconds:.1f}",
        ])  # fmt: skip
        print(rows[-1], flush=True)
    rows.append(["public images", "–", "–", "–", *distances(others, real), "–"])
    head = [
        "prior",
        "steps",
        "million weights",
        "minutes",
        "Fréchet distance",
        "kernel distance × 1000",
        "ms per sample",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
