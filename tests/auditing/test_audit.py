"""The whole audit on a tiny target: attacks, judges, chance levels, report; shared, resumed, refused."""

import copy
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from torch import Tensor, nn

from calor_hf import METRICS, AuditOptions, LeakageReport, PrivateImages, audit
from calor_hf.attacks import GradientAttack
from calor_hf.attacks.specs import parse_attacks
from calor_hf.auditing import evaluation
from calor_hf.auditing.caveats import caveats
from calor_hf.auditing.networks import Network, load_network
from calor_hf.auditing.options import parse_classes
from calor_hf.core.fingerprints import keep_fingerprints
from calor_hf.core.report import DataInfo
from calor_hf.data.face_renderer import IDENTITY_NAMES
from calor_hf.data.synthetic_faces import load_synthetic_faces, sample_identities
from calor_hf.metrics import Evidence, Measure, Metric
from calor_hf.recipes.report import write_pages
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import HFTarget
from tests.attacks.tiny_world import CLASSES, SIDE, Pictures, tiny_generator, tiny_target
from tests.tiny_models import tiny_base

ATTACKS = ["gmi:steps=2", "plg:steps=2,gradient=straight_through"]


def private_images_of(**changes: Any) -> PrivateImages:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (CLASSES * 4, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(4)
    known: dict[str, Any] = {
        "name": "made up", "images": images, "labels": labels, "held_images": images.flip(3), "held_labels": labels,
        "label_names": tuple("abcde"), "true_identity": sample_identities(CLASSES),
        "identity_names": tuple(IDENTITY_NAMES),
    }  # fmt: skip
    return PrivateImages(**{**known, **changes})


def evaluation_model() -> Network:
    """Takes the brightest fifth of an image's rows for its class."""

    def rows(images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 3))[:, : CLASSES * 3].view(len(images), CLASSES, 3).mean(dim=2)

    return Network("rows", nn.Linear(1, 1), rows, lambda features: features)


def small_audit(folder: Path, **options: Any) -> LeakageReport:
    parts: dict[str, Any] = {
        "target": tiny_target("calor", rank=2), "private": private_images_of(),
        "prior": tiny_generator("renderer"), "evaluation_model": evaluation_model(),
    }  # fmt: skip
    parts |= {name: options.pop(name) for name in list(options) if name in parts}
    known: dict[str, Any] = {
        "attacks": ATTACKS, "output_dir": str(folder), "classes": [0, 1, 3], "images_per_class": 2,
        "target_name": "tiny", "skip_power": True,
    }  # fmt: skip
    return audit(**parts, options=AuditOptions(**{**known, **options}))


def test_the_report_says_everything(tmp_path: Path) -> None:
    report = small_audit(tmp_path, embedding=nn.Flatten())
    assert LeakageReport.load(tmp_path).to_json() == report.to_json()
    assert [attack.name for attack in report.attacks] == ["gmi-steps-2", "plg-steps-2-gradient-straight_through"]
    assert [attack.adaptive for attack in report.attacks] == [False, True]
    assert report.label_names == ["a", "b", "d"]
    assert report.target.model == "CALoRForImageClassification"
    assert report.target.settings["rank"] == 2
    digest = private_images_of().digest
    assert report.data == DataInfo("made up", identities=5, images=20, held_out_images=20, drawn=True, digest=digest)
    assert report.networks["evaluation_model"].name == "rows"
    accuracy = report.networks["evaluation_model"].accuracy
    assert accuracy is not None
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    assert (accuracy.images, accuracy.identities) == (12, 3)
    assert report.caveats == caveats(report)
    utility = {measure.name: measure for measure in report.utility}
    assert utility["accuracy"].images == 20  # of all people, not of the attacked ones alone
    assert 0 <= utility["accepted@0.5"].value <= 1
    auc, _ = report.other_threats
    assert (auc.name, auc.images, auc.identities) == ("membership_auc", 12, 3)
    for attack in report.attacks:
        assert set(attack.chance_levels) == {"samples of the prior", "reconstructions of other people"}
        names = {measure.name for measure in attack.measures}
        assert "attack_accuracy@1" in names
        for measure in attack.measures:
            assert measure.identities <= 3
            assert math.isnan(measure.value) <= bool(measure.note)
        assert attack.cost.target_passes > 0
        assert (tmp_path / attack.name / "reconstructions.safetensors").is_file()


