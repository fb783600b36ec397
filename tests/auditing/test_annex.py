"""The annex for a data protection officer: every field is filled or unanswered, and decoys keep their secret."""

import dataclasses
import re

import pytest

from calor_hf.auditing.annex import Annex, Declarations, annex_of
from calor_hf.core.report import EMBEDDING, LeakageReport, Measure
from tests.auditing import made_up

QUESTIONS = {
    "what was tried": (4, "(iv) model inversion"),
    "what leaked": (7, "verdict"),
    "who is worst off": (7, "worst single person"),
    "what was not tested": (4, "(ii) exfiltration"),
    "when to test again": (11, "retest 1"),
    "when the next test is due": (6, "next test"),
}
ANSWERS = {one.name: f"answer on {one.name}" for one in dataclasses.fields(Declarations)}
DECLARED = Declarations(**ANSWERS | {"release": "scores"})  # type: ignore[arg-type]


def known(report: LeakageReport, declared: Declarations = DECLARED) -> Annex:
    return annex_of(report, declared)


def text_of(annex: Annex, name: str) -> str:
    return next(line.text for section in annex.sections for line in section.lines if line.name == name)


def leaking() -> LeakageReport:
    shares = [0.0] * 19 + [0.9]
    return made_up.report([made_up.attack("ppa", [0.2] * 20, [0.0] * 20), made_up.attack("plg", shares, [0.1] * 20)])


def test_thirteen_sections_hold_each_question_s_answer() -> None:
    annex = known(leaking())
    assert [one.number for one in annex.sections] == list(range(1, 14))
    for number, name in QUESTIONS.values():
        section = annex.sections[number - 1]
        rows = [row[0] for table in section.tables for row in table.rows]
        assert any(line.name == name and line.text for line in section.lines) or name in rows, name


def test_each_declaration_is_a_field_and_each_empty_one_is_unanswered() -> None:
    annex = annex_of(leaking(), Declarations())
    page, plain = annex.to_html(), annex.to_dict()
    for one in dataclasses.fields(Declarations):
        name = one.name.replace("_", " ")
        assert name in annex.unanswered
        assert getattr(DECLARED, one.name) in known(leaking()).to_html()
    fields = [line for section in plain["sections"] for line in section["fields"]]
    assert [line["name"] for line in fields if line["text"] is None] == annex.unanswered
    assert page.count("unanswered</dd>") == len(annex.unanswered)


def test_the_worst_person_is_the_worst_of_any_attack() -> None:
    # By hand: plg recognizes 90 % of the last person's images; ppa 20 % of everyone's.
    text = text_of(known(leaking()), "worst single person")
    assert text == "class 19: 90.0 % of the images of plg are recognized; by chance 10.0 % of the worst person's"


def test_a_more_open_release_than_was_tested_says_so() -> None:
    report = made_up.report([made_up.attack("brep", [0.0] * 20, [0.0] * 20)])
    opened = dataclasses.replace(DECLARED, release="open weights")
    assert "no attack had the weights" in text_of(annex_of(report, opened), "tested for this release")
    with pytest.raises(StopIteration):
        text_of(annex_of(leaking(), opened), "tested for this release")


def test_what_was_not_measured_is_not_run() -> None:
    member = Measure("membership_auc", 0.6, "share", "leakage", 10, 10, 0.5, 0.7)
    for others, status in (([], "not run"), ([member], "executed in part")):
        rows = known(made_up.report(other_threats=others)).sections[3].tables[0].rows
        assert rows[1][:2] == ["(i) membership inference", status]
        assert [row[1] for row in rows[2:]] == ["not run", "not run", "not run", "executed", "not run"]


def test_no_name_of_a_person_enters_it() -> None:
    report = dataclasses.replace(leaking(), label_names=[f"Jane Doe {n}" for n in range(20)])
    annex = known(report)
    assert "Jane" not in annex.to_html() + str(annex.to_dict())


def test_with_decoys_it_does_not_tell_who_is_private() -> None:
    texts = [
        re.sub(r"[0-9a-f]{64}", "", known(made_up.report_with_decoys(private)).to_html())
        for private in (set(range(20)), set(range(20, 40)))
    ]
    assert texts[0] == texts[1]
    assert "not stated" in texts[0]


def test_a_report_of_few_classes_with_decoys_is_refused() -> None:
    with pytest.raises(ValueError, match="audit more classes"):
        known(made_up.report_with_decoys(set(range(5)), classes=10))


def test_each_judge_has_a_row() -> None:
    rows = known(made_up.with_embedding([0.5] * 20, [0.2] * 20)).sections[6].tables[0].rows
    shown = {row[0]: row[2] for row in rows}
    assert shown["rebuilt images recognized by the embedding"].startswith("20.0 %")
    assert EMBEDDING == "embedding_accuracy@1"
