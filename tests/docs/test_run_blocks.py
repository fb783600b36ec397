"""Commands that the guides tell a reader to type are run, in their order, in a folder of small stand-ins."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
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

from calor_hf.auditing.evaluation import Evaluator
from calor_hf.cli.main import main as calor_hf
from calor_hf.data.images import ImageDataset
from calor_hf.data.loading import load_splits
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.recipes import runs as recipe_runs
from calor_hf.recipes.train_arguments import acting
from examples.paper.__main__ import main as paper
from examples.paper.lab import TRAIN as TRAIN_IN_STUDY
from tests.data.made_up_sets import make_celeba, make_facescrub, make_ffhq
from tests.docs.blocks import FILES, ROOT, Block, blocks, split
from tests.hub.local_hub import LocalHub
from tests.hub.test_push import client

IDENTITIES, SIDE = 20, 32
TRAIN = [
    "--num-train-epochs", "1", "--adapt-epochs", "1", "--max-accuracy-drop", "100", "--num-identities", "4",
    "--use-cpu", "--bf16", "false", "--report-to", "none", "--warmup-steps", "0",
]  # fmt: skip
AUDIT = ["--budget", "0.005", "--classes", "0-1", "--images-per-class", "1"]
# Added to what the reader types, by the longest beginning of the line: the same work, and less of it.
LIMITS = {
    "accelerate launch examples/train_calor.py": TRAIN,
    "calor-hf audit": AUDIT,
    "calor-hf card": [],
    "calor-hf compare --defenses": [*TRAIN, "--defenses", "loft:rank=2", "loft:rank=4"],
    "calor-hf compare": [*TRAIN, "--defenses", "loft", "--seeds", "1", "--trials", "1"],
    "calor-hf decoys": [],
    "calor-hf export": [],
    "calor-hf list": [],
    "calor-hf plan --processes 8": AUDIT,
    "calor-hf plan audit": AUDIT,
    "calor-hf plan prior": ["--settings", "steps=2", "discriminator_steps=1", "batch_size=4", "width=8"],
    "calor-hf plan train": TRAIN,
    "calor-hf prior": ["--settings", "steps=2", "discriminator_steps=1", "batch_size=4", "width=8"],
    "calor-hf push": [],
    "calor-hf report": [],
    "calor-hf robustness": ["--max-images", "4"],
    "calor-hf train": TRAIN,
    "python -m examples.paper": ["--quick", "--report-to", "none", "--models-dir", "outputs/study-models"],
    "python -m examples.paper prepare": [],
    "python -m examples.paper rank_sweep --dataset": [*TRAIN, "--quick", "--settings", "ranks=2"],
    "python -m examples.paper settings": [],
    "torchrun": TRAIN,
}
# Not run here, and why; the real parsers read all of them in test_code_blocks.py.
NOT_RUN = {
    "accelerate launch --config_file examples/accelerate": "needs several GPUs; tests/examples/test_accelerate.py",
    "calor-hf audit outputs/calor --embedding": "needs facenet-pytorch; test_laptop_page.py runs it without",
    "calor-hf plan --processes 16 audit": "needs FaceScrub, and a model and a prior of it",
    "accelerate launch --multi_gpu": "needs several GPUs",
    "calor-hf compare --launcher": "its launcher needs several GPUs",
    "calor-hf train --report-to trackio": "needs trackio, which is not installed",
    "docker": "needs a Docker daemon; tests/examples/test_alone.py builds the image",
    "hf jobs": "needs the Hub; test_code_blocks.py reads it with the parser of hf",
    "make": "makes an environment; .ci/run makes lint, types, docs and test, and only people make the demo",
    "pip install": "changes the environment",
    "source": "changes the shell",
    "uv run": "makes an environment; tests/examples/test_alone.py runs it if uv is there",
    "python -m examples.paper import-backbone": "needs weights; tests/examples/paper/test_settings.py makes some",
    "python -m examples.paper settings examples/paper/settings/A_facescrub_ir152.yaml --models": "days on a GPU",
}
RUN_FILES = [
    file
    for file in FILES
    if file in ("README.md", "SKILL.md", "examples/paper/README.md") or Path(file).parent == Path("docs")
]
# Files that, by the text of a guide or another guide, the reader has already; the rest a guide has to write itself.
READER_HAS = {
    "docs/audit.md": [
        "demo", "vit", "prior", "audit-undefended", "audit-other", "audit-0", "audit-1", "audit-2",
    ],
    "docs/choose_a_rank.md": ["rank8", "evaluation-model", "prior", "audit-16"],
    "docs/decoys.md": ["prior"],
    "docs/defend_a_finished_model.md": ["finished"],
    "docs/devices.md": ["demo"],
    "docs/laptop.md": ["audit-calor"],
    "docs/publish.md": ["demo"],
    "docs/studies.md": ["evaluation-model", "prior"],
}  # fmt: skip


def save(model: PreTrainedModel, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def vit() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=SIDE, patch_size=8, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=IDENTITIES,
    )  # fmt: skip
    return ViTForImageClassification(config)


def make_models(folder: Path) -> None:
    """Random weights under the names that the guides use."""
    torch.manual_seed(0)
    for name in ("google/vit-base-patch16-224", "path/to/model"):
        save(vit(), ViTImageProcessor(size={"height": SIDE, "width": SIDE}), folder / name)
    convnext = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=SIDE)
    processor = ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=1.0)
    save(ConvNextForImageClassification(convnext), processor, folder / "facebook/convnext-tiny-224")


def make_pipeline(folder: Path) -> None:
    """A pipeline as diffusers saves it."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = UNet2DModel(
        sample_size=SIDE, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **blocks
    )  # fmt: skip
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(folder / "path/to/pipeline")


