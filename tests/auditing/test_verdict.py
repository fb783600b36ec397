"""The verdict: leaks, found nothing although it would have, or no power; the same in every renderer."""

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calor_hf.auditing.html import to_html
from calor_hf.auditing.several_reports import merge_reports
from calor_hf.auditing.verdict import concluded
from calor_hf.core.report import EMBEDDING, HEADLINE, MATCH, DataInfo, LeakageReport, NetworkInfo, PowerCheck, guesses
from calor_hf.metrics import Measure, mean_over_identities
from tests.auditing.made_up import (
    PEOPLE,
    POWER,
    attack,
    check,
    images,
    network,
    people,
    report,
    share,
    with_embedding,
)  # fmt: skip
from tests.auditing.renderers import check_rendered, said

NONE = [0.0] * PEOPLE
LEAK, J = attack("plg", [1.0] * PEOPLE, NONE), network()


def test_nothing_is_found_only_with_power() -> None:
    found = report().verdict
    assert (found.kind, found.reasons, found.attack, found.measure) == ("found nothing", [], "ppa", HEADLINE)
    assert found.sentences[0].startswith("This audit found nothing, and would have found")
    assert (
        "Leakage share: 0.0 % of what could be found (reconstructions guided by the truth: 80.0 %)." in found.sentences
    )
    assert found.sentences[1] == "20 of 64 people were attacked, by the attack ppa."


