"""`calor-hf audit` as a user types it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from calor_hf import LeakageReport, PrivateImages
from calor_hf.auditing import power
from calor_hf.cli.audit import main
from calor_hf.cli.main import main as calor_hf
from calor_hf.cli.train import main as train
from calor_hf.core.digests import network_digest
from calor_hf.data.public_images import PublicImages
from calor_hf.generators import load_generator
from calor_hf.recipes import audit as recipe
from calor_hf.recipes.audit import AuditRecipe, control_argv
from calor_hf.recipes.report import write_pages
from calor_hf.recipes.train_arguments import parse
from calor_hf.targets.hf_target import HFTarget
from tests.attacks.tiny_world import CLASSES, tiny_generator
from tests.tiny_models import tiny_base

REPOSITORY = Path(__file__).parents[2]
ONLY = "--reconstructions-only"
ORACLE = ["--generator", "renderer"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of four drawn people, hardly trained."""
    folder = tmp_path_factory.mktemp("drawn") / "model"
    words = ["--num-identities", "4", "--num-train-epochs", "1", "--defense", "none", "--use-cpu"]
    assert train([*words, "--report-to", "none", "--output-dir", str(folder)]) == 0
    return str(folder)


def writes_and_fails(*words: Any, **more: Any) -> None:
    write_pages(*words, **more)
    raise KeyError("no such thing")


def test_drawn_people_need_nothing_but_the_target(
    drawn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "PROJECTION", replace(power.GUIDANCE, steps=3, pool=10))
    monkeypatch.setattr(power, "GUIDANCE", power.PROJECTION)
    given = recipe.evaluation_model_argv

    def briefly(*args: Any) -> list[str]:
        return [*words, "--num-train-epochs", "2"] if (words := given(*args)) else []

    monkeypatch.setattr(recipe, "evaluation_model_argv", briefly)
    words = [drawn, "--output-dir", str(tmp_path), "--budget", "0.005", "--classes", "0-1"]
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "write_pages", writes_and_fails)
        assert main([*words, "--images-per-class", "2"]) == 3
    shown, said = capsys.readouterr()
    assert f"the report is saved as {tmp_path}/report.json, but writing its page failed (KeyError" in said
    assert "training an evaluation model, once" in shown
    report = LeakageReport.load(tmp_path)
    (auto,) = report.attacks
    members = len(auto.parts)
    assert members > 1
    assert f"\n{report.verdict.sentences[0]}\n" in shown
    assert {f"identities_added[{part}]" for part in auto.parts} <= {measure.name for measure in auto.measures}
    assert auto.measures[0].images == 2 * 2 * members
    assert "The evaluation model is weak" in "\n".join(report.caveats)  # of four people it learns little
    assert all(f"\n- {line}" in shown for line in report.caveats)
    assert auto.get("identity_error")
    assert auto.get("identity_match@1")
    assert [check.name for check in report.power] == ["resolution", "prior", "guided"]
    assert (tmp_path / "report.html").read_text().count("<img") == 2 * members  # one by each; no private images
    evaluation_model = (tmp_path / "evaluation-model" / "model.safetensors").read_bytes()
    options = [*words, "--images-per-class", "2", "--resume", "--include-private-images", "--anonymize-labels"]
    assert main(options) == 4  # two people, and hardly a step
    assert "training an evaluation model" not in capsys.readouterr().out
    assert (tmp_path / "evaluation-model" / "model.safetensors").read_bytes() == evaluation_model
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == 2 + 2 * members + 2 * members
    assert "identity_000" not in page
    assert "person 0" in page


def test_attacks_without_a_judge(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "audit",
        "--target",
        target,
        ONLY,
        "--attacks",
        "gmi",
        "plg",
        "--budget",
        "0.01",
        "--classes",
        "0-1,3",
        "--output-dir",
        str(tmp_path),
        *ORACLE,
    ]
    assert calor_hf([*words, "--images-per-class", "2"]) == 0
    shown = capsys.readouterr().out
    assert "no measure of leakage" in shown
    for name, steps in (("gmi", 15), ("plg", 6)):
        assert name in shown
        record = json.loads((tmp_path / name / "attack.json").read_text())
        assert record["settings"]["steps"] == steps
        assert record["labels"] == [0, 1, 3]
        assert record["images"] == 6
    assert calor_hf([*words, "--images-per-class", "2"]) == 2
    assert "holds an attack already" in capsys.readouterr().err
    assert calor_hf([*words, "--images-per-class", "2", "--resume"]) == 0


def test_a_trained_prior_and_settings(target: str, tmp_path: Path) -> None:
    tiny_generator("conditional", torch.float32).save_pretrained(tmp_path / "prior")
    options = ["--target", target, "--generator", str(tmp_path / "prior"), "--attacks", "plg", "--classes", "2", ONLY]
    settings = ["--settings", "steps=3", "objective=poincare", "gradient=straight_through", "--preset", "calor"]
    assert main([*options, *settings, "--output-dir", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "plg" / "attack.json").read_text())
    assert record["settings"]["objective"] == "poincare"
    assert record["generator"]["num_classes"] == CLASSES


