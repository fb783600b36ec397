"""The card: every number from a file, nothing that was not measured, and what a person wrote stays."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import markdown
import pytest
from huggingface_hub import ModelCard

from calor_hf.core.decoy_sentences import SENTENCES
from calor_hf.core.label_names import numbered, telling_names
from calor_hf.core.plain_text import markdown_text
from calor_hf.core.report import REPORT, LeakageReport
from calor_hf.hub.card import CardDetails, base_card, build_card
from calor_hf.hub.evidence import StaleRecordError, gather
from calor_hf.hub.release import Release, prepare_release
from calor_hf.modeling import defend
from tests.auditing.made_up import report_with_decoys
from tests.auditing.small_report import reports_with_every_caveat
from tests.hub.local_hub import check_card
from tests.hub.released_model import METHOD, SETTINGS, audit_of, record, saved_model, with_junk
from tests.tiny_models import tiny_base

DETAILS = CardDetails("demo", "me/demo", "apache-2.0")
ALWAYS = {"README.md", "config.json", "curves.png", "evidence.json", "model.safetensors", "preprocessor_config.json"}

NUMBER = r"\d+(?:\.\d+)?"


def release(model: Path, report: Path | None = None, **options: Any) -> Release:
    return prepare_release(model, METHOD, DETAILS, report=report, **options)


def card_of(model: Path, report: Path | None = None, existing: str | None = None) -> Any:
    return build_card(gather(model, report), METHOD, DETAILS, existing)


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_number_of_the_card_is_in_the_files(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    audit_of(model, tmp_path / "audit")
    made = release(model, tmp_path / "audit")
    body = made.card.split("\n---\n")[1]
    body = re.sub(r"```.*?```|`[^`]*`|\(Yu.*?\)|^Source: [^\n]*$|calor_hf [\d.]+|@1|&#\d+;|95 %|\]\(.*?\)", "",
                  body, flags=re.DOTALL | re.MULTILINE)  # fmt: skip
    body = re.sub(r"<!--.*?-->|\d{4}-\d\d-\d\d", "", body)
    found = re.findall(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?", body)
    sources = [json.loads(file.read_text()) for file in (model / "metrics.json", tmp_path / "audit" / "report.json")]
    known = [*numbers_in(sources), len(sources[1]["labels"]), len(sources[1]["attacks"])]
    forms = ("{:.0f}", "{:.1f}", "{:.2f}", "{:.4g}")
    written = {form.format(factor * number) for number in known for factor in (1, 100) for form in forms}
    assert [number for number in found if number not in written] == []
    assert {"81.2", "80.0", "0.4567", "0.8765", "83.3", "16.7", "640", "0.8825"} <= set(found)
    metadata: Any = ModelCard(made.card).data
    for result in metadata.eval_results:
        assert result.metric_value in known
    evidence = made.files["evidence.json"]
    assert isinstance(evidence, bytes)
    in_evidence = numbers_in(json.loads(evidence))
    assert {0.8, 0.4567, 5 / 6} <= set(in_evidence)


def test_what_was_not_measured_is_not_claimed(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    made = card_of(model)
    assert "**Not audited.**" in made.text
    assert "recognized" not in made.text
    assert [result.metric_type for result in made.data.eval_results or []] == ["accuracy"]
    (model / "metrics.json").unlink()
    nothing = card_of(model)
    assert "Trained with" not in nothing.text
    assert "**Its training is not recorded here,**" in nothing.text
    assert "Neither accuracy nor leakage of this model was measured." in nothing.text
    assert nothing.data.eval_results is None
    assert not re.search(r"\d %", nothing.text)


def test_the_strongest_attack_and_its_floor_are_the_headline(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    audit_of(model, tmp_path / "audit")
    made = card_of(model, tmp_path / "audit")
    leakage = {r.metric_type: r.metric_value for r in made.data.eval_results or [] if r.metric_type != "accuracy"}
    assert leakage == {"attack_accuracy@1": 5 / 6, "identities_recognized": 1.0}
    assert "| Rebuilt images recognized by the evaluation model, by adaptive | – | 83.3 %" in made.text
    assert "| Rebuilt images recognized by the evaluation model, by chance | – | 16.7 % |" in made.text
    assert "25.0 % of its source" in made.text
    assert "others may recover more" in made.text
    assert "No defense rules out that training images are reconstructed." in card_of(model).text
    assert check_card(str(made)) == []


def test_the_card_holds_verdict_and_caveats_of_the_report(tmp_path: Path) -> None:
    # tests/auditing holds terminal, page and Markdown to the same list.
    for index, report in enumerate(reports_with_every_caveat()):
        model = saved_model(tmp_path / f"model{index}")
        audit_of(model, tmp_path / f"audit{index}", attacks=report.attacks, networks=report.networks)
        text = card_of(model, tmp_path / f"audit{index}").text
        found = LeakageReport.load(tmp_path / f"audit{index}").verdict
        assert [line for line in [*found.sentences, *found.reasons] if markdown_text(line) not in text] == []
        assert f"**Verdict of the audit: {found.kind}.**" in text
        assert re.search(r"(?i)\bsafe\b|no more than chance|\bbounds?\b", text) is None
        limits = text.partition("## Limits\n\n")[2].splitlines()
        assert limits[: len(report.caveats)] == [f"- {markdown_text(line)}" for line in report.caveats]


def test_what_a_person_wrote_stays(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    first = card_of(model)
    theirs = (
        str(first)
        .replace("# demo", "# My own title")
        .replace("<!-- calor_hf:begin load -->", "Call *me* before you use it.\n\n<!-- calor_hf:begin load -->")
    )
    theirs = theirs.replace(
        "license: apache-2.0", "license: mit\nextra_gated_prompt: Please state your name.\ntags_of_mine:\n- one"
    )
    result = (
        "  - task:\n      type: image-classification\n    dataset:\n      name: Mine\n      type: mine\n    metrics:\n"
        "    - type: f1\n      value: 0.5\n"
    )
    theirs = theirs.replace("  results:\n", "  results:\n" + result).replace("tags:\n", "tags:\n- my-tag\n", 1)
    audit_of(model, tmp_path / "audit")
    unlicensed = CardDetails("demo", "me/demo")
    made: Any = build_card(gather(model, tmp_path / "audit"), METHOD, unlicensed, theirs)
    assert "# My own title" in made.text
    assert "# demo" not in made.text
    assert made.text.index("Call *me*") < made.text.index("## How to load")
    assert "Not audited" not in made.text
    assert made.data.license == "mit"
    assert "License: mit" in made.text
    assert (made.data["extra_gated_prompt"], made.data["tags_of_mine"]) == ("Please state your name.", ["one"])
    assert made.data.tags[0] == "my-tag"
    types = [result.metric_type for result in made.data.eval_results or []]
    assert types == ["f1", "accuracy", "attack_accuracy@1", "identities_recognized"]
    again = build_card(gather(model, tmp_path / "audit"), METHOD, unlicensed, str(made))
    assert str(again) == str(made)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    broken = str(card_of(model)).replace("<!-- calor_hf:end load -->", "")
    with pytest.raises(ValueError, match="lost its begin or end mark"):
        card_of(model, existing=broken)


def test_class_names_stay_text(tmp_path: Path) -> None:
    names = ("<script>alert(1)</script>", "a|b `c` *d*", "[x](https://example.org)", "# 1\n# 2 @you $x$")
    made = release(saved_model(tmp_path / "model", names))
    assert made.telling_names == names
    page = markdown.markdown(made.card.split("\n---\n", 1)[1], extensions=["tables", "md_in_html"])
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "example.org" in page
    assert 'href="https' not in page
    assert "<h1>demo</h1>" in page
    assert page.count("<h1>") == 1
    assert "The class names are published" in page
    for name in names:
        shown = markdown.markdown(markdown_text(name)).removeprefix("<p>").removesuffix("</p>")
        assert re.findall(r"<[^>]*>", shown) == []


def test_numbers_in_the_place_of_names(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model", ("Ada Lovelace", "Bob", "Cem", "Dan"))
    made = release(model, anonymize_labels=True)
    assert made.telling_names == ()
    everything = b"".join(c for c in made.files.values() if isinstance(c, bytes))
    assert b"Ada" not in everything
    config = json.loads(made.files["config.json"])  # type: ignore[arg-type]
    assert config["id2label"] == {str(i): f"LABEL_{i}" for i in range(4)}
    assert config["label2id"] == {f"LABEL_{i}": i for i in range(4)}
    assert "Ada" in (model / "config.json").read_text()
    assert numbered({"0": "Ada"}) == {0: "LABEL_0"}


@pytest.mark.parametrize(
    ("names", "telling"),
    [
        (["LABEL_0", "identity_001", "person 2", "class-3"], []),
        (["LABEL_0", "Ada", "cat"], ["Ada", "cat"]),
        (["0", "1", "10", *"23456789"], []),
        (["01", "02", "03"], []),
        (["0", "2", "3"], ["0", "2", "3"]),  # a gap: they count something else
        (["198503121234", "198503122211"], ["198503121234", "198503122211"]),
        (["LABEL_0", "LABEL_4711023"], ["LABEL_4711023"]),
        (["19121212-1212", "0049 151 23456789", "id 1", "patient 2"],
         ["19121212-1212", "0049 151 23456789", "id 1", "patient 2"]),
    ],
)  # fmt: skip
def test_numbers_that_do_not_count_the_classes_may_be_of_people(names: list[str], telling: list[str]) -> None:
    assert telling_names(names) == telling


def test_paths_names_and_single_people_stay_here(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    audit_of(model, tmp_path / "audit")
    made = release(model, tmp_path / "audit")
    everything = b"".join(c for c in made.files.values() if isinstance(c, bytes)).decode()
    for private in ("my/folders", str(tmp_path), "Ada", "a note"):
        assert private not in everything
    evidence = json.loads(made.files["evidence.json"])  # type: ignore[arg-type]
    report = LeakageReport.from_json(json.dumps(evidence["audit"]))
    measures = [one for a in report.attacks for some in (a.measures, *a.chance_levels.values()) for one in some]
    assert not any(one.by_identity or one.note for one in [*measures, *report.utility, *report.other_threats])
    assert report.label_names == ["person 0", "person 1", "person 2"]
    assert not any(attack.settings or attack.prior_settings for attack in report.attacks)
    networks = report.networks.values()
    assert not any([report.target.name, report.target.settings, report.data.name, *(one.name for one in networks)])
    config = json.loads(made.files["config.json"])  # type: ignore[arg-type]
    assert config["base_config"]["_name_or_path"] == "someone/base"
    assert "- Base model: someone/base" in made.card


@pytest.mark.parametrize(("drawn", "asked"), [(True, False), (False, False), (False, True)])
def test_only_listed_files_leave(tmp_path: Path, drawn: bool, asked: bool) -> None:
    model = with_junk(saved_model(tmp_path / "model"))
    record(model, dataset="synthetic faces, 4 private identities", drawn=drawn)
    audit_of(model, tmp_path / "audit", drawn=drawn)
    made = release(model, tmp_path / "audit", include_reconstructions=asked)
    assert set(made.files) == ALWAYS | ({"reconstructions.png"} if drawn or asked else set())
    assert made.shows_people == asked
    with pytest.raises(ValueError, match="no reconstructions without an audit"):
        release(model, include_reconstructions=True)
    assert ("reconstructions.png" in made.card) == (drawn or asked)


def test_of_a_model_with_decoys_only_what_tells_no_identity_leaves(tmp_path: Path) -> None:
    model, audit = tmp_path / "model", tmp_path / "audit"
    defend(tiny_base("resnet", 5), "decoys", k=2).save_pretrained(model)
    (audit / "plg").mkdir(parents=True)
    (audit / "plg" / "grid.png").write_bytes(b"faces")

    def save(report: LeakageReport, **changes: Any) -> None:
        target = dataclasses.replace(report.target, classes=5, settings={"k": 2, "rank": None})
        dataclasses.replace(report, target=target, **changes).save(audit / "report.json")

    assert all(sentence in release(model).card for sentence in map(markdown_text, SENTENCES))  # not audited
    secret = report_with_decoys(set(range(20)), exchangeability="exchangeable in this test")
    save(secret, data=dataclasses.replace(secret.data, drawn=True))
    made = release(model, audit)
    assert "reconstructions.png" not in made.files
    published = LeakageReport.from_json(json.dumps(json.loads(made.files["evidence.json"])["audit"]))  # type: ignore[arg-type]
    assert not any(one.by_identity for attack in published.attacks for one in attack.measures)
    for sentence in (*SENTENCES, "Exchangeable in this test."):
        assert markdown_text(sentence) in made.card
    assert secret.to_dict()["checksum"] not in made.card
    # Other private identities, of which as many are recognized: the same bytes. One of 40 more: 3 % at most.
    made_of = []
    for private in (range(20), range(20, 40), range(10, 30), range(21)):
        save(report_with_decoys(set(private)))
        made_of.append(release(model, audit))
    assert made_of[0].files == made_of[1].files == made_of[2].files
    without_digests = [re.sub(r"\b[0-9a-f]{16,}\b", "", made.card) for made in made_of[2:]]
    (same, one), (other, more) = ((re.sub(NUMBER, "", card), re.findall(NUMBER, card)) for card in without_digests)
    assert same == other
    assert 1 <= max(abs(float(a) - float(b)) for a, b in zip(one, more, strict=True)) <= 3
    with pytest.raises(ValueError, match="reconstructions of a model with decoys are not published"):
        release(model, audit, include_reconstructions=True)
    save(secret, data=dataclasses.replace(secret.data, identities_per_class=1))
    with pytest.raises(ValueError, match="of a model with decoys and does not know of them"):
        release(model, audit)


def test_shards_and_own_code_are_listed_by_what_names_them(tmp_path: Path) -> None:
    model = with_junk(saved_model(tmp_path / "model"))
    (model / "model.safetensors").unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": "../secret.safetensors"}})
    )
    with pytest.raises(FileNotFoundError, match=f"no weights in .*: {shards[0]}, {shards[1]} missing"):
        release(model)
    for name in (*shards, "model-00003-of-00003.safetensors"):
        (model / name).write_bytes(b"part")
    record(model)
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_own.Config", "AutoModel": "else/where--other.Model", "X": "../up.Y"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "modeling_own.py").write_text("")
    expected = ALWAYS - {"model.safetensors"} | {*shards, "model.safetensors.index.json", "modeling_own.py"}
    assert set(release(model).files) == expected
    assert "trust_remote_code=True" in release(model).card


def test_files_that_belong_to_something_else_are_refused(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    audit_of(model, tmp_path / "audit")
    file = tmp_path / "audit" / REPORT
    good = json.loads(file.read_text())

    def refused(match: str, **changes: Any) -> None:
        file.write_text(json.dumps(good | changes))
        with pytest.raises(ValueError, match=match):
            gather(model, file)

    refused("has schema 4, this version of calor_hf .* reads schema 3", schema=4)
    refused("was changed after it was written", seed=1)
    file.write_text("{")
    with pytest.raises(ValueError, match="not JSON, or cut off"):
        gather(model, file)
    with pytest.raises(FileNotFoundError, match="no report at"):
        gather(model, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        gather(tmp_path)
    file.write_text(json.dumps(good))
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(StaleRecordError, match="belongs to other weights"):
        gather(model, file)
    with pytest.raises(ValueError, match="other weights than this model has"):
        gather(model, file, use_record=False)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "preprocessor_config.json").write_text('{"image_mean": [8, -8, 8]}')
    with pytest.raises(ValueError, match="other image processor than this model has"):
        gather(model, file)
    (model / "preprocessor_config.json").write_text("{ }")  # the same settings
    gather(model, file)
    (model / "model.safetensors").write_bytes(b"other weights")
    record(model, backdoor={"trigger": {"name": "badnets"}})
    with pytest.raises(ValueError, match=r"trained with a backdoor \(badnets\)"):
        gather(model)
    record(model, weights=None)
    assert gather(model).training is None
    audit_of(model, tmp_path / "another", labels=[0, 1, 2])
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"defense_settings": SETTINGS | {"rank": 5}}))
    with pytest.raises(ValueError, match="is about another model: its settings are"):
        gather(model, tmp_path / "another")


def test_a_card_that_was_edited_on_the_hub_is_not_overwritten(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    local, remote = tmp_path / "local.md", tmp_path / "remote.md"
    assert base_card(local, remote) is None
    remote.write_text(str(card_of(model)))
    assert base_card(local, remote) == base_card(remote, None) == remote.read_text()
    local.write_text(str(card_of(model)).replace("# demo", "# Edited here"))
    assert base_card(local, remote) == local.read_text()
    remote.write_text(str(card_of(model)).replace("# demo", "# Edited there"))
    with pytest.raises(ValueError, match="the card on the Hub was edited"):
        base_card(local, remote)
    local.write_text(remote.read_text())
    assert base_card(local, remote) == local.read_text()


def test_a_stock_model_says_what_it_was_trained_with(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    (model / "metrics.json").unlink()
    defense = {"name": "bido", "settings": {"lambda_in": 0.1}, "calor_hf": "0.1.0"}
    config = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet", "id2label": {"0": "LABEL_0"}}
    (model / "config.json").write_text(json.dumps(config | {"defense": defense}))
    made = card_of(model)
    assert "with the defense `bido`" in made.text
    assert "`lambda_in=0.1`" in made.text
    assert "import calor_hf" not in made.text
    (model / "config.json").write_text(json.dumps(config))
    made = card_of(model)
    assert "**It has no defense against model inversion.**" in made.text
    assert "none" not in made.data.tags


def test_saved_models_say_what_they_are(tmp_path: Path) -> None:
    for name in ("calor", "mid"):
        model = defend(tiny_base("vit"), name)
        model.save_pretrained(tmp_path / name)
        found = gather(tmp_path / name).model
        assert (found.defense, found.settings) == (name, model.defense.config.to_dict())
    defend(tiny_base("vit"), "none").to_base().save_pretrained(tmp_path / "stock")
    assert gather(tmp_path / "stock").model.defense == "none"


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ("license: mit\nbase_model: a/b", 0),
        ("base_model: not an id", 1),
        ("tags: [1]", 1),
        ("model-index:\n- name: x", 1),
        ("a: [", 1),
    ],
)
def test_the_local_hub_checks_cards(metadata: str, wrong: int) -> None:
    assert len(check_card(f"---\n{metadata}\n---\n# x\n")) == wrong


def test_a_model_that_was_not_adapted_says_so(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    assert "not adapted" not in str(card_of(model))
    record(model, adapted=False, steps={"fit": 100, "adapt": 20})
    card = str(card_of(model))
    assert "Trained with the defense `calor`" in card
    assert "**This model was not adapted:**" in card
    assert "no adapted checkpoint kept the accuracy, so its weights are those of the first stage" in card
    assert "20 steps of stage `adapt`, of which the last stage was thrown away" in card
    record(model, adapted=False, steps={"fit": 100, "adapt": 0})
    card = str(card_of(model))
    assert "**This model was not adapted:** the adapt stage was left out" in card
    assert "thrown away" not in card
