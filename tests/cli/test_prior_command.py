"""`calor-hf prior`: real runs on a few small images, and what is refused."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from calor_hf.cli.main import main as calor_hf
from calor_hf.core.config import MethodConfig
from calor_hf.data import loading
from calor_hf.data.loading import load_public_images
from calor_hf.data.public_images import PublicImages
from calor_hf.data.synthetic_faces import load_synthetic_faces
from calor_hf.generators import Generator, load_generator
from calor_hf.priors import _loop, budget
from calor_hf.recipes import prior as recipe
from calor_hf.recipes.common import settings_of
from tests.generators.official_pkl import write_official
from tests.generators.test_stylegan2 import small
from tests.tiny_models import tiny_base

REPOSITORY = Path(__file__).parents[2]
TINY = ["steps=3", "discriminator_steps=1", "batch_size=4", "width=4", "latent_dim=4"]
SMALL = ["prior", "--image-size", "16", "--save-steps", "1", "--settings", *TINY]


@pytest.fixture(autouse=True)
def _logger() -> Iterator[None]:
    """The command takes over the library's messages; other tests want them back."""
    ours = logging.getLogger("calor_hf")
    handlers, propagate, level = ours.handlers, ours.propagate, ours.level
    yield
    ours.handlers, ours.propagate = handlers, propagate
    ours.setLevel(level)


@pytest.fixture
def faces(tmp_path: Path) -> str:
    """A folder of twelve random images."""
    folder = tmp_path / "faces"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return str(folder)


@pytest.fixture
def target(tmp_path: Path) -> str:
    """A folder with a model of three classes."""
    tiny_base("vit", 3).save_pretrained(tmp_path / "target")
    return str(tmp_path / "target")


def steps_in(folder: Path) -> int:
    return int(torch.load(folder / "checkpoint.pt", weights_only=True)["step"])


def assert_same_generator(a: Path, b: Path) -> None:
    left, right = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["gmi", "ked", "plg", "stylegan2"])
def test_a_prior_is_trained_on_a_folder_of_pictures(
    name: str, faces: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*SMALL, *(["top=3"] if name == "plg" else []), "--target", target, "--dataset", faces, "--seed", "4"]
    assert calor_hf([*words, "--prior", name, "--output-dir", str(out)]) == 0
    assert f"saved the generator in {out}, samples in {out / 'samples'}" in capsys.readouterr().out
    record = json.loads((out / "training.json").read_text())
    assert (record["seed"], record["steps_done"], record["width"], record["batch_size"]) == (4, 3, 4, 4)
    assert len(list((out / "samples").glob("*.png"))) == 3
    generator = load_generator(str(out))
    assert generator.image_size == 16
    assert generator.num_classes == (3 if name == "plg" else None)


def test_no_folder_means_drawn_people_none_of_the_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PUBLIC_IDENTITIES", 3)
    monkeypatch.setattr(loading, "PUBLIC_IMAGES_EACH", 2)
    found = load_public_images(None, 16)
    public, private = (load_synthetic_faces(3, 2, 16, stream=stream) for stream in ("public", "private"))
    assert len(found) == 6
    for index in range(6):
        pixels = (found[index] * 255).byte().permute(1, 2, 0).numpy()
        assert np.array_equal(pixels, np.asarray(public[index]["image"]))
        assert not np.array_equal(pixels, np.asarray(private[index]["image"]))


def test_crop_keeps_the_middle_of_the_original(faces: str) -> None:
    found = load_public_images(faces, 16, crop=16)[0]
    with Image.open(Path(faces) / "00.png") as image:  # 24 x 20: four off left and right, two off above and below
        middle = np.asarray(image.crop((4, 2, 20, 18)))
    assert np.array_equal((found * 255).byte().permute(1, 2, 0).numpy(), middle)