def test_lomma_learns_from_public_pictures_first(target: str, tmp_path: Path) -> None:
    images, torch_seed = tmp_path / "public", torch.Generator().manual_seed(0)
    images.mkdir()
    for index in range(6):
        pixels = torch.randint(0, 256, (20, 20, 3), generator=torch_seed, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(images / f"{index}.png")
    torch.manual_seed(1)
    tiny_base("resnet", 7).save_pretrained(tmp_path / "student")
    options = [
        "--target",
        target,
        "--attacks",
        "lomma",
        "--classes",
        "1",
        ONLY,
        "--public-dataset",
        str(images),
        *ORACLE,
    ]
    students = ["--settings", f"students={tmp_path / 'student'}", "student_epochs=2", "student_batch=3", "steps=2"]
    assert main([*options, *students, "--output-dir", str(tmp_path / "out")]) == 0
    kept = tmp_path / "out" / "lomma" / "students" / "0"
    assert json.loads((kept / "distillation.json").read_text())["epochs"] == 2
    assert json.loads((kept / "config.json").read_text())["architectures"] == ["ResNetForImageClassification"]
    assert json.loads((tmp_path / "out" / "lomma" / "attack.json").read_text())["images"] == 5


def test_a_prior_is_fitted_on_the_way(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, draw = tmp_path / "public", torch.Generator().manual_seed(0)
    images.mkdir()
    for index in range(6):
        pixels = torch.randint(0, 256, (20, 20, 3), generator=draw, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(images / f"{index}.png")
    words = ["--target", target, "--generator", "ridge", "--attacks", "plg", "--settings", "steps=2", "--classes", "2",
             ONLY, "--output-dir", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 2
    assert "the generator ridge is fitted to public images of the same kind" in capsys.readouterr().err
    words += ["--public-dataset", str(images)]
    assert main(words) == 0
    model = HFTarget.from_pretrained(target)
    prior = load_generator(str(tmp_path / "out" / "ridge"))
    assert (prior.name, prior.trained_steps, prior.image_size) == ("ridge", (1, 1), model.image_size[0])
    record = json.loads((tmp_path / "out" / "plg" / "attack.json").read_text())
    assert record["generator"]["latent_dim"] == prior.latent_dim
    weights = tmp_path / "out" / "ridge" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main([*words, "--resume"]) == 0
    assert weights.stat().st_mtime_ns == before
    assert main([*words, "--overwrite"]) == 0
    assert weights.stat().st_mtime_ns > before


@pytest.mark.slow
def test_two_processes_share_the_classes(target: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--module"]
    words = [
        "--target",
        target,
        ONLY,
        "--attacks",
        "plg",
        "--budget",
        "0.01",
        "--classes",
        "0-2",
        "--output-dir",
        tmp_path,
        *ORACLE,
    ]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "calor_hf.cli.audit", *map(str, words)],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("no measure of leakage") == 1
    record = json.loads((tmp_path / "plg" / "attack.json").read_text())
    assert (record["cost"]["processes"], record["images"]) == (2, 15)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "gmii"], "Did you mean 'gmi'?"),
        (["--classes", "0-9"], "classes 0 to 4"),
        (["--classes", "x"], "expected classes as 0-99"),
        (["--budget", "paperr"], "budget must be paper"),
        (["--preset", "mine"], "unknown preset"),
        (["--attacks", "plg", "--settings", "stepps=3"], "did you mean steps?"),
        (["--attacks", "plg", "--settings", "steps"], "name=value"),
        (["--attacks", "plg", "--settings", "steps=x"], "steps must be int"),
        (["--attacks", "plg", "--settings", "objective=cee"], "unknown objective"),
        (["--generator", "nowhere/at/all"], "no generator at"),
        (["--generator", "dcgan"], "has to be trained"),
        (["--resume", "--overwrite"], "pass one"),
        (["--images-per-class", "0"], "images_per_class"),
        (["--metrics", "fidd"], "unknown metric 'fidd'"),
        (["--target", "./nowhere"], "nowhere"),
    ],
)
def test_bad_options_are_refused(
    words: list[str], message: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", target, ONLY, *ORACLE, "--output-dir", str(tmp_path / "out"), *words]
    assert main(options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_report_needs_is_asked_for(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--target", target, "--output-dir", str(tmp_path / "out")]
    assert main(words) == 2
    assert "pass --dataset and --evaluation-model, or --reconstructions-only" in capsys.readouterr().err
    assert main([*words, "--dataset", str(tmp_path)]) == 2
    assert "train one with calor-hf train --role evaluation" in capsys.readouterr().err
    for more in ([ONLY], ["--dataset", str(tmp_path), "--evaluation-model", target]):
        assert main([*words, *more]) == 2
        assert "no prior: train one on public images of the same kind" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_control_is_trained_as_the_target_was(tmp_path: Path) -> None:
    options = AuditRecipe(model=str(tmp_path), control="auto", output_dir=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="does not say how it was trained, which --control auto needs"):
        control_argv(options)
    command = ["--defense", "calor", "--rank=4", "--num-identities", "4", "--head_init", "svd", "--undefended-epochs",
               "2", "--output-dir", "outputs/demo", "--seed=3", "--overwrite"]  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({"command": command, "defense": "calor"}))
    argv = control_argv(options)
    assert argv[:5] == ["--defense", "none", "--num-identities", "4", "--seed=3"]
    assert argv[5:] == ["--output-dir", str(tmp_path / "out" / "control-model"), "--overwrite"]
    model, data, _, training = parse(argv)
    assert (model.defense, data.num_identities, training.seed) == ("none", 4, 3)
    (tmp_path / "out" / "control-model").mkdir(parents=True)
    trained = json.dumps({"command": argv, "defense": "none"})
    (tmp_path / "out" / "control-model" / "metrics.json").write_text(trained)
    assert control_argv(options) == []  # a finished one is not trained again
    (tmp_path / "metrics.json").write_text(json.dumps({"command": [*command, "--rank", "9"], "defense": "calor"}))
    assert control_argv(options) == []
    (tmp_path / "metrics.json").write_text(json.dumps({"command": [*command, "--bf16"], "defense": "calor"}))
    with pytest.raises(ValueError, match="asks for --defense none --num-identities 4 --seed=3 --bf16; delete it"):
        control_argv(options)


@pytest.mark.slow
def test_the_control_is_trained_attacked_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--num-identities", "8", "--num-train-epochs", "8", "--use-cpu", "--report-to", "none", "--output-dir"]
    adapting = ["--adapt-epochs", "1", "--max-accuracy-drop", "100"]
    assert train([*small, str(tmp_path / "model"), *adapting]) == 0
    assert train(["--role", "evaluation", *small, str(tmp_path / "other")]) == 0
    words = [str(tmp_path / "model"), "--evaluation-model", str(tmp_path / "other"), "--control", "auto", "--classes",
             "identity_000,identity_003,1-2,4-6", "--attacks", "plg:steps=20,views=1,initial_candidates=20",
             "--images-per-class", "2", "--skip-power", "--output-dir", str(tmp_path / "audit")]  # fmt: skip
    assert main(words) in (0, 4)
    assert "training the undefended control, once" in capsys.readouterr().out
    report = LeakageReport.load(tmp_path / "audit")
    assert report.labels == [0, 3, 1, 2, 4, 5, 6]
    (control,) = report.power
    model = tmp_path / "audit" / "control-model"
    assert control.digest == network_digest(HFTarget.from_pretrained(str(model)).module)
    assert HFTarget.from_pretrained(str(model)).describe("").defense == "none"
    assert control.difference is not None
    assert control.difference.by_identity == {}
    assert report.verdict.sentences[1].startswith("The undefended control gives ")
    assert (tmp_path / "audit" / "control" / report.attacks[0].name / "reconstructions.safetensors").is_file()

    assert main([*words, "--resume"]) in (0, 4)
    shown = capsys.readouterr().out
    assert "training the undefended control" not in shown
    assert shown.count("7 of 7 classes were finished before") == 2
    assert LeakageReport.load(tmp_path / "audit").power == report.power

    own = [*words[:4], str(model), *words[5:-1], str(tmp_path / "own"), "--generator", "ridge"]
    assert main(own) in (0, 4)
    first, second = (load_file(tmp_path / "own" / name / "model.safetensors") for name in ("ridge", "control/ridge"))
    assert not torch.equal(first["weight"], second["weight"])
    assert LeakageReport.load(tmp_path / "own").power[0].difference is not None
    weights = load_file(model / "model.safetensors")
    save_file({name: 1.01 * one for name, one in weights.items()}, model / "model.safetensors", {"format": "pt"})
    assert main([*words, "--resume"]) == 2
    assert "control/plg" in (said := capsys.readouterr().err)
    assert "was begun with other weights of the target" in said


@pytest.mark.parametrize("words", [[], ["here", "--target", "there"]])
def test_the_model_is_named_once(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "pass the model under attack once" in capsys.readouterr().err


def test_private_images_among_the_public_ones_are_told(caplog: pytest.LogCaptureFixture) -> None:
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2)
    private = PrivateImages("private", images, labels, files=("a",), held_files=("b",))
    for files, told in (("cde", False), ("abz", True)):
        recipe.warn_of_private(PublicImages([0] * 3, 4, files=files), private)
        assert ("2 of the 3 public images are private images" in caplog.text) is told


def test_a_control_is_evaluated(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([target, ONLY, "--control", target]) == 2
    assert "--control compares what is recognized" in capsys.readouterr().err
    with pytest.raises(ValueError, match="pass control, too"):
        AuditRecipe(model=target, control_prior=tiny_generator("dcgan"))
