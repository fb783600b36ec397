"""The page for a laptop, line by line on real faces, which are not in this repository; only sizes are cut."""

import os
import shlex
from pathlib import Path

import pytest
from torch import nn

from benchmarks.mobilefacenet import Embedding
from calor_hf.cli.main import main as calor_hf
from calor_hf.core.report import LeakageReport
from calor_hf.data.loading import load_images, load_splits
from calor_hf.recipes.train_arguments import acting
from tests.docs.blocks import ROOT, blocks, split

PAGE = "docs/laptop.md"
FACES = Path(os.environ.get("CALOR_FACES", ROOT.parent / "shared" / "data"))
PEOPLE, PUBLIC = 6, 100
FACENET = "inception_resnet_vggface2"  # its library and weights are not installed here
AUDIT = ["--budget", "0.005", "--classes", "0-5", "--images-per-class", "1"]
LIMITS = {
    "train": ["--per-device-train-batch-size", "8", "--max-accuracy-drop", "100", "--adapt-epochs", "1", "--use-cpu"],
    "prior": ["--minutes", "0.05"],
    "audit": AUDIT,
    "plan prior": ["--minutes", "0.05"],
    "plan audit": AUDIT,
    "report": [],
}
"""Added to a command, by its beginning; if an option is given twice, the last value counts."""


def face_network() -> nn.Module:
    """Network that learned faces of other people."""
    return Embedding(FACES, "A")


def write_images(folder: Path) -> None:
    """Write a folder per person, and public images of other people, gray like these."""
    data = load_splits(str(FACES / "orl40_64_gray")).train
    for number, row in enumerate(data.filter(lambda row: row["label"] < PEOPLE)):
        home = folder / "path/to/folder" / f"person {row['label']}"
        home.mkdir(parents=True, exist_ok=True)
        row["image"].save(home / f"{number}.png")
    public = folder / "path/to/public"
    public.mkdir(parents=True)
    images, _ = load_images(str(FACES / "lfw_public_64" / "train.parquet"))
    for number, row in enumerate(images.select(range(PUBLIC))):
        row["image"].convert("L").save(public / f"{number}.png")


@pytest.mark.slow
@pytest.mark.skipif(
    not (FACES / "evaluators").is_dir(),
    reason="no real faces here; CALOR_FACES names a folder with orl40_64_gray, lfw_public_64 and evaluators",
)
@pytest.mark.filterwarnings("default")  # a reader sees warnings of other libraries too
def test_every_line_runs_on_real_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [words for block in blocks(PAGE) if block.language == "" for words in split(block.text)]
    for words in lines:
        limits = LIMITS[max((start for start in LIMITS if shlex.join(words[1:]).startswith(start)), key=len)]
        words = [*(f"{__name__}:face_network" if word == FACENET else word for word in words[1:]), *limits]
        words = acting(words) if words[0] == "train" else words
        assert calor_hf(words) in ((0, 4) if words[0] in ("audit", "report") else (0,)), shlex.join(words)

    report = LeakageReport.load("outputs/audit-calor")
    assert report.networks["embedding"].name.endswith("face_network")
    assert [check.name for check in report.power] == ["resolution", "prior", "guided", "control"]
    assert not report.data.drawn
    for name, source in (("prior", f"{PUBLIC} images of its author's own"), ("drawn-prior", "drawn by calor_hf")):
        card = Path("outputs", name, "README.md").read_text()
        assert "Training: finished" in card
        assert source in card