def make_images(folder: Path) -> None:
    """Drawn people in every form that the guides speak of."""
    faces = load_synthetic_faces(IDENTITIES, 8, image_size=SIDE)
    for number, face in enumerate(faces):
        home = folder / "path/to/folder" / f"person_{face['label']:02d}"
        home.mkdir(parents=True, exist_ok=True)
        face["image"].save(home / f"{number}.png")
        if face["label"] < 8:  # two private identities, and three decoys for each
            whose = "private" if face["label"] < 2 else "pool"
            person = folder / "path/to" / whose / f"person_{face['label']:02d}"
            person.mkdir(parents=True, exist_ok=True)
            face["image"].save(person / f"{number}.png")
    (folder / "me/people").mkdir(parents=True)
    faces.rename_columns({"image": "photo", "label": "person"}).to_parquet(folder / "me/people/train.parquet")
    (folder / "path/to/public").mkdir(parents=True)
    for number, face in enumerate(load_synthetic_faces(4, 4, image_size=112, stream="public")):
        face["image"].save(folder / "path/to/public" / f"{number}.png")
    make_facescrub(folder / "path/to/FaceScrub")
    make_celeba(folder / "path/to/CelebA", [3, 7, 7, 3])
    make_ffhq(folder / "path/to/ffhq")


def make_outputs() -> None:
    """Folders that the guides call ``outputs/...``: trained for a moment, attacked for a moment."""

    def run(line: str, limits: Sequence[str], name: str) -> None:
        words = [*shlex.split(line), *limits, "--output-dir", f"outputs/{name}"]
        # An audit that is cut down to a few steps ends with 4: it has no power.
        assert calor_hf(acting(words) if words[0] == "train" else words) in (0, 4)

    vit, identities = "--model google/vit-base-patch16-224", "--dataset path/to/folder"
    run("train", TRAIN, "demo/calor")
    run("train --defense none", TRAIN, "demo/undefended")
    run(f"train --defense none --model path/to/model {identities}", TRAIN, "finished")
    run(f"train {vit} {identities}", TRAIN, "vit")
    run(f"train {vit} {identities} --rank 8", TRAIN, "rank8")
    run(f"train --role evaluation --model facebook/convnext-tiny-224 {identities}", TRAIN, "evaluation-model")
    run("prior --dataset path/to/public --crop 108", LIMITS["calor-hf prior"], "prior")
    run("audit outputs/demo/calor", AUDIT, "demo/audit-calor")
    evaluation_model = "--evaluation-model outputs/demo/audit-calor/evaluation-model"
    run(f"audit outputs/demo/undefended {evaluation_model}", AUDIT, "demo/audit-undefended")
    theirs = f"audit {identities} --evaluation-model outputs/evaluation-model --generator outputs/prior"
    for seed in range(3):
        run(f"{theirs} --target outputs/vit --seed {seed}", AUDIT, f"audit-{seed}")
    run(f"{theirs} --target outputs/finished", AUDIT, "audit-undefended")
    for name in ("audit-calor", "audit-other", "audit-16"):
        shutil.copytree("outputs/audit-0", f"outputs/{name}")


