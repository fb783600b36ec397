"""After the last step the model is saved first and nothing loses it; what can be known before is refused before."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from calor_hf import CALoRForImageClassification
from calor_hf.cli.train import main
from calor_hf.core.finishing import Finishing, FinishingError
from calor_hf.hub.push import check_token
from calor_hf.recipes import train as recipe
from calor_hf.recipes.train_arguments import acting
from calor_hf.training.calor_trainer import CALoRTrainer
from calor_hf.training.trainer import DefenseTrainer
from tests.training.small_task import assert_same_weights, defense_trainer

SMALL = [
    "--num-identities", "4", "--num-train-epochs", "1", "--adapt-epochs", "1", "--undefended-epochs", "1",
    "--max-accuracy-drop", "100", "--rank", "2", "--use-cpu", "--report-to", "none", "--warmup-steps", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "out"
    assert main([*SMALL, "--output-dir", str(folder)]) == 0
    return folder


def fails(*args: Any, **kwargs: Any) -> None:
    raise KeyError("no such\nthing")


@pytest.mark.parametrize(
    ("owner", "name", "step", "has_numbers"),
    [
        (CALoRTrainer, "measure", "measuring it", False),
        (recipe, "draw_curves", "drawing the curves", True),
        (recipe, "write_record", "writing its numbers", False),
        (DefenseTrainer, "push_to_hub", "pushing it", True),
    ],
)
def test_model_is_there_whatever_fails_after_training(
    owner: Any, name: str, step: str, has_numbers: bool, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    shutil.copytree(done, out)
    (out / "model.safetensors").unlink()
    monkeypatch.setattr(recipe, "check_token", lambda *words: None)
    words = [*SMALL, "--output-dir", str(out), "--resume", *(["--push-to-hub"] if "push" in name else [])]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        assert main(words) == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    failed = f"the model is trained and saved in {out}, but {step} failed (KeyError: 'no such\\nthing')"
    assert said == f"calor-hf train: {failed}; {recipe.FINISH_AGAIN}"
    CALoRForImageClassification.from_pretrained(out)
    before, after = (load_file(folder / "model.safetensors") for folder in (done, out))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (out / "metrics.json").is_file() == has_numbers
    if name == "measure":
        assert main(words) == 0
        measured = [json.loads((folder / "metrics.json").read_text())["measured"] for folder in (done, out)]
        assert measured[0] == measured[1]


def test_trainer_saves_what_it_cannot_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = defense_trainer(tmp_path, "loft", "resnet", save_strategy="no")
    monkeypatch.setattr(DefenseTrainer, "measure_result", fails)
    with pytest.raises(
        FinishingError, match=r"saved in .*, but measuring it failed \(KeyError.*resume_from_checkpoint"
    ):
        run.train()
    type(run.model).from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "evaluations"), [("loft", 2), ("calor", 3)])  # the first before training
def test_last_step_is_saved_if_its_evaluation_fails(name: str, evaluations: int, tmp_path: Path) -> None:
    seen: list[Any] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"own": 1 / (evaluations - len(seen))}

    run = defense_trainer(tmp_path, name, "resnet", eval_strategy="epoch", save_strategy="no")
    run.compute_metrics = metrics
    with pytest.raises(FinishingError, match=r"saved in .*, but evaluating it failed \(ZeroDivisionError: .*; when"):
        run.train()
    assert_same_weights(type(run.model).from_pretrained(tmp_path), run.model)


def test_steps_after_one_that_failed_are_done_and_a_full_disk_speaks_for_itself() -> None:
    finishing, seen = Finishing("all is saved in x", "do it again"), []
    with finishing.step("drawing"):
        fails()
    with finishing.step("writing"):
        seen.append("written")
    assert seen == ["written"]
    with pytest.raises(FinishingError, match=r"^all is saved in x, but drawing failed \(KeyError: .*\); do it again$"):
        finishing.end()
    with pytest.raises(KeyboardInterrupt), finishing.step("waiting"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["--undefended-epochs", "2"],
            "undefended belongs to another run: stage 'fit' lasted from step 0 to 3, now",
        ),
        (["--num-identities", "5"], "there were 4 classes, now there are 5"),
        (["--rank", "1"], "rank was 2, now it is 1"),
        (["--num-train-epochs", "2"], "stage 'fit' lasted from step 0 to 3, now 'fit' from 0 to 6, and step 6 is done"),
    ],
)
def test_resume_of_another_run_is_refused(
    changes: list[str], message: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
    assert main([*SMALL, "--output-dir", str(done), "--resume", *changes]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")} == before


def test_output_folder_among_the_data_or_in_the_place_of_the_model(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "faces")
    weights = (done / "undefended" / "model.safetensors").read_bytes()
    for words, message in (
        (["--dataset", tmp_path / "faces", "--output-dir", tmp_path / "link" / "out"], "is in the data folder"),
        (["--dataset", tmp_path / "faces", "--output-dir", tmp_path / "faces"], "is in the data folder"),
        (["--model", done / "undefended", "--output-dir", done / "undefended", "--overwrite"], "it starts from; pass"),
        (["--output-dir", tmp_path / "file"], "cannot write to the output folder (File exists); pass another one"),
        (["--output-dir", tmp_path / "file", "--resume"], "cannot write to the output folder (File exists)"),
        (["--output-dir", tmp_path / "file" / "out"], "cannot write to the output folder (Not a directory)"),
    ):
        assert main(acting([*SMALL, *map(str, words)])) == 2
        assert message in capsys.readouterr().err
    assert (done / "undefended" / "model.safetensors").read_bytes() == weights
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert main([*SMALL, "--undefended-epochs", "0", "--output-dir", str(tmp_path / "out")]) == 2
    assert "has room for 1 MiB, and the run writes at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("repo", "role", "message"),
    [
        ("me/model", "write", None),
        ("lab/model", "fineGrained", None),
        ("model", "write", None),
        ("you/model", "write", "the token may write to repositories of me, lab, not to you/model"),
        ("me/model", "read", "the token may only read"),
        ("me/my model", "write", "Repo id must use alphanumeric"),
    ],
)
def test_who_may_push_is_known_before_training(
    repo: str, role: str, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": role}}}
    monkeypatch.setattr(HfApi, "whoami", lambda *args, **kwargs: account)
    if message is None:
        check_token("hf_x", repo)
        return
    with pytest.raises((PermissionError, ValueError), match=message):
        check_token("hf_x", repo)
