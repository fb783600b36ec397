"""Answers of an evaluation model for reconstructions: the share that it takes for the person they are meant to show.

    python -m benchmarks.evaluation_model outputs/audit/plg/reconstructions.safetensors --evaluation-model
    outputs/evaluation-model

The evaluation model is a classifier of another architecture, trained on the same private people, that no attack has
met. Printed next to it: reconstructions evaluated as *other* people (the chance level), and the target's own view.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calor_hf.auditing import load_reconstruction
from calor_hf.targets.hf_target import HFTarget


def interval(topk_correct: Tensor, labels: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, over people."""
    means = np.array([topk_correct[labels == label].double().mean() for label in labels.unique()])
    draws = means[np.random.default_rng(0).integers(0, len(means), (10_000, len(means)))].mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


@torch.no_grad()
def verdict(file: str, evaluation_model: HFTarget) -> dict[str, object]:
    """Top-1 and top-5 with interval, chance level, and what was spent."""
    found = load_reconstruction(file)
    images = found.images.float()
    logits = torch.cat([evaluation_model(batch) for batch in images.split(128)])
    topk_correct = logits.argmax(1) == found.labels
    identities = found.labels.unique()
    others = dict(zip(identities.tolist(), identities.roll(1).tolist(), strict=True))  # everybody is someone else
    wrong = torch.tensor([others[label] for label in found.labels.tolist()])
    return {
        "images": len(topk_correct),
        "identities": len(identities),
        "top1": float(topk_correct.double().mean()),
        "top1_interval": interval(topk_correct, found.labels),
        "top5": float((logits.topk(5, dim=1).indices == found.labels[:, None]).any(1).double().mean()),
        "floor": float((logits.argmax(1) == wrong).double().mean()),
        "target_confidence": float(found.scores.mean()),
        "seconds": round(found.cost.seconds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluation model the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--evaluation-model", required=True)
    options = parser.parse_args(argv)
    evaluation_model = HFTarget.from_pretrained(options.evaluation_model)
    for file in options.files:
        print(file, json.dumps(verdict(file, evaluation_model)))


if __name__ == "__main__":
    main()