def test_numbers_are_those_of_the_judge(tmp_path: Path) -> None:
    from calor_hf.auditing import load_reconstruction

    report = small_audit(tmp_path, attacks=ATTACKS[:1], metrics=["attack_accuracy"])
    found = load_reconstruction(tmp_path / "gmi-steps-2" / "reconstructions.safetensors")
    rows = found.images.float().mean(dim=(1, 3))[:, :15].view(6, CLASSES, 3).mean(dim=2).argmax(dim=1)
    measure = report.attacks[0].measures[0]
    assert measure.value == pytest.approx(float((rows == found.labels).double().mean()))
    other = {0: 3, 1: 0, 3: 1}
    wrong = torch.tensor([other[label] for label in found.labels.tolist()])
    floor = report.attacks[0].chance_levels["reconstructions of other people"][0]
    assert floor.value == pytest.approx(float((rows == wrong).double().mean()))


def test_a_finished_audit_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small_audit(tmp_path)
    with pytest.raises(FileExistsError, match="holds an attack already"):
        small_audit(tmp_path)
    monkeypatch.setattr(GradientAttack, "attack", None)
    again = small_audit(tmp_path, resume=True, target_name="moved")  # the content is the same
    assert again.target.name == "moved"
    same = dataclasses.replace(again, created=first.created, target=first.target, networks=first.networks)
    assert same.to_json() == first.to_json()


@pytest.mark.usefixtures("deterministic")
def test_an_audit_twice_gives_the_same_numbers(tmp_path: Path) -> None:
    reports = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        report = small_audit(folder, embedding=nn.Flatten())
        attacks = [dataclasses.replace(one, cost=dataclasses.replace(one.cost, seconds=0.0)) for one in report.attacks]
        reports.append(dataclasses.replace(report, attacks=attacks, created="").to_json())
    assert reports[0] == reports[1]


def broken(network: Network, share: float) -> Network:
    """The network, with NaN for that share of the images."""

    def features(images: Tensor) -> Tensor:
        seen = network.features(images)
        return torch.where(torch.arange(len(seen))[:, None] < share * len(seen), torch.nan, seen)

    return dataclasses.replace(network, features=features)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("share", [0.05, 1.0])
def test_a_judge_that_returns_nan_ends_the_audit(share: float, held: bool, tmp_path: Path) -> None:
    private = private_images_of() if held else private_images_of(held_images=None, held_labels=None)
    with pytest.raises(FloatingPointError, match="the network 'rows' gives NaN or infinite scores for private"):
        small_audit(tmp_path, evaluation_model=broken(evaluation_model(), share), private=private)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("private_alone", [True, False])
def test_a_target_that_returns_nan_ends_the_audit(private_alone: bool, tmp_path: Path) -> None:
    target = tiny_target("calor", rank=2)
    if private_alone:  # as a half-precision one whose features overflow for some images

        def look(images: Tensor) -> Tensor:
            strange = (images == private_images_of().images[0] / 255).flatten(1).all(dim=1, keepdim=True)
            return torch.where(strange, torch.nan, type(target).features(target, images))

        target.features = look  # type: ignore[method-assign]
    else:
        next(target.module.parameters()).data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="'tiny' gives NaN or infinite scores for private"):
        small_audit(tmp_path, target=target, private=private_images_of(held_images=None, held_labels=None))
    assert not (tmp_path / "report.json").exists()


def test_attacks_come_before_private_images_and_evaluation_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    run, outputs = GradientAttack.attack, Network.outputs

    def attacked(self: Any, *words: Any) -> Any:
        order.append("attack")
        return run(self, *words)

    def looked(self: Any, images: Tensor) -> Any:
        if images.shape[0] != 8 or images.dtype == torch.uint8:  # not the noise that tells copies apart
            order.append(self.name)
        return outputs(self, images)

    monkeypatch.setattr(GradientAttack, "attack", attacked)
    monkeypatch.setattr(Network, "outputs", looked)
    small_audit(tmp_path, metrics=["attack_accuracy"])
    first, *rest = order
    assert first == "tiny"  # the target alone, to see whether it learned the images
    assert rest[:2] == ["attack"] * 2
    assert "rows" in rest
    assert rest.count("attack") == 2