def test_the_one_image_that_an_attacker_would_submit_is_told_by_the_measure_that_leads() -> None:
    def guessed(leading: str, hits: int) -> Measure:
        values = {label: float(label < hits) for label in range(PEOPLE)}
        return mean_over_identities(guesses(leading), "share", "leakage", values, 200)

    known = LEAK.measures, LEAK.chance_levels["samples of the prior"]
    measures = [*known[0], guessed(EMBEDDING, 3), guessed(HEADLINE, 12)]
    chance = {"samples of the prior": [*known[1], guessed(EMBEDDING, 2), guessed(HEADLINE, 1)]}
    found = report([dataclasses.replace(LEAK, measures=measures, chance_levels=chance)])
    expected = "by how sure the attacked model is, 12 of 20 people are recognized; by chance 5.0 %."
    assert sum(line.endswith(expected) for line in found.verdict.sentences) == 1
    check_rendered(found)


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "blind evaluation model": ({"networks": {"evaluation_model": network(0.02)}}, "recognizes 2.0 %"),
    "evaluation model that saw its test": (
        {"networks": {"evaluation_model": dataclasses.replace(network(), seen=7)}}, "was trained on 7 of the held-out"
    ),
    "untested evaluation model": ({"networks": {"evaluation_model": NetworkInfo("J")}}, "was not tested"),
    "no evaluation model": ({"networks": {}}, "was not tested"),
    "two held-out images": ({"networks": {"evaluation_model": network(1.0, count=1)}}, "recognizes 100.0 %"),
    "useless target": ({"utility": [share("train_accuracy", 0.016)]}, "recognizes 1.6 % of the images"),
    "unknown target": ({"utility": []}, "recognizes – of the images"),
    "unconvinced target": ({"attacks": [attack("ppa", NONE, NONE, target_confidence=0.01)]}, "did not convince"),
    "no confidence": ({"attacks": [attack("ppa", NONE, NONE, target_confidence=float("nan"))]}, "did not convince"),
    "three steps": ({"attacks": [attack("ppa", NONE, NONE, effort=0.005)]}, "with 0.5 % of their sources' effort"),
    "one attack convinces, another has effort": (
        {"attacks": [attack("ppa", NONE, NONE, effort=0.1), attack("auto", NONE, NONE, target_confidence=0.1)]},
        "did not convince",
    ),
    "fast": ({"attacks": [attack("auto", NONE, NONE, settings={"fast": True})]}, "fast mode"),
    "one person": ({"attacks": [attack("ppa", [0.0], [0.0])]}, "over 1 people says nothing"),
    "chance unknown": ({"attacks": [attack("ppa", NONE, NONE, chance_levels={})]}, "chance level is unknown"),
    "chance saturated": ({"attacks": [attack("ppa", [0.6] * PEOPLE, [0.6] * PEOPLE)]}, "no room for a difference"),
    "power not measured": ({"power": []}, "not measured"),
    "loop not measured": ({"power": POWER[:2]}, "not measured"),
    "prior of blotches": ({"power": [POWER[0], check("prior", 0.01), POWER[2]]}, "cannot draw these people"),
    "low resolution": ({"power": [check("resolution", 0.05), *POWER[1:]]}, "prior of larger images"),
    "guide finds nothing": ({"power": [*POWER[:2], check("guided", 0.01)]}, "even when the truth guides it"),
    "control finds nothing": ({"power": [*POWER, check("control", 0.02)]}, "do not find the people of an undefended"),
    "ceiling of few people": (
        {"power": [PowerCheck("guided", images([0.9], 10), people([0.9], 10), 0.0, 0.0)]}, "Remedy: attack more people"
    ),
    "ceiling unknown": ({"power": [check("guided", 0.9, float("nan"))]}, "by chance –"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_each_precondition_is_needed(name: str) -> None:
    changes, reason = BROKEN[name]
    found = report(**changes).verdict
    assert found.kind == "inconclusive"
    assert reason in "\n".join(found.reasons)
    assert found.sentences[0].startswith("Inconclusive: ")


def test_few_images_exclude_little() -> None:
    # Four of twenty people are seen in three of ten images, as by chance; the ceiling is hardly above that.
    some = [0.3] * 4 + [0.0] * 16
    power = [POWER[0], check("prior", 0.1), check("guided", 0.1)]
    found = report([attack("ppa", some, some[::-1])], power=power).verdict
    assert (found.kind, len(found.reasons)) == ("inconclusive", 1)
    assert "The interval reaches" in found.reasons[0]


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        ([attack("plg", [1.0], [0.0], 20)], "leaks 1 of 1 training identities: in 100.0 % of 20 rebuilt images"),
        ([attack("auto", NONE, NONE, parts=["gmi"]), LEAK], "leaks its training identities: in 100.0 % of 200"),
        ([attack("auto", [0.9] * 10, [0.1] * 10, 20, parts=list("abcd"))], "in 90.0 % of 200 rebuilt images"),
        ([attack("auto", [1.0] * 3 + [0.0] * 97, [0.0] * 100, 20)], "leaks 3 of 100 training identities: in 3.0 %"),
    ],
)
def test_evidence_is_not_called_chance(attacks: list[Any], said: str) -> None:
    found = report(attacks)
    assert found.verdict.kind == "leaks"
    assert said in found.verdict.sentences[0]
    assert found.strongest is attacks[-1]


def test_one_person_in_five_images_is_neither_chance_nor_a_leak() -> None:
    # One image of six, the person's or one of five by chance, could be the one that is hit.
    found = report([attack("plg", [1.0], [0.0], 5)]).verdict
    assert found.kind == "inconclusive"
    assert "in 100.0 % of 5 rebuilt images of 1 people" in found.sentences[0]


def test_an_evaluation_model_with_a_favorite_is_no_evidence() -> None:
    # Whatever is drawn, the evaluation model names the first person in most images.
    favorite = [0.9] + [0.0] * 19
    assert report([attack("ppa", [1.0] + [0.0] * 19, favorite)]).verdict.kind != "leaks"
    # All images of one person are alike and hit by chance, as those of other people do.
    level = {"reconstructions of other people": [images([0.0, 1.0] + [0.0] * 18)]}
    assert report([attack("ppa", [1.0] + [0.0] * 19, NONE, chance_levels=level)]).verdict.kind != "leaks"


