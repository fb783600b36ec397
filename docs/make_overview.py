"""Draw docs/overview.png from two finished runs of the embedded default.

python examples/train_calor.py --output-dir outputs/calor
python examples/train_calor.py --output-dir outputs/none --defense none
python docs/make_overview.py outputs/calor outputs/none
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from transformers import AutoModelForImageClassification

import calor_hf  # noqa: F401  (registers the Auto classes)
from calor_hf.data.face_renderer import render_faces
from calor_hf.data.synthetic_faces import sample_identities, sample_nuisances

IDENTITIES, IMAGES = 64, 20


def confidences(folder: str) -> NDArray[np.float32]:
    """Score of the true class for every training image."""
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    identities = sample_identities(IDENTITIES)
    found = []
    with torch.no_grad():
        for person in range(IDENTITIES):
            images = render_faces(identities[person].expand(IMAGES, -1), sample_nuisances(person, IMAGES))
            found.append(model(pixel_values=2 * images - 1).logits.softmax(dim=1)[:, person])
    return torch.cat(found).numpy()


def main(calor: str, undefended: str) -> None:
    """Three panels: the people, the stages, the confidence."""
    figure = Figure(figsize=(11, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])

    rows, columns = 4, 5
    images = render_faces(sample_identities(rows * columns), sample_nuisances(0, rows * columns, split="test"))
    grid = images.view(rows, columns, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(rows * 64, columns * 64, 3)
    left.imshow(grid.numpy())
    left.set_axis_off()
    left.set_title("drawn people: no one's face", fontsize=10)

    history = json.loads((Path(calor) / "trainer_state.json").read_text())["log_history"]
    numbers = json.loads((Path(calor) / "metrics.json").read_text())
    for name, label in (("eval_accuracy", "validation accuracy"), ("confidence", "training confidence")):
        points = [(entry["epoch"], entry[name]) for entry in history if name in entry]
        middle.plot(*zip(*points, strict=True), label=label)
    first_adapted = min(entry["epoch"] for entry in history if entry.get("stage") == 2)
    middle.axvspan(first_adapted - 1, max(entry["epoch"] for entry in history), alpha=0.12, color="k", lw=0)
    middle.axhline(numbers["target_confidence"], color="k", ls=":", lw=1)
    middle.set_title("cross-entropy, then confidence adaptation (gray)", fontsize=10)
    middle.set_xlabel("epoch")
    middle.legend(fontsize=8, loc="lower right")

    bins = np.linspace(0, 1, 51).tolist()
    for folder, label in ((undefended, "undefended"), (calor, f"CALoR, rank {numbers['rank']}")):
        right.hist(confidences(folder), bins=bins, alpha=0.6, label=label)
    right.axvline(numbers["target_confidence"], color="k", ls=":", lw=1)
    right.set_title("confidence of training images", fontsize=10)
    right.set_xlabel("score of the true class")
    right.set_yscale("log")
    right.legend(fontsize=8, loc="upper left")
    figure.savefig(Path(__file__).parent / "overview.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:3])
