"""Scripts, image and skill that are used outside a clone: what they declare is what there is."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from calor_hf.core.stop_request import leave_interrupts_to_parent
from calor_hf.data.images import ImageDataset
from calor_hf.data.public_images import PublicImages
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.hub.card import CardDetails
from calor_hf.hub.release import prepare_release
from tests.attacks.tiny_world import tiny_generator
from tests.docs.blocks import ROOT, blocks, split
from tests.hub.released_model import METHOD, saved_model
from tests.test_architecture import packages_of_others

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
HEADER = re.compile(r"^# /// script$\n(?P<content>(?:^#(?: .*)?$\n)+)^# ///$", re.MULTILINE)
"""As PEP 723 has it."""
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def setup() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_that_stands_alone_says_what_it_needs(script: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    source, options = script.read_text(encoding="utf-8"), setup()["options"]
    header, imported = HEADER.match(source), packages_of_others(source)
    assert (header is None) == ("examples" in imported)  # those import their neighbors
    if header is not None:
        lines = [line[2:] for line in header["content"].splitlines()]
        assert tomllib.loads("\n".join(lines)) == {
            "requires-python": options["python_requires"], "dependencies": ["calor-hf"],
        }  # fmt: skip
        assert imported <= set(re.findall(r"^[\w-]+", options["install_requires"], re.MULTILINE))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_uv_runs_a_script() -> None:
    command = next(words for block in blocks("docs/jobs.md") for words in split(block.text) if words[0] == "uv")
    script = command.index("examples/train_calor.py")
    done = subprocess.run([*command[: script + 1], "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "--rank" in done.stdout, done.stderr[-2000:]


def instructions(text: str = DOCKERFILE) -> list[tuple[str, str]]:
    """(name, rest) of each instruction."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_image_is_pinned_has_no_secret_and_runs_as_an_ordinary_user() -> None:
    found = instructions()
    arguments = dict(rest.split("=", 1) for name, rest in found if name == "ARG")
    (base,) = (rest for name, rest in found if name == "FROM")
    for name, value in arguments.items():
        base = base.replace(f"${{{name}}}", value)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert [rest for name, rest in found if name == "USER"] == ["calor"]
    assert {name for name, _ in found} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert not re.search(r"token|secret|password|latest|sudo|apt", DOCKERFILE, re.IGNORECASE)
    extras = arguments["EXTRAS"].split(",")
    assert set(extras) <= set(setup()["options.extras_require"])
    assert "--constraint constraints.txt" in DOCKERFILE


def test_image_copies_what_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [path for name, rest in instructions() if name == "COPY" for path in rest.split()[:-1]]
    assert set(copied) == kept
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.slow
def test_image_is_built_and_runs() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker daemon answers here")
    subprocess.run([docker, "build", "--tag", "calor-hf:test", "."], cwd=ROOT, check=True)
    run = [docker, "run", "--rm", "calor-hf:test", "--version"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def test_skill_has_a_name_and_says_when_to_use_it() -> None:
    _, front, text = (ROOT / "SKILL.md").read_text(encoding="utf-8").split("---\n", 2)
    found = yaml.safe_load(front)
    assert found.keys() == {"name", "description"}
    assert re.fullmatch(r"[a-z0-9-]{1,64}", found["name"])
    assert 0 < len(found["description"]) <= 1024  # the limits of the format
    assert "Use when" in found["description"]
    assert all((ROOT / path).is_file() for path in re.findall(r"[\w/]+\.md\b", text))


def test_entry_for_the_hub_is_true_of_priors_and_models(tmp_path: Path) -> None:
    (entry,) = (block.text for block in blocks("docs/publish.md") if block.language == "ts")
    counted = re.search(r'path:"([^"]+)"', entry)
    assert counted is not None
    prior = tiny_generator("dcgan", torch.float32)
    prior.save_pretrained(tmp_path / "prior")
    card: Any = ModelCard.load(tmp_path / "prior" / "README.md").data
    assert entry.startswith(f"{card.library_name}: {{")
    assert (tmp_path / "prior" / counted[1]).is_file()
    release = prepare_release(saved_model(tmp_path / "model"), METHOD, CardDetails("model"))
    published: Any = ModelCard(release.card).data
    assert published.library_name == "transformers"
    assert card.library_name in published.tags
    assert counted[1] in release.files


@pytest.mark.slow
def test_images_are_loaded_by_processes_that_are_spawned() -> None:
    """As on Windows and macOS."""
    faces = load_synthetic_faces(2, 2, image_size=32)
    sets: list[Any] = [
        PublicImages(faces, 32), ImageDataset(faces, ViTImageProcessor(size={"height": 32, "width": 32}))
    ]  # fmt: skip
    for data in sets:
        loader = DataLoader(
            data, num_workers=1, multiprocessing_context="spawn", worker_init_fn=leave_interrupts_to_parent
        )
        assert len(list(loader)) == 4