def test_the_independent_network_leads_and_both_are_shown() -> None:
    found = with_embedding([0.9] * PEOPLE, [0.2] * PEOPLE)
    assert (found.verdict.kind, found.verdict.measure) == ("leaks", EMBEDDING)
    assert "in 20.0 % of 200 rebuilt images of 20 people, the embedding recognized" in found.verdict.sentences[0]
    assert "did not learn the private images" in found.verdict.sentences[0]
    assert any(
        line.startswith("For comparison: the evaluation model recognized the right person in 90.0 %")
        and line.endswith("It is a same-data model, which tends to overstate.")
        for line in found.verdict.sentences
    )
    blind = with_embedding([0.9] * PEOPLE, NONE, accuracy=0.1)
    assert (blind.verdict.kind, blind.verdict.measure) == ("leaks", HEADLINE)
    assert "By a same-data evaluation model alone" in blind.verdict.sentences[0]


def test_more_than_the_evaluation_model_can_know_is_said_in_the_headline() -> None:
    found = report([attack("plg", [0.6] * PEOPLE, NONE)], networks={"evaluation_model": network(0.47)})
    assert found.verdict.kind == "leaks"
    assert "more than the 47.0 % of real held-out images" in found.verdict.sentences[0]
    assert "transferred adversarial features" in found.verdict.sentences[0]
    assert any("transferred adversarial features" in line for line in found.caveats)


def test_the_known_truth_leads() -> None:
    one = attack("plg", [0.5] * PEOPLE, NONE, lead=MATCH)
    both = dataclasses.replace(one, measures=[*one.measures, images([1.0] * PEOPLE)])
    data = DataInfo("d", 64, 100, 640, drawn=True)
    assert (
        report([both], data=data)
        .verdict.sentences[0]
        .startswith(
            "The model leaks its training identities: in 50.0 % of 200 rebuilt images of 20 people, the person drawn"
        )
    )
    assert report([both]).verdict.measure == HEADLINE  # photographs have no known truth


@pytest.mark.parametrize(
    ("low", "high", "people", "said"),
    [
        (0.4, 0.6, 20, " [+40.0, +60.0], so this model leaks less."),
        (-0.1, 0.6, 20, " [-10.0, +60.0], so no difference is resolved."),
        (-0.6, -0.4, 20, " [-60.0, -40.0], so this model leaks more."),
        (0.4, 0.6, 5, " (too few people for an interval)."),
    ],
)
def test_the_control_is_a_paired_difference(low: float, high: float, people: int, said: str) -> None:
    control = check("control", 0.6)
    difference = dataclasses.replace(control.images, value=0.1, low=low, high=high, identities=people)
    found = report(power=[*POWER, dataclasses.replace(control, difference=difference)]).verdict
    text = "The undefended control gives 60.0 %; control minus model, by person: +10.0 points"
    assert found.sentences[1] == f"{text}{said}"


@pytest.mark.parametrize("name", ["", *BROKEN])
def test_every_renderer_says_the_same(name: str) -> None:
    check_rendered(report(**BROKEN[name][0] if name else {}))


def test_neither_names_nor_paths_are_in_verdict_and_caveats() -> None:
    for name, (changes, _) in BROKEN.items():
        one = report(**changes)
        renamed = dataclasses.replace(
            one,
            target=dataclasses.replace(one.target, name="/secret/model"),
            data=dataclasses.replace(one.data, name="/secret/data"),
            label_names=[f"secret {label}" for label in one.labels],
            networks={role: dataclasses.replace(net, name="/secret") for role, net in one.networks.items()},
        )
        assert "secret" not in "\n".join(said(concluded(renamed))), name


