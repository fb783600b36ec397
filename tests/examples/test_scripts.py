"""The short examples, run as a reader does."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.auditing.small_report import small_report
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
    run(monkeypatch, "audit_model.py", "outputs/demo", "outputs/audit-example")
    assert "adaptive attack_accuracy@1: 0.833" in capsys.readouterr().out


def test_train_refuses_what_the_command_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"unrecognized arguments: --rnak 3"):
        run(monkeypatch, "train_calor.py", "--rnak", "3")


def test_compare_trains_the_reference_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calor_hf.recipes.runs.run_process", lambda argv, log: log.write_text(" ".join(argv)) and 2)
    with pytest.raises(RuntimeError, match=r"none-seed42 ended with status 2: .*--defense none --seed 42"):
        run(monkeypatch, "compare_defenses.py", "--num-train-epochs", "1")
