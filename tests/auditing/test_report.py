"""The leakage report as a file: read back, changed, cut off, newer, merged, compared, in words."""

import dataclasses
import html
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from calor_hf.auditing.html import to_html
from calor_hf.auditing.several_reports import compare_reports, merge_reports
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import LeakageReport, NetworkInfo, checksum
from calor_hf.core.report_text import caveats, summary, to_markdown, verdict
from calor_hf.metrics import Evidence, View, mean_over_identities
from calor_hf.metrics.parts import of_parts
from tests.auditing.small_report import attack, reports_with_every_caveat, small_report


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    report = small_report()
    report.save(tmp_path / "report.json")
    for path in (tmp_path, tmp_path / "report.json"):
        read = LeakageReport.load(path)
        assert read.to_json() == report.to_json()
        assert math.isnan(read.attacks[0].measures[2].value)
        assert read.attacks[1].measures[0].by_identity == {0: 1.0, 1: 0.5, 2: 1.0}
    assert "NaN" not in report.to_json()


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no report at .*; pass report\.json or the folder of an audit"):
        LeakageReport.load(tmp_path)


def edited(**changes: Any) -> str:
    return json.dumps({**json.loads(small_report().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (small_report().to_json()[:-40], "not JSON, or cut off"),
        ("[" * 100_000, "not JSON, or cut off"),
        ("[]", "fields schema and checksum are missing"),
        ("{}", "fields schema and checksum are missing"),
        (edited(seed=1), "was changed after it was written"),
        (edited(extra=1), "was changed after it was written"),
        (small_report().to_json().replace("0.8333333333333334", "0.3333333333333333"), "was changed"),
        (edited(schema=4), r"schema 4, this version of calor_hf \(.*\) reads schema 3; install a newer one"),
        (edited(schema=1), r"schema 1, this version of calor_hf \(.*\) reads schema 3; audit again"),
        (edited(schema="new"), "schema new"),
        (edited(created="\ud800"), "unpaired surrogate"),
    ],
)
def test_what_is_no_whole_report_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        LeakageReport.load(tmp_path)


def resealed(change: Callable[[dict[str, Any]], Any]) -> str:
    """A changed report with a valid checksum, as its author can make it."""
    content = json.loads(small_report().to_json())
    del content["schema"], content["checksum"]
    change(content)
    return json.dumps({"schema": 3, "checksum": checksum(content), **content})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.pop("attacks"), "attacks: Field required"),
        (lambda r: r.update(extra=1), "extra: Unexpected keyword argument, got 1"),
        (lambda r: r.update(seed=True), "seed: Input should be a valid integer, got True"),
        (lambda r: r.update(labels=[0]), "it has 1 labels and 3 names"),
        (lambda r: r.update(caveats=[1]), r"caveats\.0: Input should be a valid string, got 1"),
        (lambda r: r["target"].update(classes="4"), r"target\.classes: Input should be a valid integer, got '4'"),
        (lambda r: r["networks"].update(evaluation_model="x"), r"networks\.evaluation_model: "),
        (lambda r: r["attacks"][0].update(name="a/b"), r"attacks\.0\.name: not a valid attack name"),
        (lambda r: r["attacks"][0]["cost"].update(seconds=None), r"cost\.seconds: Input should be a valid number"),
        (lambda r: r["attacks"][0]["cost"].update(other=1), r"cost\.other: Unexpected keyword argument"),
        (lambda r: r["utility"][0].update(value=1e300), r"utility\.0\.value: must be at most 1e\+100"),
        (lambda r: r["utility"][0].update(direction="up"), r"direction: Input should be 'leakage', 'privacy' or"),
        (lambda r: r["utility"][0].update(by_identity={"x": 1}), "by_identity.*valid integer"),
    ],
)
def test_a_damaged_report_is_refused_with_the_place(change: Callable[[dict[str, Any]], Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LeakageReport.from_json(resealed(change))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"report\.json: "):
        LeakageReport.load(tmp_path)


def test_parts_of_an_audit_merge() -> None:
    report = small_report()
    parts = [dataclasses.replace(report, attacks=[one]) for one in report.attacks]
    assert merge_reports(parts).to_json() == report.to_json()
    assert merge_reports([report, parts[0]]).to_json() == report.to_json()
    with pytest.raises(ValueError, match="differ in seed"):
        merge_reports([report, dataclasses.replace(report, seed=1)])
    with pytest.raises(ValueError, match="'weak' appears twice, with different numbers"):
        merge_reports([report, dataclasses.replace(report, attacks=[attack("weak", [1] * 6)])])
    with pytest.raises(ValueError, match="no reports to merge"):
        merge_reports([])


def test_the_worst_attack_makes_the_headline() -> None:
    report = small_report()
    assert report.strongest is report.attacks[1]
    assert report.attacks[1].chance_level("attack_accuracy@1") == pytest.approx(1 / 6)
    lines = verdict(report)
    assert "strongest of 2 attacks (adaptive) rebuilt 6 images of 3 people" in lines[0]
    assert "recognized the right person in 83 % of them" in lines[0]
    assert lines[1] == "3 of 3 people were recognized in at least one of 2 tries."
    assert "in 16.7 % of the cases. The model leaks its training identities." in lines[2]
    weak = verdict(small_report(attacks=[attack("weak", [0, 0, 0, 1, 0, 0])]))
    assert "no more than chance; that does not prove the model safe" in weak[2]


def test_the_union_of_attacks_is_the_headline_with_its_own_floor() -> None:
    chance_levels = {
        "samples of the prior": [
            mean_over_identities("identities_recognized", "share", "leakage", {0: 0, 1: 1, 2: 0}, 6)
        ]
    }
    union = attack(
        "auto", [1, 0, 0, 0, 0, 1], parts=["plg", "ppa"], chance_levels=chance_levels, settings={"fast": True}
    )
    report = small_report(attacks=[attack("weak", [1] * 6), union])
    assert report.strongest is report.attacks[1]
    lines = verdict(report)
    assert "Worst case over 2 attacks: an independent network recognized 2 of 3 people in at least one of 4" in lines[0]
    assert "match 33.3 % of the people in as many tries. This audit found no more than chance" in lines[1]
    assert "66.7 % by auto in A" in compare_reports(report, report)


def test_what_each_part_adds() -> None:
    # Two parts, two tries each, at three people: the first alone hits person 0, both hit 1, no one 2.
    labels = torch.arange(3).repeat_interleave(4)
    hit = torch.tensor([1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]).bool()
    logits = torch.nn.functional.one_hot(torch.where(hit, labels, (labels + 1) % 3), 3).float()
    view = View("evaluation_model", logits, logits[:3], logits)
    images = torch.zeros(12, 3, 2, 2)
    evidence = Evidence(images, labels, images[:3], torch.arange(3), evaluation_model=view)
    found = {measure.name: measure for measure in of_parts(evidence, ["a", "b"])}
    assert found["attack_accuracy@1[a]"].by_identity == {0: 0.5, 1: 0.5, 2: 0}
    assert found["attack_accuracy@1[b]"].by_identity == {0: 0, 1: 0.5, 2: 0}
    assert found["identities_recognized[a]"].by_identity == {0: 1, 1: 1, 2: 0}
    assert found["identities_recognized[b]"].by_identity == {0: 0, 1: 1, 2: 0}
    assert found["identities_added[a]"].by_identity == {0: 1, 1: 0, 2: 0}
    assert found["identities_added[b]"].value == 0
    assert found["identities_added[b]"].images == 6
    assert of_parts(evidence, []) == []


def test_caveats_say_what_was_not_done() -> None:
    text = "\n".join(small_report().caveats)
    for part in (
        "weak ran with 25.0 % of its source's effort",
        "99.7 %",
        "A single evaluation model",
        "the program",
        "3 of 4 people",
    ):
        assert part in text
    assert "No attack that knows the defense" not in text
    networks = {"evaluation_model": NetworkInfo("x"), "embedding": NetworkInfo("y")}
    full = small_report(attacks=[attack("weak", [0] * 6, prior="dcgan", effort=1.0)], networks=networks)
    assert [line[:20] for line in full.caveats] == [
        "No attack that knows", "The evaluation model", "3 of 4 people were a", "No audit proves a mo"
    ]  # fmt: skip
    assert "was not tested on held-out images" in full.caveats[1]


def test_terminal_page_and_markdown_hold_the_same_caveats() -> None:
    # tests/hub holds the model card to the same list.
    for report in reports_with_every_caveat():
        found = re.findall(r"<li>(.*?)</li>", to_html(report).partition('<ul id="caveats">')[2].partition("</ul>")[0])
        assert [html.unescape(line) for line in found] == report.caveats
        lines = to_markdown(report).partition("## Before you rely on it\n")[2].partition("\n## ")[0].split("\n- ")
        assert [line.strip() for line in lines[1:]] == [markdown_text(line) for line in report.caveats]
        assert summary(report).splitlines()[-len(report.caveats) :] == [f"- {line}" for line in report.caveats]


def test_merged_parts_get_the_caveats_of_the_whole() -> None:
    report = small_report()
    weak, adaptive = (dataclasses.replace(report, attacks=[one]) for one in report.attacks)
    assert "No attack that knows the defense" in "\n".join(caveats(weak))
    merged = merge_reports([dataclasses.replace(weak, caveats=caveats(weak)), adaptive])
    assert merged.caveats == report.caveats


def test_diff_shows_the_caveats_of_one_report_alone() -> None:
    first, second = reports_with_every_caveat()
    lines = compare_reports(first, second).splitlines()
    a, b = lines.index("Caveats of A alone:"), lines.index("Caveats of B alone:")
    assert lines[a + 1 : b - 1] == [f"- {line}" for line in first.caveats if line not in second.caveats]
    assert lines[b + 1 :] == [f"- {line}" for line in second.caveats if line not in first.caveats]
    assert "Caveats" not in compare_reports(first, first)


def test_an_audit_without_accuracy_says_nothing() -> None:
    report = small_report(attacks=[attack("weak", [0] * 6, measures=[])])
    assert report.strongest is None
    assert "says nothing" in verdict(report)[0]


def test_markdown_holds_every_number_and_hostile_names_stay_text() -> None:
    report = small_report(target=dataclasses.replace(small_report().target, name="a|b <script>alert(1)</script>"))
    text = to_markdown(report)
    assert "<script>" not in text
    assert "a\\|b &lt;script&gt;" in text
    rows = [line for line in text.splitlines() if line.startswith("| adaptive")]
    assert rows[0].startswith("| adaptive | attack_accuracy@1 | 83.3 % |")
    assert "| 16.7 % | 6 | 3 |" in rows[0]
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| weak | ")}
    assert widths == {9, 5}  # numbers, and what it cost


def test_anonymous_names_nobody() -> None:
    report = small_report().anonymous()
    assert report.label_names == ["person 0", "person 1", "person 2"]
    assert "Ada" not in report.to_json()


def test_diff_says_what_the_people_resolve() -> None:
    first = small_report(attacks=[attack("weak", [1] * 6), attack("adaptive", [1, 0, 1, 0, 1, 0])])
    second = small_report(attacks=[attack("weak", [0] * 6), attack("adaptive", [0, 1, 1, 1, 1, 0])], seed=3)
    text = compare_reports(first, second)
    weak, adaptive = (line for line in text.splitlines() if line.startswith("  attack_accuracy@1"))
    assert "-100 points [-100, -100]: B leaks less  (3 people)" in weak
    assert "+16.7 points [+0, +50]: not resolved by these people" in adaptive
    assert "Note: seed differs (0 and 3)." in text
    assert "Worst case: 100.0 % by weak in A, 66.7 % by adaptive in B." in text
    with pytest.raises(ValueError, match="about other people"):
        compare_reports(first, small_report(labels=[0, 1, 3]))
    with pytest.raises(ValueError, match="no attack is in both"):
        compare_reports(first, small_report(attacks=[attack("third", [0] * 6)]))


def test_diff_minds_unequal_accuracy() -> None:
    weaker = small_report(utility=[dataclasses.replace(small_report().utility[0], value=0.8)])
    assert "more than a point apart" in compare_reports(small_report(), weaker)
    assert "  accuracy                    90.0 %    80.0 %" in compare_reports(small_report(), weaker).splitlines()
    assert "more than a point apart" not in compare_reports(small_report(), small_report())
