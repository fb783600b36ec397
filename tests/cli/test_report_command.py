"""`calor-hf report` as a user types it."""

import dataclasses
import html
from pathlib import Path

import pytest
import torch

from calor_hf.auditing._store import save_reconstruction
from calor_hf.auditing.gallery import gallery_of
from calor_hf.auditing.html import to_html
from calor_hf.cli.main import main as calor_hf
from calor_hf.core.files import weights_digest
from calor_hf.core.reconstruction import Cost, Reconstruction
from tests.auditing import made_up
from tests.auditing.small_report import attack, small_report


def test_pages_are_made_again_with_the_pictures_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_report().save(tmp_path / "report.json")
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    found = Reconstruction(torch.rand(6, 3, 8, 8), labels, torch.rand(6, 2), torch.rand(6), Cost())
    (tmp_path / "adaptive").mkdir()
    save_reconstruction(found, tmp_path / "adaptive" / "reconstructions.safetensors")
    assert calor_hf(["report", str(tmp_path)]) == 4  # three people say nothing
    shown = capsys.readouterr().out
    assert "in 83.3 % of 6 rebuilt images" in shown
    assert "others may recover more" in shown
    assert (tmp_path / "report.html").read_text().count("<img") == 6
    assert "| adaptive | attack_accuracy@1 |" in (tmp_path / "report.md").read_text()


def test_a_page_with_private_pictures_is_not_replaced_by_one_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_report().save(tmp_path / "report.json")
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    page = to_html(small_report(), gallery_of({}, images, torch.tensor([0]), {}))
    (tmp_path / "report.html").write_text(page)
    assert calor_hf(["report", str(tmp_path)]) == 2
    assert "shows private images, and the new page would not" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == page
    assert calor_hf(["report", str(tmp_path), "--output-dir", str(tmp_path / "other")]) == 4


def test_several_reports_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = small_report()
    for name, one in zip("ab", whole.attacks, strict=True):
        dataclasses.replace(whole, attacks=[one]).save(tmp_path / name / "report.json")
    assert calor_hf(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output-dir", str(tmp_path / "both")]) == 4
    assert "by 2 attacks" in capsys.readouterr().out
    assert (tmp_path / "both" / "report.html").is_file()


def test_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = [0.0] * 8
    made_up.report([made_up.attack("ppa", none, none)]).save(tmp_path / "a.json")
    made_up.report([made_up.attack("ppa", [1.0] * 8, none)]).save(tmp_path / "b.json")
    assert calor_hf(["report", "--diff", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "B leaks more" in capsys.readouterr().out


def test_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, topk_correct in enumerate(([1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0])):
        small_report(attacks=[attack("weak", topk_correct)], seed=seed).save(tmp_path / f"{seed}.json")
    assert calor_hf(["report", "--seeds", *(str(tmp_path / f"{seed}.json") for seed in range(3))]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert "3 audits (seeds 0, 1, 2), 3 people × 2 images each" in lines[0]
    # 1/6, 3/6 and 5/6: mean 1/2, standard deviation 1/3.
    assert next(line.split() for line in lines if "accuracy@1" in line) == [
        "attack_accuracy@1", "50.0", "%", "33.3", "%", "16.7", "%", "83.3", "%",
    ]  # fmt: skip
    small_report(labels=[0, 1, 3]).save(tmp_path / "other.json")
    for others, message in (
        ([], "two reports or more"),
        (["other.json"], "differ in people (3 of 4: 0, 1, 2 and"),
        (["1.json", "0.json"], "two of the reports are the same audit"),
    ):
        assert calor_hf(["report", "--seeds", str(tmp_path / "0.json"), *(str(tmp_path / o) for o in others)]) == 2
        assert message in capsys.readouterr().err


def test_several_models_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_report().save(tmp_path / "a" / "report.json")
    target = dataclasses.replace(small_report().target, defense="someone else's", name="theirs")
    other = small_report(target=target, images_per_class=9, attacks=[attack("weak", [1, 0, 0, 0, 0, 0])])
    other.save(tmp_path / "b.json")
    assert calor_hf(["report", str(tmp_path / "a"), "--others", str(tmp_path / "b.json")]) == 4
    shown = capsys.readouterr().out.splitlines()
    titles = ("model  ", "defense  ", "test accuracy  ", "verdict  ", "rebuilt images ")
    column = [line.split("  ")[-1].strip() for line in shown if line.startswith(titles)]
    assert column == ["theirs", "someone else's", "90.0 %", "inconclusive", "16.7 % (0.0–50.0 %)"]
    assert "theirs differs from the first in: images of each person (2 and 9)" in shown[-1]
    page = html.unescape((tmp_path / "a" / "report.html").read_text())
    said = [*other.verdict.sentences, *other.verdict.reasons, *other.caveats]
    assert all(f"<li>{line}</li>" in page for line in said)
    assert "<td>16.7 % (0.0–50.0 %)</td>" in page
    alone = (tmp_path / "a" / "report.html").read_text()
    assert "weak (someone else's, inconclusive)" in alone.replace("&#x27;", "'")
    assert calor_hf(["report", str(tmp_path / "a")]) == 4
    assert "someone else" not in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pass the folder of an audit"),
        (["nowhere"], "no report at"),
        (["--diff", "nowhere", "b"], "no report at"),
        (["a", "--diff", "b", "c"], "one of these alone"),
        (["--seeds", "a", "b", "--output-dir", "c"], "are about one report"),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert calor_hf(["report", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_annex_is_written_with_the_answers_of_its_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up.report().save(tmp_path / "report.json")
    assert calor_hf(["report", str(tmp_path), "--annex"]) == 0
    assert f"fill in {tmp_path / 'annex.yaml'}" in capsys.readouterr().out
    form = tmp_path / "annex.yaml"
    form.write_text(form.read_text().replace("\nnext_test:", "\nnext_test: 2027-01-31"))
    mine = form.read_bytes()
    assert calor_hf(["report", str(tmp_path), "--annex"]) == 0
    assert "2027-01-31" in (tmp_path / "annex.html").read_text()
    assert "2027-01-31" in (tmp_path / "annex.json").read_text()
    assert form.read_bytes() == mine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("release: everyone", "release must be one of internal, labels, scores, open weights"),
        ("realease: scores", "got realease"),
        ("purpose: [a, b]", "purpose must be text"),
        ("- purpose", "got ['purpose']"),
        ("purpose: {", "is no YAML"),
    ],
)
def test_a_damaged_form_is_refused(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made_up.report().save(tmp_path / "report.json")
    (tmp_path / "annex.yaml").write_text(text)
    assert calor_hf(["report", str(tmp_path), "--annex"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "annex.html").exists()


def test_verify_compares_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    digest = weights_digest(tmp_path / "model")
    command = ["report", str(tmp_path), "--verify", str(tmp_path / "model")]
    whole = made_up.report()
    for weights, status, message in (
        (digest, 0, "are those that were attacked"),
        ("0" * 64, 2, "about other weights"),
        (None, 2, "does not name the attacked weights"),
    ):
        target = dataclasses.replace(whole.target, weights=weights)
        dataclasses.replace(whole, target=target).save(tmp_path / "report.json")
        assert calor_hf(command) == status
        assert message in "".join(capsys.readouterr())
