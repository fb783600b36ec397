"""Contract of every registered study; a new file in `studies` is tested here without being named."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from calor_hf.cli.train import main as train
from calor_hf.recipes import runs as recipe_runs
from examples.paper.__main__ import main as paper
from examples.paper.lab import TRAIN, TrainingFailedError
from examples.paper.run_study import page
from examples.paper.studies import STUDIES
from examples.paper.study import Cell

NAMES = STUDIES.names()
TRAINED: list[str] = []  # folders, in the order of training


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> object:
    """Trainings do not start a process each, which would import everything again; else they are what they are."""

    def run(words: Sequence[str], log: Path) -> int:
        program, options = words[1 : 1 + len(TRAIN)], words[1 + len(TRAIN) :]
        assert tuple(program) == TRAIN
        TRAINED.append(options[options.index("--output-dir") + 1])
        return train([*options, "--use-cpu"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_runs, "run_process", run)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained models that all studies share."""
    return tmp_path_factory.mktemp("models") / "models"


def words_for(name: str, folder: Path, models: Path) -> list[str]:
    words = [name, "--quick", "--output-dir", str(folder), "--models-dir", str(models)]
    return [*words, "--report-to", "none"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_study_runs_and_goes_on(name: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, folder = STUDIES.get(name), tmp_path / "study"
    words = words_for(name, folder, models)
    assert paper(words) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert kind.claim in shown
    assert "The numbers mean nothing" in shown
    found = json.loads((folder / "study.json").read_text())
    assert found["study"] == name
    assert found["version"]
    assert found["cells"]
    assert all("failed" not in cell["numbers"] for cell in found["cells"])
    files = {cell["cell"]: folder / "cells" / f"{cell['cell']}.json" for cell in found["cells"]}
    for cell in found["cells"]:  # each is complete by itself
        record = json.loads(files[cell["cell"]].read_text())
        assert record["numbers"] == cell["numbers"]
        assert record["settings"] == found["settings"]
        assert record["options"]["seed"] == 0
        assert record["version"] == found["version"]
        assert record["seconds"] == cell["seconds"] > 0
    with Image.open(folder / "study.png") as figure:
        assert figure.width > 600
        assert len(set(figure.convert("L").resize((200, 150)).tobytes())) > 5  # something is drawn
    table = (folder / "study.md").read_text()
    assert table == page(kind, found) + "\n"  # from the JSON alone
    assert "nan" not in table

    # Not over someone's files, and not with other settings.
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert paper(words) == 2
    assert "is not empty" in capsys.readouterr().err
    assert paper([*words, "--resume", "--seed", "7"]) == 2
    assert "was begun with" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before

    # One cell is lost: that one is measured again, and nothing else.
    last = list(files.values())[-1]
    kept = {file: file.stat().st_mtime_ns for file in files.values() if file != last}
    last.unlink()
    trained = len(TRAINED)
    assert paper([*words, "--resume"]) == 0
    again = json.loads((folder / "study.json").read_text())
    assert {file: file.stat().st_mtime_ns for file in files.values() if file != last} == kept
    assert [c["numbers"] for c in again["cells"]] == [c["numbers"] for c in found["cells"]]  # the same seed
    assert len(TRAINED) == trained


def test_failed_cells_are_named_and_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, measured, failing = STUDIES.get("head_rank"), list[str](), [True]

    def measure(self: object, cell: Cell) -> dict[str, int]:
        measured.append(cell.name)
        if failing and len(measured) == 2:
            raise TrainingFailedError("the loss is not finite")
        return {"value": 1}

    monkeypatch.setattr(kind, "measure", measure)
    monkeypatch.setattr(kind, "draw", lambda found, figure: None)
    monkeypatch.setattr(kind, "table", lambda found: "")
    words = words_for("head_rank", tmp_path / "study", tmp_path / "models")
    assert paper(words) == 1
    failed = measured[1]
    assert f"Failed:\n\n- {failed}: the loss is not finite" in capsys.readouterr().out
    failing.clear()
    measured.clear()
    assert paper([*words, "--resume"]) == 0
    assert measured == [failed]
    assert "Failed" not in capsys.readouterr().out


def test_every_study_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert paper([]) == 0
    overview = capsys.readouterr().out
    for name in NAMES:
        kind = STUDIES.get(name)
        assert f"  {name} " in overview
        assert kind.claim in overview
        assert kind.source
        assert kind.__doc__
        kind.config_class.from_dict(kind.quick)
        assert kind.config_class.from_dict(json.loads(json.dumps(kind.config_class().to_dict())))
        with pytest.raises(SystemExit):
            paper([name, "--help"])
        shown = capsys.readouterr().out
        for field in dataclasses.fields(kind.config_class):
            assert f"  {field.name} = {field.default!r}\n      {field.metadata['help']}\n" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rank_swep"], "unknown study or command 'rank_swep'. Did you mean 'rank_sweep'?"),
        (["rank_sweep", "--settings", "rank=3"], "has no setting rank"),
        (["rank_sweep", "--settings", "ranks=0"], "ranks must be whole numbers >= 1"),
        (["rank_sweep", "--settings", "attacks=plgg"], "Did you mean 'plg'?"),
        (["rank_sweep", "--defense", "mid"], "--defense: set for each run by this command"),
        (["rank_sweep", "--no-such-option", "2"], "--no-such-option"),
        (["rank_sweep", "--dataset", "faces"], "pass a prior trained on public images"),
        (["rank_sweep", "--dataset", "faces", "--prior", "gan"], "no evaluation model: train one"),
        (["rank_sweep", "--seed", "-1"], "--seed must be >= 0"),
        (["rank_sweep", "--resume", "--overwrite"], "pass one"),
        (["gradient_magnitude", "--settings", "attack=brep"], "uses no gradient"),
        (["gradient_magnitude", "--settings", "attack=plg:samples=2,smoothing=noise"], "samples must be 1"),
        (["confidence", "--num-train-epochs", "4"], "the training has 4 epochs, the study needs 35"),
        (["target_confidence", "--model", "x"], "excludes a start from random weights"),
        (["target_confidence", "--settings", "pretrainings=given"], "starts from --model; pass one"),
        (["robustness", "--settings", "attacks=pgdd"], "unknown attack 'pgdd'"),
        (["inversion_space", "--settings", "quantile=1"], "expected quantile in (0, 1)"),
        (["toy_2d", "--settings", "steps=0"], "steps >= 1"),
    ],
)
def test_what_cannot_work_is_refused_before_work(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = paper([*words, "--output-dir", str(tmp_path / "out")])
    except SystemExit as stop:  # an option that no one knows
        status = int(stop.code or 0)
    assert status == 2
    shown = capsys.readouterr()
    assert message in shown.err + shown.out
    assert not (tmp_path / "out" / "cells").exists()


def test_the_docs_list_every_study() -> None:
    text = (Path(__file__).parents[3] / "docs" / "studies.md").read_text()
    for name in NAMES:
        kind = STUDIES.get(name)
        assert f"| `{name}` | {kind.claim} | {kind.source} |" in text
        assert f"python -m examples.paper {name}\n" in text
