"""Accuracy of ``head_init="svd"`` before any training, over the scale of Tanh: why ``STDS`` is what it is.

Writes docs/results/svd_start.md. Trains the undefended embedded default once, or takes a finished run's folder:
``SVD_BASE=outputs/none``.
"""

import os
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import ResNetForImageClassification

from calor_hf import CALoRForImageClassification
from calor_hf._version import __version__
from calor_hf.data.face_renderer import render_faces
from calor_hf.data.synthetic_faces import sample_identities, sample_nuisances
from calor_hf.heads import svd_init
from calor_hf.recipes.train import train
from calor_hf.recipes.train_arguments import parse

IDENTITIES = 64
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "svd_start.md"
SCALES = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)


def _images(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    identities = sample_identities(IDENTITIES).repeat_interleave(count, dim=0)
    nuisance = torch.cat([sample_nuisances(person, count, 0, split) for person in range(IDENTITIES)])
    return 2 * render_faces(identities, nuisance) - 1, torch.arange(IDENTITIES).repeat_interleave(count)


@torch.no_grad()
def _accuracy(model: torch.nn.Module, split: str, count: int) -> float:
    images, labels = _images(split, count)
    scores = torch.cat([model(pixel_values=part).logits for part in images.split(128)])
    return float((scores.argmax(dim=1) == labels).float().mean())


def main() -> None:
    """Print and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        base_folder = os.environ.get("SVD_BASE", folder)
        if base_folder == folder:
            train(*parse(["--output-dir", folder, "--overwrite", "--defense", "none", "--report-to", "none"]))
        warnings.simplefilter("ignore")  # full rank is meant here
        calibration = _images("train", 20)[0][::5]
        lines = [
            "# Starting the head from the trained classifier",
            "",
            f"`python -m benchmarks svd_start`, version {__version__}: test accuracy (640 images of 64 people) of "
            f'`head_init="svd"` before any training, by the scale of Tanh in standard deviations of a coordinate over '
            f"{len(calibration)} calibration images; undefended "
            f"{_accuracy(_load(base_folder), 'test', 10):.2%}, one seed. The library takes {svd_init.STDS:g}.",
            "",
            "| rank | " + " | ".join(f"{scale:g}" for scale in SCALES) + " | no calibration images |",
            "|---" * (len(SCALES) + 2) + "|",
        ]
        for rank in (IDENTITIES, 16):
            cells = []
            for scale in SCALES:
                svd_init.STDS = scale
                model = CALoRForImageClassification.from_base(
                    _load(base_folder), rank=rank, head_init="svd", calibration=calibration
                )
                cells.append(f"{_accuracy(model.eval(), 'test', 10):.2%}")
            model = CALoRForImageClassification.from_base(_load(base_folder), rank=rank, head_init="svd")
            cells.append(f"{_accuracy(model.eval(), 'test', 10):.2%}")
            lines.append(f"| {rank} | " + " | ".join(cells) + " |")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _load(folder: str) -> ResNetForImageClassification:
    return ResNetForImageClassification.from_pretrained(folder).eval()