@st.composite
def made_up_audits(draw: st.DrawFn) -> tuple[LeakageReport, bool]:
    """A made-up report, and whether every precondition of finding nothing holds."""

    def usually(good: Any, *others: Any) -> Any:
        return draw(st.sampled_from([good] * 9 + list(others)))

    shares = usually([0.0] * 8, [0.1] * 8, [0.0] * 5, [1.0] * 3, [1.0] * 8, [1.0, 0.5] + [0.0] * 6)
    names = usually(["prior", "guided"], ["control"], ["guided"], ["prior"], [])
    power = [check(name, usually(0.9, 0.1, 0.0)) for name in names]
    chance, tries, fast, known = usually(0.0, 0.1, 0.5), usually(20, 10, 1), usually(False, True), usually(True, False)
    accuracy, other, learned = usually(1.0, 0.7, 0.02), draw(st.sampled_from([None, 0.1, 0.95])), draw(st.booleans())
    fit, sure, confidence, effort = (
        usually(1.0, 0.4, 0.0),
        usually(1.0, 0.5),
        usually(0.9, 0.3, 0.0),
        usually(1.0, 0.01),
    )
    none = [chance] * len(shares)
    one = attack("ppa", shares, none, tries, target_confidence=confidence, effort=effort, settings={"fast": fast})
    networks = {"evaluation_model": network(accuracy)}
    if other is not None:
        networks["embedding"] = network(other, same_data=learned)
        levels = [*one.chance_levels["samples of the prior"], images(none, tries, EMBEDDING)]
        one.measures.append(images(shares, tries, EMBEDDING))
        one = dataclasses.replace(one, chance_levels={"samples of the prior": levels})
    one = one if known else dataclasses.replace(one, chance_levels={})
    utility = [share("train_accuracy", fit), share("train_confidence", sure)]
    clear = [one.images.low > max(2 * one.chance, one.chance + 0.05) for one in power]
    holds = (
        len(shares) >= 6 and known and chance < 0.5 and not fast and fit >= 0.5 and confidence >= 0.5 * sure
        and effort >= 0.2 and (accuracy >= 0.8 or (other == 0.95 and not learned))
        and all(clear) and any(one.name in ("guided", "control") for one in power)
    )  # fmt: skip
    return report([one], networks=networks, utility=utility, power=power), holds


SWEEP = settings(deadline=None, derandomize=True, database=None)


@settings(SWEEP, max_examples=100)
@given(audit=made_up_audits())
def test_no_made_up_audit_flatters(audit: tuple[LeakageReport, bool]) -> None:
    found, holds = audit
    if found.verdict.kind == "found nothing":
        assert holds
    shares = found.attacks[0].measures[0].by_identity.values()
    chance = found.attacks[0].chance_level(HEADLINE)
    if all(one == 1 for one in shares) and chance == 0 and len(shares) >= 6:
        assert found.verdict.kind == "leaks"
    assert (found.verdict.kind == "inconclusive") == bool(found.verdict.reasons)
    with_leak = concluded(dataclasses.replace(found, attacks=[*found.attacks, LEAK], networks={"evaluation_model": J}))
    assert with_leak.verdict.kind == "leaks"


@settings(SWEEP, max_examples=10)
@given(audit=made_up_audits())
def test_every_renderer_says_the_same_of_any_audit(audit: tuple[LeakageReport, bool]) -> None:
    check_rendered(audit[0])
    assert LeakageReport.from_json(audit[0].to_json()).verdict == audit[0].verdict


def test_merging_keeps_the_strongest_and_the_least_power() -> None:
    weak, strong = report([attack("auto", NONE, NONE)]), report([LEAK], power=[check("guided", 0.3)])
    merged = merge_reports([weak, strong])
    assert merged.strongest is not None
    assert merged.strongest.name == "plg"
    assert [one.images.value for one in merged.power if one.name == "guided"] == [0.3]


def test_the_axis_names_what_is_plotted() -> None:
    for one, title in (
        (report([attack("ppa", [0.2] * PEOPLE, NONE)]), "rebuilt images recognized by the evaluation model (%)"),
        (with_embedding([0.2] * PEOPLE, [0.2] * PEOPLE), "rebuilt images recognized by the embedding (%)"),
    ):
        assert title in " ".join(re.findall(r"<!-- (.*?) -->", to_html(one)))


def test_an_embedding_that_learned_the_people_is_not_called_independent() -> None:
    found = with_embedding([0.9] * PEOPLE, [0.2] * PEOPLE)
    networks = {role: dataclasses.replace(one, same_data=True) for role, one in found.networks.items()}
    same = concluded(dataclasses.replace(found, networks=networks))
    assert same.verdict.measure == HEADLINE
    assert "did not learn" not in "\n".join([*same.verdict.sentences, same.caveats[-1]])
    assert any("Every network that evaluates learned the images" in line for line in same.caveats)
