"""Comparing defenses, tuned and with fixed settings: the bookkeeping with a stand-in for training, and a real run."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calor_hf.cli.compare import main as compare
from calor_hf.cli.list import main as list_command
from calor_hf.recipes import compare as recipe
from tests.processes.launch import LAUNCHER, SOCKET
from tests.processes.server import Server, wait_for

SMALL = ["--num-identities", "4", "--num-train-epochs", "1", "--adapt-epochs", "1", "--use-cpu", "--report-to", "none",
         "--max-accuracy-drop", "100", "--warmup-steps", "0"]  # fmt: skip

# Stands in for `calor-hf train`: writes the metrics of a made-up model, whose accuracy falls with strength and rank.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
assert words[:2] == ["-m", "calor_hf.cli.train"], words
value = lambda name: words[words.index(name) + 1]
setting = lambda name: next(w for w in words if w.startswith(name + "=")).partition("=")[2]
folder, defense, seed = Path(value("--output-dir")), value("--defense"), int(value("--seed"))
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "calls", "a") as calls:
    calls.write(folder.name + (" resumed" if "--resume" in words else "") + "\\n")
if os.environ.get("STOP_AT") == folder.name and "--resume" not in words:
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
    sys.exit(130)  # as train does after Ctrl-C
if defense == "bido" or folder.name in os.environ.get("FAIL", "").split():
    print("the loss is not finite")
    sys.exit(1)
accuracy, rank = 0.99, 10
if defense == "mid":
    accuracy -= 0.3 * float(setting("beta"))
if defense in ("loft", "calor"):
    rank = int(setting("rank"))
    accuracy -= 0.1 / rank
found = {"accuracy": accuracy - 0.001 * seed, "validation_accuracy": accuracy, "confidence": 0.7,
         "train_confidence_correct": 0.9}
layers = [{"name": "head", "in_features": 64, "out_features": 10, "rank": rank}]
(folder / "metrics.json").write_text(json.dumps({
    "measured": {"first": found, "result": found}, "train_seconds": 2.0 + seed, "peak_memory_bytes": 2**30,
    "dataset": "made up", "images": 100, "classes": 10, "settings": {"rank": rank} if rank < 10 else {},
    "head": {"layers": layers, "head_rank": rank},
}))
right = [image < 100 * found["accuracy"] for image in range(100)]
predictions = [image % 10 if ok else 10 for image, ok in enumerate(right)]
if defense != "label_smoothing":
    (folder / "test_predictions.json").write_text(json.dumps(
        {"labels": [image % 10 for image in range(100)], "predictions": predictions}
    ))
"""


@pytest.fixture
def launcher(tmp_path: Path) -> list[str]:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    return ["--launcher", f"'{sys.executable}' '{script}'", "--num-identities=10"]


def calls(folder: Path) -> list[str]:
    return (folder / "runs" / "calls").read_text().splitlines()