def train_here(words: Sequence[str], log: Path) -> int:
    """A training of `compare` or a study, without a process of its own that imports everything again."""
    log.touch()
    program = next(
        start for start in (("-m", "calor_hf.cli.train"), TRAIN_IN_STUDY) if tuple(words[1:])[: len(start)] == start
    )
    return calor_hf(["train", *words[1 + len(program) :]])


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the readers of the guides have."""
    folder = tmp_path_factory.mktemp("stand_ins")
    make_models(folder)
    make_pipeline(folder)
    make_images(folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_runs, "run_process", train_here)
        patch.setattr(Evaluator, "_check_learned", lambda *_: None)  # models of a moment know no one
        with pytest.MonkeyPatch.context() as inside:
            inside.chdir(folder)
            make_outputs()
        yield folder


@pytest.fixture
def reader(request: pytest.FixtureRequest, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader of one guide, who stands in it."""
    home = tmp_path / "home"
    shutil.copytree(stand_ins, home, symlinks=True, ignore=shutil.ignore_patterns("outputs"))
    for name in READER_HAS.get(request.getfixturevalue("file"), []):
        shutil.copytree(stand_ins / "outputs" / name, home / "outputs" / name)
    monkeypatch.chdir(home)
    return home


def names_of_a_reader() -> dict[str, Any]:
    """Files that the reader has, by the text around a block already."""
    splits = load_splits("path/to/folder")
    processor = ViTImageProcessor.from_pretrained("google/vit-base-patch16-224")
    train, validation = (ImageDataset(part, processor) for part in (splits.train, splits.validation))
    return {"__name__": "__main__", "train": train, "validation": validation}


def to_run(words: list[str]) -> list[str] | None:
    """The command with its limits; None for one that is listed as not run.

    Raises:
        ValueError: it is neither.
    """
    line = shlex.join(words)
    known = max((start for start in (*LIMITS, *NOT_RUN) if line.startswith(start)), key=len, default=None)
    if known is None:
        raise ValueError(f"run '{line}' here (LIMITS), or say why not (NOT_RUN)")
    if known in NOT_RUN:
        return None
    limits = LIMITS[known]
    return acting([*words, *limits]) if limits[: len(TRAIN)] == TRAIN else [*words, *limits]


def run_command(words: list[str], home: Path) -> int:
    """Status of a command: one of `calor-hf` runs in this process, another one and what reaches for a Hub do not."""
    if words[0] == "calor-hf" and words[1] != "push":
        return calor_hf(words[1:])
    if words[:3] == ["python", "-m", "examples.paper"]:
        return paper(words[3:])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with LocalHub() as hub:
        environment = {**client(hub, home, token="hf_reader"), "PATH": path}
        return subprocess.run(words, env=environment, check=False, timeout=900).returncode


def run_block(block: Block, names: dict[str, Any], home: Path) -> None:
    if block.language == "python":
        exec(compile(block.text, f"{block.file}:{block.line}", "exec"), names)
    elif block.language in ("", "bash", "sh"):
        for words in split(block.text):
            limited = to_run(words)
            # An audit that is cut down to a few steps ends with 4: it has no power.
            fine = (0, 4) if words[:2] in (["calor-hf", "audit"], ["calor-hf", "report"]) else (0,)
            assert limited is None or run_command(limited, home) in fine, shlex.join(limited)


@pytest.mark.parametrize("file", RUN_FILES)
def test_every_command_is_run_or_says_why_not(file: str) -> None:
    for block in blocks(file):
        if block.language in ("", "bash", "sh"):
            for words in split(block.text):
                to_run(words)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader sees warnings of other libraries too
@pytest.mark.parametrize("file", RUN_FILES)
def test_blocks_run(file: str, reader: Path) -> None:
    names = names_of_a_reader()
    for block in blocks(file):
        run_block(block, names, reader)