def test_a_metric_that_fails_costs_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Metric):
        def measure(self, evidence: Evidence) -> list[Measure]:
            raise ValueError("the evaluation model is asleep")

    monkeypatch.setitem(METRICS._classes, "broken", Broken)
    report = small_audit(tmp_path, attacks=ATTACKS[:1], metrics=["broken", "attack_accuracy"])
    assert [measure.note for measure in report.attacks[0].measures if measure.name == "broken"] == [
        "the evaluation model is asleep"
    ]
    assert report.attacks[0].get("attack_accuracy@1") is not None


def rebuilt(report: LeakageReport) -> dict[str, Measure]:
    found = [measure for measure in report.other_threats if measure.name.startswith("decoder_inversion_")]
    return {measure.name.removeprefix("decoder_inversion_"): measure for measure in found}


@pytest.mark.parametrize("defense", [None, "calor"])
def test_what_the_target_says_is_decoded(defense: str | None, tmp_path: Path) -> None:
    rank: dict[str, Any] = {} if defense is None else {"rank": 2}
    report = small_audit(
        tmp_path, attacks=ATTACKS[:1], metrics=["decoder_inversion"], public_images=Pictures(),
        target=tiny_target(defense, **rank), classes=[0, 1, 4],
    )  # fmt: skip
    found = rebuilt(report)
    assert list(found) == ["chance", "logits", *(["code"] if defense else []), "features"]
    mean = torch.stack([Pictures()[row] for row in range(12)]).double().mean(dim=0)
    held = private_images_of().held_images
    assert held is not None
    attacked = held[torch.isin(private_images_of().labels, torch.tensor([0, 1, 4]))]
    off = (attacked.double() / 255 - mean).square().mean()
    assert found["chance"].value == pytest.approx(float(off), rel=1e-5)
    assert (found["chance"].images, found["chance"].identities) == (12, 3)
    assert "from 5 numbers per image; 12 private images, rebuilt by" in found["logits"].note
    assert "decoders trained on 12 public ones" in found["logits"].note
    if defense:
        assert "from 2 numbers per image" in found["code"].note
    assert report.attacks[0].measures == []  # it is about the target, not about what an attack got


