"""`calor-hf plan` as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest

from calor_hf.cli.main import main as calor_hf
from calor_hf.generators.dcgan import DCGAN, DCGANConfig
from calor_hf.recipes.plan import Part, Plan, duration

SMALL = ["--num-identities", "4", "--use-cpu", "--report-to", "none", "--warmup-steps", "0"]


def planned(folder: Path, command: str, words: list[str], *own: str) -> dict[str, Any]:
    file = folder / "plan.json"
    assert calor_hf(["plan", *own, "--json", str(file), command, *words]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def part(plan: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in plan["parts"] if one["name"] == name)
    return dict(found)


def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "--num-train-epochs", "2", "--adapt-epochs", "1", "--max-accuracy-drop", "100"]
    output = tmp_path / "out"
    plan = planned(tmp_path, "train", [*words, "--output-dir", str(output)])
    assert not output.exists()
    shown = capsys.readouterr().out
    assert "at its peak" in shown
    assert "the adapt stage stops by rule" in shown
    assert calor_hf(["train", *words, "--output-dir", str(output)]) == 0
    made = json.loads((output / "metrics.json").read_text())
    for stage, steps in made["steps"].items():
        assert part(plan, stage)["passes"]["model_backward"] == steps * 32
    assert plan["disk_bytes"] > (output / "model.safetensors").stat().st_size
    assert plan["memory_bytes"] > 2**20


def test_processes_share_the_steps(tmp_path: Path) -> None:
    words = [*SMALL, "--defense", "none", "--num-train-epochs", "4", "--output-dir", str(tmp_path / "out")]
    shared = planned(tmp_path, "train", words, "--processes", "2")
    fit = next(one for one in shared["parts"] if one["passes"].get("model_backward"))
    assert fit["passes"]["model_backward"] % (2 * 32) == 0  # whole batches of both
    assert shared["processes"] == 2
    assert any("communication costs nothing" in line for line in shared["assumptions"])


def test_audit(target: str, tmp_path: Path) -> None:
    words = [
        "--target",
        target,
        "--reconstructions-only",
        "--generator",
        "renderer",
        "--attacks",
        "gmi",
        "plg",
        "--budget",
        "0.01",
        "--classes",
    ]
    words += ["0-1,3", "--images-per-class", "2", "--output-dir", str(tmp_path / "out")]
    plan = planned(tmp_path, "audit", words)
    assert not (tmp_path / "out").exists()
    assert calor_hf(["audit", *words]) in (0, 4)
    for name in ("gmi", "plg"):
        spent = json.loads((tmp_path / "out" / name / "attack.json").read_text())["cost"]
        expected = part(plan, name)["passes"]
        assert {key: spent[key] for key in expected if key != "discriminator_passes"} == {
            key: value for key, value in expected.items() if key != "discriminator_passes"
        }
    assert [one["name"] for one in plan["parts"]] == ["starting", "loading", "gmi", "plg"]
    assert plan["seconds"] == pytest.approx(sum(one["seconds"] for one in plan["parts"]))


@pytest.mark.slow
def test_an_audit_of_drawn_people_counts_judge_and_judging(tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    assert calor_hf(["train", *SMALL, "--num-train-epochs", "1", "--defense", "none", "--output-dir", str(drawn)]) == 0
    words = [str(drawn), "--attacks", "plg", "--classes", "0-1", "--budget", "0.005", "--output-dir"]
    plan = planned(tmp_path, "audit", [*words, str(tmp_path / "out")])
    first, then = ["starting", "loading", "evaluation model"], ["plg", "evaluating", "power"]
    assert [one["name"] for one in plan["parts"]] == [*first, *then]
    assert not (tmp_path / "out").exists()
    DCGAN(DCGANConfig(width=4)).save_pretrained(tmp_path / "prior")
    (tmp_path / "plan.json").unlink()
    plan = planned(tmp_path, "audit", [*words, str(tmp_path / "out"), "--generator", str(tmp_path / "prior")])
    assert [one["name"] for one in plan["parts"]] == [*first, "network of attributes", *then]


@pytest.mark.slow
def test_prior(tmp_path: Path) -> None:
    words = ["--settings", "steps=40", "width=4", "batch_size=8", "discriminator_steps=2", "--image-size", "16"]
    plan = planned(tmp_path, "prior", [*words, "--output-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    assert part(plan, "training")["passes"] == {"real_images": 40 * 2 * 8}
    assert plan["disk_bytes"] > 0
    assert plan["memory_bytes"] > 2**20
    (tmp_path / "plan.json").unlink()
    words = ["--settings", "width=4", "batch_size=8", "--minutes", "0.1", "--image-size", "16"]
    plan = planned(tmp_path, "prior", words)
    assert any(line.startswith("chosen for 0.1 minutes: width=4 ") for line in plan["assumptions"])
    assert part(plan, "training")["passes"]["real_images"] % 8 == 0
    assert calor_hf(["plan", "--processes", "2", "prior", *words]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0", "train"], "--processes must be >= 1"),
        (["train", "--defense", "calorr"], "Did you mean 'calor'?"),
        (["audit", "nowhere", "--attacks", "gmii"], "Did you mean 'gmi'?"),
        (["audit", "./nowhere"], "nowhere"),
        (["prior", "--prior", "gmii"], "--prior must be one of"),
        (["prior", "--import", "ffhq.pkl"], "nothing to plan"),
        (["audit", "x", "--images-per-class", "0"], "images_per_class"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert calor_hf(["plan", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["push"], ["audit", "x", "--nothing"]])
def test_what_no_parser_knows_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        calor_hf(["plan", *words])


def test_a_plan_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    file.write_text("mine")
    assert calor_hf(["plan", "--json", str(file), "train"]) == 2
    assert "pass another --json" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_sums_and_units() -> None:
    parts = [Part("a", 60, 20, {"x": 2}), Part("b", 1.5), Part("c", 7200, None, {"x": 3, "y": 1})]
    plan = Plan("train", parts, 2**20, 0, "cpu", 4, ["nothing"])
    assert (plan.total.seconds, plan.total.at_least, plan.total.passes) == (7261.5, 7221.5, {"x": 5, "y": 1})
    table = plan.table()
    assert "20.0 s to 60.0 s" in table
    assert "8.07 of devices" in table
    assert duration(7200) == "2.0 h"
    assert duration(120) == "2.0 min"
