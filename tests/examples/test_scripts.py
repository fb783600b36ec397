"""The short examples, run as a reader does."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest

from calor_hf.auditing.evaluation import Evaluator
from calor_hf.cli.main import main
from calor_hf.core.decoy_sentences import CONDITION
from tests.auditing.small_report import small_report
from tests.docs.blocks import check
from tests.hub.released_model import audit_of, saved_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *argv])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_push_shows_what_would_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved_model(tmp_path / "model")
    audit_of(model, tmp_path / "audit")
    run(monkeypatch, "push_to_hub.py", str(model), "me/model", str(tmp_path / "audit"))
    assert "Nothing was published" in capsys.readouterr().out


def test_audit_prints_the_measures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("calor_hf.recipes.audit.run_audit", lambda options: small_report(seed=options.seed))
    run(monkeypatch, "audit_model.py", "outputs/demo/calor", "outputs/audit-example")
    assert "adaptive attack_accuracy@1: 0.833" in capsys.readouterr().out


def test_commands_of_the_demo_are_understood() -> None:
    demo = runpy.run_path(str(EXAMPLES / "demo.py"))
    for command in (demo["DEAL"], *demo["COMMANDS"], demo["TABLE"]):
        check(["calor-hf", *shlex.split(command)])


@pytest.mark.slow
def test_demo_ends_with_table_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {
        "decoys": "--num-identities 4 --k 2",
        "train": "--num-train-epochs 1 --warmup-steps 0 --use-cpu --report-to none",
        "audit": "--attacks mode_ranking:steps=2 --classes 0-3 --images-per-class 2",
        "report": "",
    }

    def limited(words: list[str]) -> int:
        few = "--num-identities 4" if "--num-identities" in words else ""
        adapt = "--adapt-epochs 1 --rank 2 --max-accuracy-drop 100" if "calor" in words else ""
        return main([*words, *shlex.split(f"{few} {limits[words[0]]} {adapt if words[0] == 'train' else ''}")])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calor_hf.cli.main.main", limited)
    monkeypatch.setattr(Evaluator, "check_target", lambda self: None)  # models of a moment know no one
    limited(shlex.split(runpy.run_path(str(EXAMPLES / "demo.py"))["DEAL"]))
    run(monkeypatch, "demo.py")
    shown = capsys.readouterr().out
    assert "outputs/demo/people stays" in shown
    rows = [line.split()[-3:] for line in shown.splitlines() if line.startswith(("model ", "defense "))]
    assert rows[-2:] == [[f"outputs/demo/{name}" for name in ("undefended", "calor", "decoys")],
                         ["none", "calor", "decoys"]]  # fmt: skip
    assert CONDITION in shown
    assert (tmp_path / "outputs/demo/people.png").stat().st_size > 10_000


def test_train_refuses_what_the_command_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unrecognized arguments: --rnak 3"):
        run(monkeypatch, "train_calor.py", "--rnak", "3")


def test_compare_trains_the_reference_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calor_hf.recipes.runs.run_process", lambda argv, log: log.write_text(" ".join(argv)) and 2)
    with pytest.raises(RuntimeError, match=r"none-seed42 ended with status 2: .*--defense none --seed 42"):
        run(monkeypatch, "compare_defenses.py", "--num-train-epochs", "1")