def test_samples_of_the_prior_stand_in_for_public_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def callback(target: Target, images: Tensor) -> dict[str, Tensor]:
        asked.append(len(images))
        return {"logits": images.mean(dim=(2, 3)).float()}

    monkeypatch.setattr(evaluation, "PUBLIC", 8)
    monkeypatch.setattr(evaluation, "released", callback)
    first = rebuilt(small_audit(tmp_path, metrics=["decoder_inversion", "attack_accuracy"]))["logits"]
    assert asked == [8, 12]  # once, for two attacks and their chance level
    assert math.isfinite(first.value)
    again = small_audit(tmp_path / "again", metrics=["decoder_inversion"], attacks=ATTACKS[:1])
    assert rebuilt(again)["logits"] == first
    other = small_audit(tmp_path / "other", metrics=["decoder_inversion"], attacks=ATTACKS[:1], seed=1)
    assert rebuilt(other)["logits"] != first
    small_audit(tmp_path / "quick", attacks=ATTACKS[:1])
    assert len(asked) == 6  # not asked by metrics that do not want to


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [9]}, "classes 0 to 4"),
        ({"attacks": ["gmii"]}, "Did you mean 'gmi'"),
        ({"attacks": ["plg", "plg"]}, "every attack once"),
        ({"attacks": ["plg:stepps=2"]}, "did you mean steps"),
        ({"metrics": ["fid"]}, "metric 'fid' needs extractor, and the audit has none"),
        (
            {"metrics": ["decoder_inversion"], "private": private_images_of(held_images=None, held_labels=None)},
            "metric 'decoder_inversion' needs held_images",
        ),
        ({"evaluation_model": "nowhere:judge"}, "expected a network as package.module:function"),
        ({"evaluation_model": "collections:OrderedDict"}, "not an nn.Module"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        small_audit(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_target_cannot_judge_itself(tmp_path: Path) -> None:
    target = tiny_target()
    half = HFTarget(copy.deepcopy(target.module).to(torch.bfloat16), image_size=SIDE)
    body = Network("body", target.module.get_submodule("resnet"), lambda images: images)
    other = torch.nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES))
    for networks, who in (
        ({"evaluation_model": target}, "evaluation model is the target"),
        ({"evaluation_model": tiny_target()}, "evaluation model is the target"),  # a copy
        ({"evaluation_model": half}, "evaluation model is the target"),
        ({"second_evaluation_model": tiny_target()}, "second evaluation model is the target"),
        ({"embedding": body}, "embedding is the target"),
        ({"evaluation_model": other, "second_evaluation_model": copy.deepcopy(other)}, "second evaluation model is the"
         " evaluation model"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"the {who} or a copy of it"):
            small_audit(tmp_path / "out", target=target, **networks)
    assert not (tmp_path / "out").exists()


def test_no_file_of_an_anonymous_audit_names_a_user_or_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreadable(Metric):
        def measure(self, evidence: Evidence) -> list[Measure]:
            raise ValueError("cannot read /data/hopper7/net.py")

    monkeypatch.setitem(METRICS._classes, "unreadable", Unreadable)
    student, people = tmp_path / "hopper7" / "student", ("Grace H", "Mary S", "Emmy N", "Lise M", "Jane G")
    base = tiny_base("resnet", CLASSES)
    base.config.id2label = dict(enumerate(people))
    base.save_pretrained(student)
    report = small_audit(
        tmp_path / "audit", target_name="/data/hopper7/model", anonymize_labels=True,
        private=private_images_of(name="hopper7/faces", label_names=people, true_identity=None),
        evaluation_model=dataclasses.replace(evaluation_model(), name="ResNet (/data/hopper7/judge)"),
        prior=tiny_generator("dcgan"), public_images=Pictures(), metrics=["attack_accuracy", "unreadable"],
        attacks=["gmi:steps=2", f"lomma:base=gmi,steps=2,student_epochs=1,student_batch=4,students={student}"],
    )  # fmt: skip
    write_pages(report, tmp_path / "audit")
    written = [path for path in (tmp_path / "audit").rglob("*") if path.is_file()]
    assert {"attack.json", "report.json", "report.html", "report.md", "distillation.json"} <= {p.name for p in written}
    for path in written:
        content = path.read_bytes()
        assert [word for word in ("hopper7", str(tmp_path), *people) if word.encode() in content] == [], path
    assert report.label_names == ["person 0", "person 1", "person 3"]
    assert [one.note for one in report.attacks[0].measures if one.name == "unreadable"] == ["cannot read …"]
    assert report.data.digest is not None
    assert report.publishable().data.digest is None


def test_an_independent_network_is_asked_for_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    asked = []
    for prior, embedding in (("renderer", None), ("dcgan", None), ("dcgan", nn.Flatten())):
        parts = (tiny_target(), private_images_of(), tiny_generator(prior), [0, 1], evaluation_model())
        caplog.clear()
        evaluation.Evaluator(*parts, AuditOptions(embedding=embedding))
        asked.append(any("No independent --embedding" in line for line in caplog.messages))
    assert asked == [False, True, False]  # the truth about what the renderer draws is known


def test_an_evaluation_model_that_was_trained_on_its_test_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_fingerprints(tmp_path, ["a", "b"])
    report = small_audit(
        tmp_path / "audit", evaluation_model=dataclasses.replace(evaluation_model(), folder=str(tmp_path)),
        private=private_images_of(held_files=("a", "c", "d")), attacks=ATTACKS[:1], metrics=["attack_accuracy"],
    )  # fmt: skip
    assert report.networks["evaluation_model"].seen == 1
    assert any("was trained on 1 of these images" in line for line in report.caveats)
    assert "The evaluation model was trained on 1 of the 3 held-out images" in caplog.text


@pytest.mark.parametrize("files", [("b", "e"), ("e",)])
def test_an_embedding_that_was_trained_on_private_images_is_not_called_independent(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    keep_fingerprints(tmp_path, ["a", "b"])
    report = small_audit(
        tmp_path / "audit", private=private_images_of(files=files), attacks=ATTACKS[:1], metrics=["attack_accuracy"],
        embedding=Network("flat", nn.Flatten(), lambda images: images.flatten(1), folder=str(tmp_path)),
    )  # fmt: skip
    assert report.networks["embedding"].same_data == ("b" in files)
    assert any("Every network that evaluates learned the images" in line for line in report.caveats) == ("b" in files)


def test_people_without_private_pictures_are_refused(tmp_path: Path) -> None:
    few = private_images_of(images=private_images_of().images[:8], labels=private_images_of().labels[:8])
    with pytest.raises(ValueError, match=r"no private images of the classes \[3\]"):
        small_audit(tmp_path / "out", private=few)


def test_private_pictures_are_bytes() -> None:
    with pytest.raises(ValueError, match="as bytes and a label each"):
        private_images_of(images=torch.rand(20, 3, SIDE, SIDE))
    with pytest.raises(ValueError, match="and 2 labels"):
        private_images_of(labels=torch.tensor([0, 1]))


def test_networks_look_at_bytes_and_floats_alike() -> None:
    pictures = private_images_of().images
    network = load_network(tiny_target(dtype=torch.float32), "evaluation_model")
    features, logits = network.outputs(pictures)
    again, scores = network.outputs(pictures.float() / 255)
    assert torch.equal(features, again)
    assert logits is not None
    assert scores is not None
    assert torch.equal(logits, scores)
    target: Target = tiny_target(dtype=torch.float32)
    torch.testing.assert_close(logits, target(pictures.float() / 255).detach())


def test_words_of_attacks() -> None:
    calor, own = parse_attacks(["gmi@calor", "plg:steps=7"], budget=0.5, settings=["lr=0.5"])
    assert (calor.name, calor.kind, calor.attack.config.clip, calor.attack.config.steps) == (
        "gmi-calor",
        "gmi",
        None,
        750,
    )
    assert (own.name, own.attack.config.steps, own.attack.config.lr) == ("plg-steps-7", 7, 0.5)
    (students,) = parse_attacks(["lomma:students=outputs/mine/,steps=3"])
    assert students.name == "lomma-students-mine-steps-3"  # a folder is named so
    default = parse_attacks()
    assert [one.name for one in default] == ["auto"]
    with pytest.raises(ValueError, match=r"unknown preset 'mine'; pass one of original, calor, adaptive"):
        parse_attacks(["plg@mine"])
    with pytest.raises(ValueError, match="preset and budget are no settings; pass plg@PRESET"):
        parse_attacks(["plg:preset=calor"])
    with pytest.raises(ValueError, match="no attacks to run"):
        parse_attacks([])


def test_classes_as_typed() -> None:
    assert AuditOptions(classes="0-2,5").labels(10) == [0, 1, 2, 5]
    assert AuditOptions().labels(3) == [0, 1, 2]
    assert AuditOptions().labels(530) == list(range(100))
    for wrong in ("3-1", "a", "", "1-", "-3", "number:a", "name:0"):
        with pytest.raises(ValueError, match="expected classes"):
            parse_classes(wrong)


def test_classes_by_name() -> None:
    names = ["bob", "3", "Doe, Jane", "anna", "2-3", "5"]
    for text, numbers in (
        ("anna,bob", [3, 0]), ("1-2, anna", [1, 2, 3]), ("anna,Doe, Jane,0", [3, 2, 0]), ("name:3,number:3", [1, 3]),
        ("number:2-3,name:2-3", [2, 3, 4]), ("5,name:5", [5, 5]),
    ):  # fmt: skip
        assert parse_classes(text, names) == numbers
    for text, message in (
        ("anna,bobb", "got 'bobb'; did you mean 'bob'?"),
        ("3", "'3' is a number and the name of the class 1; pass number:3 or name:3"),
        ("2-3", "'2-3' is a number and the name of the class 4; pass number:2-3 or name:2-3"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_classes(text, names)
    with pytest.raises(ValueError, match=r"the classes \[0, 1\] are all named 'bob'; pass numbers"):
        parse_classes("bob", ["bob", "bob"])
    assert AuditOptions(classes=["anna", 0]).labels(6, names) == [3, 0]
    with pytest.raises(ValueError, match="expected every class once"):
        AuditOptions(classes="anna,3").labels(4, ["a", "b", "c", "anna"])


def test_private_images_of_any_dataset(tmp_path: Path) -> None:
    train, test = (load_synthetic_faces(3, 2, image_size=20, split=split) for split in ("train", "test"))
    both = PrivateImages.from_dataset(DatasetDict(train=train, test=test), image_size=SIDE)
    apart = PrivateImages.from_dataset(train, test, image_size=SIDE, classes=[0, 2], name="faces")
    assert both.images.shape == (6, 3, SIDE, SIDE)
    assert both.label_names == ("identity_000", "identity_001", "identity_002")
    assert (apart.name, apart.labels.tolist()) == ("faces", [0, 0, 2, 2])
    assert apart.held_images is not None
    assert apart.held_images.shape == both.images.shape
    assert torch.equal(apart.images, both.of_classes([0, 2]).images)
    faces = PrivateImages.from_dataset(load_synthetic_faces(5, 2, image_size=20), image_size=SIDE)
    assert faces.held_images is None
    with pytest.raises(ValueError, match="expected columns image and label, got picture, label"):
        PrivateImages.from_dataset(train.rename_column("image", "picture"), image_size=SIDE)
    report = small_audit(tmp_path, attacks=ATTACKS[:1], private=faces, classes=[0, 2], metrics=["attack_accuracy"])
    assert report.label_names == ["identity_000", "identity_002"]
    assert (report.data.name, report.data.images, report.data.held_out_images) == ("private images", 10, 0)


@pytest.mark.parametrize(
    ("spec", "budget", "effort", "changed"),
    [
        ("gmi", "paper", 1.0, ()),
        ("gmi:steps=150", "paper", 0.1, ()),
        ("auto:effort=20", "paper", 0.2, ()),
        ("auto", 0.2, 0.2, ()),
        ("auto", 0.25, 0.2, ()),  # of the 10 later steps of if_gmi 2 are left
        ("plg@adaptive", "demo", 0.05, ()),
        ("plg:samples=4,lr=0.5,steps=1200", "paper", 1.0, ("samples", "lr")),
        ("ppa", 0.5, 0.5, ()),
        ("mirror:initial_candidates=1000", "paper", 0.01, ()),
    ],
)
def test_effort_is_that_of_the_settings(
    spec: str, budget: str | float, effort: float, changed: tuple[str, ...]
) -> None:
    (found,) = parse_attacks([spec], budget=budget)
    assert found.effort == pytest.approx(effort, rel=0.1)
    assert found.changed == changed


def test_only_what_goes_around_something_knows_the_defense() -> None:
    plain, defended = tiny_target(), tiny_target("calor", rank=2)
    for spec, knows in (("gmi", False), ("plg@adaptive", True), ("bypass", True), ("trapdoor", False), ("auto", True)):
        (found,) = parse_attacks([spec])
        assert (found.attack.adaptive_to(plain), found.attack.adaptive_to(defended)) == (False, knows), spec


def test_samples_of_a_conditional_prior_know_nothing_of_the_class(tmp_path: Path) -> None:
    parts = tiny_target("calor", rank=2), private_images_of(), tiny_generator("conditional", torch.float32), [0, 1, 3]
    evaluator = evaluation.Evaluator(*parts, evaluation_model(), AuditOptions(output_dir=str(tmp_path)))
    wanted = {name: (torch.tensor(labels), "chance level") for name, labels in (("a", [0] * 6), ("b", [3] * 6))}
    drawn = evaluator.samples(wanted)
    assert torch.equal(drawn["a"][1], drawn["b"][1])
