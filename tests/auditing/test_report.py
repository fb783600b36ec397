"""The leakage report as a file: read back, changed, cut off, newer, merged, compared, in words."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from calor_hf.auditing import LeakageReport
from calor_hf.auditing.markdown import to_markdown
from calor_hf.auditing.parts import of_parts
from calor_hf.auditing.report import anonymous
from calor_hf.auditing.report_diff import compare_reports
from calor_hf.auditing.verdict import limits, verdict
from calor_hf.metrics import Evidence, Measure, View
from tests.auditing.small_report import attack, small_report


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
        (edited(schema=2), r"schema 2, this version of calor_hf \(.*\) reads up to 1; install a newer one"),
        (edited(schema="new"), "schema new"),
    ],
)
def test_what_is_no_whole_report_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        LeakageReport.load(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"report\.json: "):
        LeakageReport.load(tmp_path)


def test_parts_of_an_audit_merge() -> None:
    report = small_report()
    parts = [dataclasses.replace(report, attacks=[one]) for one in report.attacks]
    assert LeakageReport.merge(parts).to_json() == report.to_json()
    assert LeakageReport.merge([report, parts[0]]).to_json() == report.to_json()
    with pytest.raises(ValueError, match="differ in seed"):
        LeakageReport.merge([report, dataclasses.replace(report, seed=1)])
    with pytest.raises(ValueError, match="'weak' comes twice, with other numbers"):
        LeakageReport.merge([report, dataclasses.replace(report, attacks=[attack("weak", [1] * 6)])])
    with pytest.raises(ValueError, match="no reports to merge"):
        LeakageReport.merge([])


def test_the_worst_attack_makes_the_headline() -> None:
    report = small_report()
    assert report.worst().name == "adaptive"
    assert report.worst().floor("attack_accuracy@1") == pytest.approx(1 / 6)
    lines = verdict(report)
    assert "strongest of 2 attacks (adaptive) rebuilt 6 images of 3 people" in lines[0]
    assert "recognized the right person in 83 % of them" in lines[0]
    assert lines[1] == "3 of 3 people were recognized in at least one of 2 tries."
    assert "reach 16.7 %. So the model gives its training people away" in lines[2]
    weak = verdict(small_report(attacks=[attack("weak", [0, 0, 0, 1, 0, 0])]))
    assert "no more than chance gives; that is no proof of safety" in weak[2]


def test_the_union_of_attacks_is_the_headline_with_its_own_floor() -> None:
    chance_levels = {
        "samples of the prior": [
            Measure.of_identities("identities_recognized", "share", "leakage", {0: 0, 1: 1, 2: 0}, 6)
        ]
    }
    union = attack(
        "auto", [1, 0, 0, 0, 0, 1], parts=["plg", "ppa"], chance_levels=chance_levels, settings={"fast": True}
    )
    report = small_report(attacks=[attack("weak", [1] * 6), union])
    assert report.ensemble is report.attacks[1]
    lines = verdict(report)
    assert "Worst case over 2 attacks: an independent network recognized 2 of 3 people in at least one of 4" in lines[0]
    assert "hit 33.3 % of the people in as many tries. So this audit found no more than chance" in lines[1]
    assert "stopped at each person as soon as the attacked model agreed" in "\n".join(limits(report))
    assert "66.7 % by auto in A" in compare_reports(report, report)
    assert small_report().ensemble is None


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


def test_limits_say_what_was_not_done() -> None:
    text = "\n".join(limits(small_report()))
    for part in (
        "25 % of their published effort",
        "99.7 %",
        "One evaluation model alone",
        "the very program",
        "3 of 4 people",
    ):
        assert part in text
    assert "No attack that knows the defense" not in text
    full = small_report(
        budget=1.0, attacks=[attack("weak", [0] * 6)], networks={"evaluation_model": "x", "embedding": "y"}
    )
    text = "\n".join(limits(full))
    assert "No attack that knows the defense was run" in text
    assert "was not tried on held-out images" in text
    assert "One evaluation model alone" not in text
    assert "published effort" not in text


def test_an_audit_without_accuracy_says_nothing() -> None:
    report = small_report(attacks=[attack("weak", [0] * 6, measures=[])])
    with pytest.raises(ValueError, match="no attack of this report has a number"):
        report.worst()
    assert "says nothing" in verdict(report)[0]


def test_markdown_holds_every_number_and_hostile_names_stay_text() -> None:
    report = small_report(target={**small_report().target, "name": "a|b <script>alert(1)</script>"})
    text = to_markdown(report)
    assert "<script>" not in text
    assert "a\\|b &lt;script>" in text
    rows = [line for line in text.splitlines() if line.startswith("| adaptive")]
    assert rows[0].startswith("| adaptive | attack_accuracy@1 | 83.3 % |")
    assert "| 16.7 % | 6 | 3 |" in rows[0]
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| weak | ")}
    assert widths == {9, 5}  # numbers, and what it cost


def test_anonymous_names_nobody() -> None:
    report = anonymous(small_report())
    assert report.label_names == ["person 0", "person 1", "person 2"]
    assert "Ada" not in report.to_json()


def test_diff_says_what_the_people_resolve() -> None:
    first = small_report(attacks=[attack("weak", [1] * 6), attack("adaptive", [1, 0, 1, 0, 1, 0])])
    second = small_report(attacks=[attack("weak", [0] * 6), attack("adaptive", [0, 1, 1, 1, 1, 0])], seed=3)
    text = compare_reports(first, second)
    weak, adaptive = (line for line in text.splitlines() if line.startswith("  attack_accuracy@1"))
    assert "-100 points [-100, -100]: B leaks less  (3 people)" in weak
    assert "+16.7 points [+0, +50]: not resolved by these people" in adaptive
    assert "Mind: seed differs (0 and 3)." in text
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