def test_strengths_are_tuned_and_the_table_says_where_that_failed(
    tmp_path: Path, launcher: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    defenses = ["mid:sample_at_eval=false", "bido", "label_smoothing"]  # what is not the strength leaves it to be tuned
    assert compare(["--defenses", *defenses, "--seeds", "1", "2", "--output-dir", str(out), *launcher]) == 1
    shown = capsys.readouterr().out
    assert "1 failed; the same command with --resume trains these again" in shown
    assert "\nbido, every strength: the loss is not finite\n" in shown
    found = json.loads((out / "comparison.json").read_text())
    assert not found["complete"]
    assert found["target_validation_accuracy"] == pytest.approx(0.97)
    rows = {row["name"]: row for row in found["defenses"]}
    assert list(rows) == ["none", *defenses]

    # mid: 0.99 - 0.3 beta is 0.97 ± 0.01 for beta in [0.033, 0.1]: the default, 0.1, is just near enough.
    mid = rows["mid:sample_at_eval=false"]
    assert (mid["defense"], mid["setting"]) == ("mid", "beta")
    assert mid["matched"]
    assert mid["validation_accuracy"][0] == pytest.approx(0.99 - 0.3 * mid["value"])
    assert mid["trials"][-1]["value"] == mid["value"]
    assert mid["seeds"] == [1, 2]
    assert mid["test_accuracy"] == pytest.approx([mid["validation_accuracy"][0] - 0.001 * seed for seed in (1, 2)])
    # Of 100 images the reference has 99 right with either seed.
    right = [math.ceil(100 * accuracy) for accuracy in mid["test_accuracy"]]
    expected = (sum(right) - 2 * 99) / 200
    difference = mid["accuracy_difference"]
    assert difference["accuracy_difference"] == pytest.approx(expected)
    assert difference["accuracy_difference_low"] <= expected <= difference["accuracy_difference_high"] <= 0
    assert set(rows["none"]["accuracy_difference"].values()) == {0}
    assert rows["label_smoothing"]["accuracy_difference"] is None  # its runs left no predictions
    # bido: every training fails; label smoothing: nothing changes its accuracy, so it is nowhere near.
    assert rows["bido"]["failed"]
    assert rows["bido"]["errors"][0] == "the loss is not finite"
    assert not rows["label_smoothing"]["matched"]
    assert rows["label_smoothing"]["value"] == min(t["value"] for t in rows["label_smoothing"]["trials"])  # strongest

    table = (out / "comparison.md").read_text()
    assert "| none | - | 99.00 [99.00, 99.00] | - | 98.85 [98.80, 98.90] | - | 0.900 | 10 (64 → 10) | 1.00 |" in table
    assert f"| {100 * expected:+.2f} [" in table
    assert "| bido | failed at 0.5, " in table
    assert "**no**" in table
    assert "must not be compared" in table
    assert "Failed: bido, every strength: the loss is not finite" in table
    assert table.splitlines()[0] in shown
    with Image.open(out / "comparison.png") as figure:
        assert figure.width > 1000
    assert not list(out.rglob("checkpoint-*"))


def test_failed_seeds_are_named_and_trained_again(
    tmp_path: Path, launcher: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["--defenses", "mid:beta=0.06", "loft:rank=8", "--seeds", "1", "2", "3", "--output-dir", str(out)]
    monkeypatch.setenv("FAIL", "mid-beta=0.06-seed2 mid-beta=0.06-seed3 none-seed3")
    assert compare([*words, *launcher]) == 1
    lines = [f"{name}: the loss is not finite" for name in
             ("none, seed 3", "mid:beta=0.06, seed 2", "mid:beta=0.06, seed 3")]  # fmt: skip
    assert capsys.readouterr().out.splitlines()[-3:] == lines
    found = json.loads((out / "comparison.json").read_text())
    none, mid, loft = found["defenses"]
    assert not found["complete"]
    assert (mid["seeds"], mid["failed_seeds"]) == ([1], dict.fromkeys("23", "the loss is not finite"))
    # 0.972 is near enough to 0.97, but whether the two others would have been is not known.
    assert [row["matched"] for row in (none, mid, loft)] == [False, False, True]
    table = (out / "comparison.md").read_text()
    assert "| mid:beta=0.06 (1 of 3 seeds) | - | 97.20 | **no** |" in table
    assert all(f"Failed: {line}" in table for line in lines)

    made = calls(out)
    monkeypatch.delenv("FAIL")
    assert compare([*words, *launcher, "--resume"]) == 0
    assert calls(out)[len(made) :] == ["none-seed3", "mid-beta=0.06-seed2", "mid-beta=0.06-seed3"]
    found = json.loads((out / "comparison.json").read_text())
    assert found["complete"]
    assert [row["seeds"] for row in found["defenses"]] == [[1, 2, 3]] * 3
    assert "ailed" not in (out / "comparison.md").read_text()


def test_interrupted_comparison_goes_on_where_it_was(
    tmp_path: Path, launcher: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["--defenses", "transfer", "trap_mid", "--trials", "1", "--output-dir", str(out), *launcher]
    monkeypatch.setenv("STOP_AT", "trap_mid-weight=0.2-seed42")
    assert compare(words) == 130
    assert "Go on with the same command and --resume" in capsys.readouterr().err
    before = calls(out)
    assert not json.loads((out / "comparison.json").read_text())["complete"]
    assert compare(words) == 2
    assert "is not empty; pass another --output-dir, --resume" in capsys.readouterr().err
    assert compare([*words, "--resume", "--seed-of-no one", "1"]) == 2  # an option that train does not know
    capsys.readouterr()
    assert compare([*words, "--resume", "--learning-rate", "1"]) == 2
    assert (
        "were made with the options --num-identities=10, now they are --num-identities=10 --learning-rate 1"
        in capsys.readouterr().err
    )
    assert compare([*words, "--resume"]) == 0
    assert calls(out)[len(before) :] == ["trap_mid-weight=0.2-seed42 resumed"]
    assert json.loads((out / "comparison.json").read_text())["complete"]
    assert compare([*words, "--overwrite"]) == 130  # from the start: it stops again


def fails(*words: Any) -> None:
    raise KeyError("no such thing")


def test_numbers_are_there_if_the_figure_fails(
    tmp_path: Path, launcher: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["--defenses", "loft:rank=8", "mid:beta=0.1", "--output-dir", str(out), *launcher]
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "draw_comparison", fails)
        assert compare(words) == 3
    assert (
        f"the numbers are in {out}/comparison.json, but drawing the figure failed (KeyError" in capsys.readouterr().err
    )
    assert json.loads((out / "comparison.json").read_text())["complete"]
    assert "| mid:beta=0.1 |" in (out / "comparison.md").read_text()
    made = calls(out)
    assert compare([*words, "--resume"]) == 0
    assert calls(out) == made
    assert (out / "comparison.png").is_file()


def test_tuning_on_several_seeds(tmp_path: Path, launcher: list[str]) -> None:
    out = tmp_path / "out"
    words = ["--defenses", "mid", "--seeds", "1", "2", "3", "--tuning-seeds", "2", "--output-dir", str(out), *launcher]
    assert compare([*words, "--accuracy-drop", "0.5", "--tolerance", "0.2"]) == 0
    found = json.loads((out / "comparison.json").read_text())
    assert found["tuning_seeds"] == [1, 2]
    row = found["defenses"][1]
    # 0.985 ± 0.002: the default 0.1 gives 0.96, so a second value is tried; both on two seeds, the chosen one on three.
    assert len(row["trials"]) >= 2
    assert row["seeds"] == [1, 2, 3]
    made = [name for name in calls(out) if name.startswith("mid")]
    assert len(made) == 2 * len(row["trials"]) + 1
    assert "(tuned on seed 1, 2)" in (out / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tuning-seeds", "2"], "--tuning-seeds must be between 1 and the 1 of --seeds"),
        (["--defenses", "midd"], "--defenses: unknown defense 'midd'. Did you mean 'mid'?"),
        (["--trials", "0"], "--trials must be >= 1"),
        (["--seed", "3"], "--seed: set for each run by this command"),
        (["--defense", "mid"], "--defense: set for each run by this command"),
        (["--defenses", "mid:beta"], "--defenses mid:beta: expected a setting as name=value, got 'beta'"),
        (["--defenses", "mid:betta=3"], "has no setting betta (did you mean beta?)"),
        (["--defenses", "calor:rank=0"], "rank must be a whole number >= 1, got 0"),
        (["--rank", "3"], "rank=3: settings of one defense"),
        (["--adapt-epochs", "-1"], "adapt_epochs must be > 0, got -1"),
        (["--resume", "--overwrite"], "pass one"),
        (["--defenses", "mid", "loft:rank=200"], "--defenses loft:rank=200: "),
        (["--defenses", "bido:layers=stem"], "--defenses bido:layers=stem: "),
    ],
)
def test_bad_options_are_refused_before_any_run(
    tmp_path: Path, launcher: list[str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert compare(["--output-dir", str(out), *launcher, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (out / "runs").exists()


def test_fixed_settings_are_trained_and_not_tuned(tmp_path: Path, launcher: list[str]) -> None:
    out = tmp_path / "out"
    fixed = [f"loft:rank={rank},activation={name}" for name in ("tanh", "relu") for rank in (2, 4)]
    bido = "bido:layers=resnet.encoder.stages.0,resnet.encoder.stages.1,lambda_out=1"
    words = ["--defenses", *fixed, bido, "--seeds", "1", "2"]
    assert compare([*words, "--output-dir", str(out), *launcher]) == 1  # bido fails
    rows = json.loads((out / "comparison.json").read_text())["defenses"]
    assert [row["name"] for row in rows] == ["none", *words[1:6]]
    assert all(row["trials"] == [] and row["value"] is None for row in rows[:5])
    assert [row["validation_accuracy"][0] for row in rows[:5]] == pytest.approx([0.99, 0.94, 0.965, 0.94, 0.965])
    assert [row["head_rank"] for row in rows[:5]] == [[10, 10], [2, 2], [4, 4], [2, 2], [4, 4]]
    assert [row["train_confidence"] for row in rows[:5]] == [[0.9, 0.9]] * 5
    table = (out / "comparison.md").read_text()
    row = "| loft:rank=2,activation=relu | - | 94.00 [94.00, 94.00] | **no** | 93.85 [93.80, 93.90] | -5.00 ["
    assert row in table
    with Image.open(out / "comparison.png") as figure:
        assert figure.width > 1000
    made = calls(out)
    assert made.count("loft-rank=2-activation=relu-seed2") == 1
    assert compare([*words, "--output-dir", str(out), *launcher, "--resume"]) == 1
    assert calls(out) == [*made, *made[-2:]]  # what failed is tried again


def test_real_comparison(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv(SOCKET, server.address)
    words = ["--defenses", "loft", "--trials", "1", "--launcher", LAUNCHER, "--output-dir", str(out), *SMALL]
    assert compare(words) == 0
    rows = json.loads((out / "comparison.json").read_text())["defenses"]
    assert [row["name"] for row in rows] == ["none", "loft"]
    assert rows[1]["head"]["head_rank"] == rows[1]["value"] == 2
    assert all(value > 2**26 for row in rows for value in row["peak_memory_bytes"])
    assert (out / "runs" / "loft-rank=2-seed42" / "model.safetensors").is_file()


def test_ctrl_c_stops_the_run_and_the_comparison(tmp_path: Path, server: Server) -> None:
    out = tmp_path / "out"
    words = ["compare", "--defenses", "loft", "--launcher", LAUNCHER, "--output-dir", str(out), *SMALL]
    log = out / "runs" / "none-seed42.log"
    stopped = server.interrupt(
        [*words, "--num-train-epochs", "400"], tmp_path, lambda _: log.is_file() and "loss" in log.read_text()
    )
    assert stopped.status == 130, stopped.shown
    assert "--resume" in stopped.shown
    wait_for(lambda: list((out / "runs" / "none-seed42").glob("checkpoint-*")))


def test_list_shows_names_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_command([]) == 0
    assert "label_smoothing" in capsys.readouterr().out
    assert list_command(["bido"]) == 0
    shown = capsys.readouterr().out
    assert "arXiv:2206.05483" in shown
    assert "lambda_out = 0.5" in shown
    assert list_command(["bidoo"]) == 2
    assert "Did you mean 'bido'?" in capsys.readouterr().err
