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

from calor_hf.auditing.caveats import caveats
from calor_hf.auditing.html import to_html
from calor_hf.auditing.several_reports import compare_reports, differences, merge_reports
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import LeakageReport, NetworkInfo, checksum
from calor_hf.core.report_text import summary, to_markdown
from calor_hf.metrics import Evidence, View
from calor_hf.metrics.parts import of_parts
from tests.auditing import made_up
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
    networks = {"evaluation_model": NetworkInfo("x"), "embedding": NetworkInfo("y", same_data=False)}
    target = dataclasses.replace(small_report().target, defense="none")  # an undefended model has nothing to know
    for full, first in ((small_report(attacks=[attack("weak", [0] * 6, prior="dcgan", effort=1.0)], networks=networks),
                         ["No attack that knows"]),
                        (small_report(attacks=[attack("weak", [0] * 6, prior="dcgan", effort=1.0)], networks=networks,
                                      target=target), [])):  # fmt: skip
        assert [line[:20] for line in full.caveats] == [
            "3 of 4 people were a", *first, "The evaluation model", "The embedding was no", "An audit shows what "
        ]  # fmt: skip


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


def test_an_audit_without_accuracy_says_nothing() -> None:
    report = small_report(attacks=[attack("weak", [0] * 6, measures=[])])
    assert report.strongest is None
    assert (report.verdict.kind, report.verdict.measure) == ("inconclusive", "")
    assert "says nothing" in report.verdict.sentences[0]


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
    none = [0.0] * 8
    first, second = (
        made_up.report([made_up.attack("ppa", ppa, none), made_up.attack("gmi", gmi, none)], seed=seed)
        for ppa, gmi, seed in (([1.0] * 8, [0.0, 1.0] * 4, 0), ([0.5] * 8, [1.0, 0.0] * 4, 3))
    )
    text = compare_reports(first, second)
    ppa, gmi = (line for line in text.splitlines() if line.startswith("  attack_accuracy@1"))
    assert "-50.0 points [-50.0, -50.0]: B leaks less  (8 people)" in ppa
    assert "not resolved by these people" in gmi
    assert "Note: seed differs (0 and 3)." in text
    assert "NOT COMPARABLE" not in text
    with pytest.raises(ValueError, match="about other people"):
        compare_reports(first, dataclasses.replace(first, labels=[*range(7), 9]))
    with pytest.raises(ValueError, match="no attack is in both"):
        compare_reports(first, made_up.report([made_up.attack("plg", [0.0] * 8, [0.0] * 8)]))


def test_diff_claims_nothing_from_two_people_without_power_or_with_other_settings() -> None:
    def text(shares: list[float], others: list[float], other: dict[str, Any], **more: Any) -> str:
        first = made_up.report([made_up.attack("ppa", shares, [0.0] * len(shares))])
        found = made_up.attack("ppa", others, [0.0] * len(shares), **other)
        return compare_reports(first, made_up.report([found], **more))

    two = text([1.0] * 2, [0.0] * 2, {})
    assert "-100 points: too few people for an interval" in two
    assert "leaks less" not in two
    powerless = text([0.0] * 20, [0.0] * 20, {"target_confidence": 0.1})
    assert "Neither audit had power" not in powerless
    networks = {"evaluation_model": made_up.network(0.02)}
    for other, more, said in (
        ({"prior_settings": {"width": 1}}, {}, "prior settings of ppa ({'width': '–'} and {'width': 1})"),
        ({"settings": {"steps": 1}}, {}, "settings of ppa ({'steps': '–'} and {'steps': 1})"),
        ({"effort": 0.1}, {}, "effort of ppa (1.0 and 0.1)"),
        ({}, {"networks": networks}, "evaluation model (J, 99.0 % right on held-out images and J, 2.0 % right"),
        ({}, {"images_per_class": 9}, "images of each person (5 and 9)"),
    ):
        differs = text([1.0] * 8, [0.0] * 8, other, **more)
        assert "NOT COMPARABLE" in differs
        assert said in differs
        assert "-100 points [-100, -100]: no claim, as the audits differ" in differs
        assert "leaks less" not in differs.replace("a weaker model leaks less", "")


def test_diff_minds_unequal_accuracy() -> None:
    weaker = small_report(utility=[dataclasses.replace(small_report().utility[0], value=0.8)])
    assert "more than a point apart" in compare_reports(small_report(), weaker)
    assert "  accuracy                    90.0 %    80.0 %" in compare_reports(small_report(), weaker).splitlines()
    assert "more than a point apart" not in compare_reports(small_report(), small_report())


def test_networks_priors_and_data_are_compared_by_content() -> None:
    def report(data: str, judge: str, prior: str, name: str = "here") -> LeakageReport:
        made = small_report(attacks=[attack("adaptive", [1, 1, 1, 0, 1, 1], prior_digest=prior)])
        networks = {role: dataclasses.replace(one, digest=judge, name=name) for role, one in made.networks.items()}
        return dataclasses.replace(
            made, data=dataclasses.replace(made.data, digest=data, name=name), networks=networks
        )  # fmt: skip

    first = report("a", "b", "c")
    assert differences(first, report("a", "b", "c", name="moved")) == []
    assert "prior digest" in "".join(differences(first, report("a", "b", "x")))
    assert "evaluation model" in "".join(differences(first, report("a", "x", "c")))
    with pytest.raises(ValueError, match="or other images; compare audits of the same"):
        compare_reports(first, report("x", "b", "c"))