def test_settings_say_which_option_they_came_from() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wanting(MethodConfig):
        needed: int

    assert settings_of(Wanting, ["needed=3"], "--settings") == {"needed": 3}
    with pytest.raises(ValueError, match=r"--settings: .*needed"):
        settings_of(Wanting, [], "--settings")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prior", "gmmi"], "--prior must be one of flow, gmi, ked, lokt, plg, ridge, stylegan2, got gmmi"),
        (["--prior", "ked"], "--prior ked needs the model under attack; pass --target"),
        (["--prior", "plg"], "--prior plg needs the model under attack; pass --target"),
        (["--save-steps", "0"], "--save-steps must be >= 1"),
        (["--seed", "-1"], "--seed >= 0, got 1 and -1"),
        (["--resume", "--overwrite"], "pass one of them"),
        (["--settings", "lrr=1"], "has no setting lrr (did you mean lr?)"),
        (["--settings", "lr"], "expected a setting as name=value, got 'lr'"),
        (["--settings", "lr=fast"], "lr must be float, got 'fast'"),
        (["--settings", "lr=0"], "lr must be > 0, got 0"),
        (["--settings", *TINY, "lr=nan"], "lr must be"),
        (["--settings", *TINY, "latent_dim=0"], "latent_dim"),
        (["--settings", "batch_size=13"], "expected at least 13 training images for a batch, got 12; lower batch_size"),
        (["--dataset", "./nowhere"], "no folder or file ./nowhere; pass an image folder"),
        (["--dataset", "no one/nothing"], "pass the path of an image folder"),
        (["--image-size", "24"], "image_size must be a power of two, at least 16, got 24"),
        (["--image-size", "8"], "image_size must be a power of two, at least 16, got 8"),
        (["--image-size", "0"], "--image-size"),
        (["--crop", "0"], "--crop"),
        (["--crop", "-5"], "--crop"),
        (["--num-workers", "-1"], "--num-workers must be >= 0, got -1"),
        (["--minutes", "0"], "--minutes must be a finite number > 0, got 0.0"),
        (["--minutes", "nan"], "--minutes must be a finite number > 0, got nan"),
    ],
)
def test_what_is_refused(
    words: list[str], message: str, faces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calor_hf([*SMALL, "--dataset", faces, "--output-dir", str(tmp_path / "out"), *words]) == 2
    shown = capsys.readouterr().err
    assert "calor-hf prior: " in shown
    assert message in shown
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_target_that_is_nowhere_is_refused(faces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", faces, "--prior", "ked", "--target", str(tmp_path / "nowhere")]
    assert calor_hf([*SMALL, *words, "--output-dir", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_folder_without_pictures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert calor_hf([*SMALL, "--dataset", str(tmp_path / "empty"), "--output-dir", str(tmp_path / "out")]) == 2
    assert "empty" in capsys.readouterr().err


def test_a_used_folder_is_refused_unless_overwriting(
    faces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [*SMALL, "--dataset", faces, "--output-dir", str(out)]
    assert calor_hf(words) == 0
    (out / "thesis.tex").write_text("mine")
    assert calor_hf(words) == 2
    shown = capsys.readouterr().err
    assert "is not empty" in shown
    assert "overwrite" in shown
    assert calor_hf([*words, "--seed", "1", "--resume"]) == 2
    assert "'seed': 0" in capsys.readouterr().err
    assert calor_hf([*words, "--seed", "1", "--overwrite"]) == 0
    assert json.loads((out / "training.json").read_text())["seed"] == 1
    assert (out / "thesis.tex").read_text() == "mine"


def test_a_loss_that_is_not_finite_ends_with_one(
    faces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "lr=1e30", "--dataset", faces, "--output-dir", str(tmp_path / "out")]
    assert calor_hf(words) == 1
    shown = capsys.readouterr().err
    assert "is not finite at step" in shown
    assert "lower lr" in shown


def test_ctrl_c_saves_and_resume_goes_on(
    faces: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--dataset", faces, "--output-dir"]
    assert calor_hf([*words, str(tmp_path / "whole")]) == 0
    read, reads, out = PublicImages._read, [0], tmp_path / "halves"

    def interrupted(self: PublicImages, index: int) -> Any:
        reads[0] += 1
        if reads[0] == 7:  # of the second batch of four
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, index)

    pushed: list[Any] = []
    monkeypatch.setattr(PublicImages, "_read", interrupted)
    monkeypatch.setattr(Generator, "push_to_hub", lambda *words: pushed.append(words))
    monkeypatch.setattr(recipe, "check_token", lambda *words: None)
    assert calor_hf([*words, str(out), "--push-to-hub", "me/prior"]) == 130
    assert "stopped at step 2" in (shown := capsys.readouterr().err)
    assert "Go on with the same command and --resume." in shown
    assert steps_in(out) == 2
    assert pushed == []  # nothing unfinished
    assert calor_hf([*words, str(out), "--push-to-hub", "me/prior", "--resume"]) == 0
    assert [names[1:] for names in pushed] == [("me/prior",)]
    assert_same_generator(tmp_path / "whole", out)


def test_minutes_choose_a_size_once(
    faces: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "time_step", lambda *_: 0.5)
    out = tmp_path / "out"
    plain = ["prior", "--image-size", "16", "--dataset", faces, "--output-dir", str(out)]
    given = ["--settings", "batch_size=4", "width=4", "latent_dim=4"]
    words = [*plain, "--minutes", "0.05", *given]
    assert calor_hf(words) == 0
    assert (
        "chosen for 0.05 minutes: width=4 discriminator_steps=1 batch_size=4 lr=0.0005 steps=6"
        in capsys.readouterr().out
    )
    record = json.loads((out / "training.json").read_text())
    assert (record["minutes"], record["steps_done"], record["width"]) == (0.05, 6, 4)
    card = out / "README.md"
    assert "finished, 6 of 6 steps, at a size chosen for 0.05 minutes" in card.read_text()
    assert f"12 images of its author's own (SHA-256 of the files: {record['digest']})" in card.read_text()

    def timed(*_: Any) -> float:
        raise AssertionError("timed again")

    monkeypatch.setattr(budget, "time_step", timed)
    card.write_text(card.read_text().replace("finished", "?") + "mine\n")
    assert calor_hf([*words, "steps=7", "--resume"]) == 0  # keeps the size, and may be prolonged
    assert "7 of 7 steps" in card.read_text()
    assert card.read_text().endswith("mine\n")
    for other, message in (
        ([*plain, *given], "'minutes': 0.05"),
        ([*plain, "--minutes", "9", *given], "'minutes': 9.0"),
        ([*words, "width=8"], "'width': 8"),
    ):
        assert calor_hf([*other, "--resume"]) == 2
        assert message in capsys.readouterr().err


def test_other_images_are_no_resume(faces: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--dataset", faces, "--output-dir", str(tmp_path / "out")]
    assert calor_hf(words) == 0
    Image.new("RGB", (20, 20)).save(Path(faces) / "00.png")
    assert calor_hf([*words, "--resume"]) == 2
    assert "'digest'" in capsys.readouterr().err


def fails(*words: Any) -> None:
    raise KeyError("no such thing")


def test_a_finished_generator_is_there_whatever_fails_then(
    faces: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe, "check_token", lambda *words: None)
    words = [*SMALL, "--save-steps", "3", "--dataset", faces, "--output-dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(_loop, "image_grid", fails)
        assert calor_hf(words) == 3
    out = tmp_path / "out"
    assert f"generator of step 3 is saved in {out}, but drawing samples failed (KeyError" in capsys.readouterr().err
    assert steps_in(out) == 3
    monkeypatch.setattr(Generator, "push_to_hub", fails)
    assert calor_hf([*words, "--resume", "--push-to-hub", "me/prior"]) == 3
    shown = capsys.readouterr().err
    assert f"the generator is saved in {out}, but pushing it failed (KeyError" in shown
    assert f"push it with load_generator({str(out)!r}).push_to_hub('me/prior')" in shown
    assert load_generator(str(out)).image_size == 16


def test_an_output_folder_among_the_images_is_refused(faces: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert calor_hf([*SMALL, "--dataset", faces, "--output-dir", f"{faces}/out"]) == 2
    assert "is in the data folder" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_reaches_the_loading_processes_too(faces: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--dataset", faces, "--output-dir", str(out), "--num-workers", "1"]
    long = [*SMALL, "steps=1000000", "discriminator_steps=20"]  # more batches in a step than the workers have ready
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-m", "calor_hf.cli.prior", *long[1:], *words], env=environment, cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as run:  # fmt: skip
        limit = time.monotonic() + 120
        while not list(out.glob("samples/000002.png")) and run.poll() is None and time.monotonic() < limit:
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)  # what a terminal does
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 130, errors[-3000:]
    assert "Go on with the same command and --resume." in errors
    assert f"stopped at step {steps_in(out)};" in errors


def test_an_official_network_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file, out = small(dtype=torch.float32), tmp_path / "net.pkl", tmp_path / "out"
    write_official(file, source)
    words = ["prior", "--import", str(file), "--output-dir", str(out)]
    assert calor_hf(words) == 0
    assert f"saved the generator (16 pixels) in {out}" in capsys.readouterr().out
    latents = source.sample_latents(2, np.random.default_rng(0)).float()
    with torch.no_grad():
        assert torch.equal(load_generator(str(out))(latents), source(latents))
    assert calor_hf(words) == 2
    assert "is not empty" in capsys.readouterr().err
    (out / "thesis.tex").write_text("mine")
    (out / "checkpoint.pt").write_text("of a prior that was trained here before")
    assert calor_hf([*words, "--overwrite"]) == 0
    assert not (out / "checkpoint.pt").exists()
    assert (out / "thesis.tex").read_text() == "mine"
    assert calor_hf([*words, "--overwrite", "--crop", "10"]) == 0
    with torch.no_grad():
        assert torch.equal(load_generator(str(out))(latents), source(latents)[..., 3:13, 3:13])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--crop", "17"], "crop must be 1 to the 16 pixels"),
        (["--resume"], "--import trains nothing; leave out --resume"),
        (["--dataset", "x", "--settings", "lr=1"], "leave out --dataset, --settings"),
        (["--import", "nowhere.pkl"], "nowhere.pkl"),
        (["--import", "hostile.pkl"], "hostile.pkl is no official StyleGAN2 file: it calls builtins.eval"),
    ],
)
def test_what_is_not_taken_over(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_official(Path("net.pkl"), small(dtype=torch.float32))
    Path("hostile.pkl").write_bytes(b"\x80\x03cbuiltins\neval\nX\x0b\x00\x00\x00print('x!')\x85R.")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("of another prior")
    assert calor_hf(["prior", "--import", "net.pkl", "--output-dir", "out", "--overwrite", *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "x!" not in shown.out
    assert (tmp_path / "out" / "config.json").read_text() == "of another prior"


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        calor_hf(["prior", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in (
        "--prior",
        "--dataset",
        "--target",
        "--settings",
        "--resume",
        "--overwrite",
        "--push-to-hub",
        "--import",
    ):
        assert option in shown
