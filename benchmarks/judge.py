"""What a judge says of reconstructions: the share that it takes for the person they are meant to show.

    python -m benchmarks.judge outputs/audit/plg/reconstructions.safetensors --judge outputs/judge

The judge is a classifier of another architecture, trained on the same private people, that no attack has met. Printed
beside it: reconstructions judged as *other* people (the floor), and the target's own view.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calor_hf.auditing import load_reconstruction
from calor_hf.layers.hf_target import HFTarget


def interval(hits: Tensor, labels: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, over people."""
    means = np.array([hits[labels == label].double().mean() for label in labels.unique()])
    draws = means[np.random.default_rng(0).integers(0, len(means), (10_000, len(means)))].mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


@torch.no_grad()
def verdict(file: str, judge: HFTarget) -> dict[str, object]:
    """Top-1 and top-5 with interval, floor, and what was spent."""
    found = load_reconstruction(file)
    images = found.images.float()
    logits = torch.cat([judge(batch) for batch in images.split(128)])
    hits = logits.argmax(1) == found.labels
    people = found.labels.unique()
    others = dict(zip(people.tolist(), people.roll(1).tolist(), strict=True))  # everybody is somebody else
    wrong = torch.tensor([others[label] for label in found.labels.tolist()])
    return {
        "images": len(hits),
        "people": len(people),
        "top1": float(hits.double().mean()),
        "top1_interval": interval(hits, found.labels),
        "top5": float((logits.topk(5, dim=1).indices == found.labels[:, None]).any(1).double().mean()),
        "floor": float((logits.argmax(1) == wrong).double().mean()),
        "target_confidence": float(found.scores.mean()),
        "seconds": round(found.cost.seconds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Judge the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--judge", required=True)
    options = parser.parse_args(argv)
    judge = HFTarget.from_pretrained(options.judge)
    for file in options.files:
        print(file, json.dumps(verdict(file, judge)))


if __name__ == "__main__":
    main()
