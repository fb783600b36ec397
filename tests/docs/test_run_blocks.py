"""What the guides tell a reader to type is run, in their order, in a folder of small stand-ins."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from calor_hf.cli.main import main as calor_hf
from calor_hf.data.images import ImageDataset
from calor_hf.data.loading import load_splits
from calor_hf.data.synthetic_faces import load_synthetic_faces
from tests.docs.blocks import FILES, Block, blocks, split

PEOPLE, SIDE = 20, 32
SHORT_TRAINING = [
    "--num-train-epochs", "1", "--adapt-epochs", "1", "--max-accuracy-drop", "100", "--num-identities", "10",
    "--use-cpu", "--bf16", "false", "--report-to", "none", "--warmup-steps", "0", "--overwrite",
]  # fmt: skip
# Added to what the reader types: the same work, and less of it.
LIMITS = {
    "export": ["--overwrite"],
    "list": [],
    "prior": ["--settings", "steps=2", "critic_steps=1", "batch_size=4", "width=8", "--overwrite"],
    "train": SHORT_TRAINING,
}
# Not run here, and why; the real parsers read all of them in test_code_blocks.py.
NOT_RUN = {
    "calor-hf audit": "minutes at the smallest budget; tests/cli/test_audit_command.py runs it on a smaller world",
    "calor-hf report": "needs two audits; tests/cli/test_report_command.py",
    "calor-hf plan": "measures a run of full length; tests/cli/test_plan_command.py plans smaller ones",
    "calor-hf compare": "trains every defence several times; tests/cli/test_compare_command.py",
    "calor-hf sweep": "likewise; tests/cli/test_compare_command.py",
    "calor-hf robustness": "minutes, needs the extra; tests/cli/test_robustness_command.py",
    "calor-hf study": "trains and attacks several models; tests/studies runs each with its quick settings",
    "calor-hf card": "needs an audit; tests/hub",
    "calor-hf push": "needs a Hub; tests/hub has one",
    "calor-hf prepare": "needs an image set as it is distributed; tests/data/test_prepare.py makes small ones",
    "accelerate launch --multi_gpu": "needs several GPUs",
    "accelerate launch --config_file examples/accelerate": "needs several GPUs; tests/examples/test_accelerate.py",
    "torchrun": "several processes; tests/training/test_processes.py",
    "make": "makes an environment; CI does",
    "pip install": "changes the environment",
    ".ci/": "makes environments",
    "pre-commit": "changes the working copy",
    "python -m benchmarks": "minutes to hours",
}
RUN_FILES = [file for file in FILES if file == "README.md" or Path(file).parent == Path("docs")]


def save(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def vit() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=SIDE, patch_size=8, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=PEOPLE,
    )  # fmt: skip
    return ViTForImageClassification(config)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders under the names that the guides use: random models, drawn people, models trained for a moment."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    size = {"height": SIDE, "width": SIDE}
    for name in ("google/vit-base-patch16-224", "path/to/model"):
        save(vit(), ViTImageProcessor(size=size), folder / name)
    convnext = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIDE)
    processor = ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=1.0)
    save(ConvNextForImageClassification(convnext), processor, folder / "facebook/convnext-tiny-224")

    faces = load_synthetic_faces(PEOPLE, 8, image_size=SIDE)
    for number, face in enumerate(faces):
        home = folder / "path/to/folder" / f"person_{face['label']:02d}"
        home.mkdir(parents=True, exist_ok=True)
        face["image"].save(home / f"{number}.png")
    (folder / "me/people").mkdir(parents=True)
    faces.rename_columns({"image": "photo", "label": "person"}).to_parquet(folder / "me/people/train.parquet")
    (folder / "path/to/public").mkdir(parents=True)
    for number, face in enumerate(load_synthetic_faces(4, 4, image_size=112, stream="public")):
        face["image"].save(folder / "path/to/public" / f"{number}.png")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert calor_hf(["train", "--output-dir", "outputs/demo", *SHORT_TRAINING]) == 0
        finished = ["--defense", "none", "--model", "path/to/model", "--dataset", "path/to/folder"]
        assert calor_hf(["train", *finished, "--output-dir", "outputs/finished", *SHORT_TRAINING]) == 0
    return folder


def names_of_a_reader() -> dict[str, Any]:
    """What the text around a block says that the reader has already."""
    splits = load_splits("path/to/folder")
    processor = ViTImageProcessor.from_pretrained("google/vit-base-patch16-224")
    train, validation = (ImageDataset(part, processor) for part in (splits.train, splits.validation))
    return {"__name__": "__main__", "train": train, "validation": validation}


def to_run(words: list[str]) -> list[str] | None:
    """Words after ``calor-hf`` for a command that is run here; None for one that is listed as not run.

    Raises:
        ValueError: it is neither.
    """
    if words[:3] == ["accelerate", "launch", "examples/train_calor.py"]:
        words = ["calor-hf", "train", *words[3:]]  # the script is that command, and one process needs no launcher
    if words[0] == "calor-hf" and words[1] in LIMITS:
        return [*words[1:], *LIMITS[words[1]]]
    line = shlex.join(words)
    if not any(line.startswith(known) for known in NOT_RUN):
        raise ValueError(f"run '{line}' here (LIMITS), or say why not (NOT_RUN)")
    return None


def run_block(block: Block, names: dict[str, Any]) -> None:
    if block.language == "python":
        exec(compile(block.text, f"{block.file}:{block.line}", "exec"), names)
    elif block.language in ("", "bash", "sh"):
        for words in split(block.text):
            shorter = to_run(words)
            assert shorter is None or calor_hf(shorter) == 0, shlex.join(words)


@pytest.mark.parametrize("file", RUN_FILES)
def test_every_command_is_run_or_says_why_not(file: str) -> None:
    for block in blocks(file):
        if block.language in ("", "bash", "sh"):
            for words in split(block.text):
                to_run(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader sees warnings of other libraries too
@pytest.mark.parametrize("file", RUN_FILES)
def test_blocks_run(file: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    names = names_of_a_reader()
    for block in blocks(file):
        run_block(block, names)
