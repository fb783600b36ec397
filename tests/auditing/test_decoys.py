"""Audits of models with decoys: who is private, what the verdict says, and what of it may be published."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf import AuditOptions, LeakageReport, PrivateImages, audit
from calor_hf.attacks.auto import Auto, AutoConfig, side_by_side
from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing import load_reconstruction
from calor_hf.auditing.decoy_attackers import ranked_modes
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import Network, load_network
from calor_hf.auditing.real_people import real_people
from calor_hf.auditing.run import RESULT
from calor_hf.auditing.verdict import concluded
from calor_hf.core.decoy_sentences import SENTENCES
from calor_hf.core.report import FULL_GALLERY, GALLERY, HEADLINE, MODE_RANKING, POOL, decoy_hits, false_matches, guesses
from calor_hf.data.decoys import IDENTITIES, read_assignment, secret_folder
from calor_hf.data.loading import Splits, load_splits
from calor_hf.data.public_images import square_pixels
from calor_hf.data.synthetic_faces import sample_identities
from calor_hf.metrics.identification_game import log_odds
from calor_hf.recipes.decoys import DealOptions, deal_decoys
from tests.attacks.tiny_world import CLASSES, SIDE, tiny_generator, tiny_target
from tests.auditing.made_up import report_with_decoys
from tests.auditing.renderers import check_rendered

K = 2


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dealt") / "faces"
    return deal_decoys(DealOptions(num_identities=CLASSES, k=K, image_size=SIDE, output_dir=folder, seed=3))


@pytest.fixture(scope="module")
def private(dealt: Path) -> PrivateImages:
    return private_of(dealt, exchangeability="exchangeable, as said")


def private_of(folder: Path, splits: Splits | None = None, **options: Any) -> PrivateImages:
    splits = splits or load_splits(str(folder))
    return PrivateImages.from_dataset(splits, image_size=SIDE, assignment=read_assignment(folder), **options)


def test_private_images_are_those_of_the_private_identities(dealt: Path) -> None:
    secret, splits = read_assignment(dealt), load_splits(str(dealt))
    found, names = private_of(dealt, splits), [name for members in secret.names for name in members]
    assert found.decoys is not None
    assert found.decoys.numbers[:CLASSES].tolist() == secret.private
    assert found.decoys.class_of.tolist() == [*range(CLASSES)] * K
    assert found.labels.bincount().tolist() == [20] * CLASSES
    row = splits.train[IDENTITIES].index(secret.private[2])
    image = square_pixels(splits.train[row]["image"], SIDE)
    assert (found.images[found.labels == 2] == image).all(dim=(1, 2, 3)).any()
    assert not (found.decoys.images == image).all(dim=(1, 2, 3)).any()
    # The truth about drawn faces is known by drawing them again: the private ones are the first of the population.
    drawn = sample_identities(K * CLASSES)
    numbers = [int(names[identity].removeprefix("identity_")) for identity in found.decoys.numbers]
    assert found.true_identity is not None
    assert torch.equal(found.true_identity, drawn[numbers])
    assert sorted(numbers[:CLASSES]) == [*range(CLASSES)]
    others = splits.train.map(lambda row: {"image": row["image"].rotate(90)})
    assert not private_of(dealt, dataclasses.replace(splits, train=others)).drawn


def test_classes_in_another_order_keep_their_people(dealt: Path, private: PrivateImages) -> None:
    names = load_splits(str(dealt)).label_names
    order = [names[number] for number in (3, 0, 4, 1, 2)]
    before = private
    after, reread = before.for_classes(order), private_of(dealt, load_splits(str(dealt)).for_classes(order))
    for found in (after, reread):
        assert found.decoys is not None
        assert before.decoys is not None
        assert torch.equal(found.decoys.numbers[:CLASSES], before.decoys.numbers[[3, 0, 4, 1, 2]])
        assert torch.equal(found.decoys.class_of[CLASSES:], torch.arange(CLASSES))
        for label, old in enumerate((3, 0, 4, 1, 2)):
            assert torch.equal(found.images[found.labels == label], before.images[before.labels == old])
            theirs = found.decoys.images[found.decoys.class_of[found.decoys.labels] == label]
            assert torch.equal(theirs, before.decoys.images[before.decoys.class_of[before.decoys.labels] == old])
    assert torch.equal(after.decoys.numbers, reread.decoys.numbers)  # type: ignore[union-attr]
    one = before.of_classes([1])
    assert one.decoys is not None
    assert set(one.decoys.class_of[one.decoys.labels].tolist()) == {1}


def identity_network(classes: int = K * CLASSES) -> Network:
    """Sees colors, and gives a score to each identity of the data, in the data's order."""

    def colors(images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)

    weights = torch.randn(12, classes, generator=torch.Generator().manual_seed(0))
    names = [str(number) for number in range(classes)]
    return Network("colors", nn.Linear(1, 1), colors, lambda features: features @ weights, names)


def small_audit(private: PrivateImages, folder: Path, **parts: Any) -> LeakageReport:
    known: dict[str, Any] = {
        "target": tiny_target("decoys", k=K), "private": private,
        "prior": tiny_generator("renderer"), "evaluation_model": identity_network(),
    }  # fmt: skip
    options = AuditOptions(
        attacks=["mode_ranking:steps=2"], output_dir=str(folder), images_per_class=3, skip_power=True
    )
    return audit(**{**known, **parts}, options=options)


def test_an_audit_knows_all_identities_and_says_what_is_attributed(
    dealt: Path, private: PrivateImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "check_target", lambda self: None)  # the tiny target learned nothing
    report = small_audit(private, tmp_path)
    assert report.data.identities_per_class == K
    names = {one.name for one in report.attacks[0].measures}
    assert {decoy_hits(HEADLINE), guesses(HEADLINE), guesses(HEADLINE, K), "identity_match@1"} <= names
    assert "attribute_accuracy" in names
    threats = {one.name: one for one in report.other_threats}
    assert {false_matches(HEADLINE), POOL, GALLERY, FULL_GALLERY} <= threats.keys()
    for name in ("false_accepts/decoys", "false_accepts/strangers"):
        assert 0 <= threats[name].value <= 1
    auc = threats["enrolment_auc/decoys"]
    assert auc.low < 0.5 < auc.high  # a target of random weights knows no one
    assert threats["enrolment_auc/strangers"].images == 10 * CLASSES
    ranked, images = report.attacks[0].get(MODE_RANKING), load_reconstruction(next(tmp_path.rglob(RESULT))).images
    logits = tiny_target("decoys", k=K)(images.double()).detach().reshape(CLASSES, 3, CLASSES)
    secret = read_assignment(dealt)
    for label in range(CLASSES):  # images 0 and 2 of a class show its first identity, image 1 its second
        own = log_odds(logits[label], torch.full((3,), label))
        first = int(own[1] > (own[0] + own[2]) / 2)
        assert ranked is not None
        assert ranked.by_identity[label] == (first == secret.private[label] % K)
    # The same images count if an ensemble made them among others.
    assert private.decoys is not None
    alone = load_reconstruction(next(tmp_path.rglob(RESULT)))
    both = side_by_side([dataclasses.replace(alone, images=1 - alone.images), alone], 3)
    attack = Auto(AutoConfig(members=("gmi:steps=2", "mode_ranking:steps=2")))
    target, prior = tiny_target("decoys", k=K), tiny_generator("renderer")
    network = load_network(target, "target")
    found = ranked_modes(
        NamedAttack("auto", "auto", attack), both, alone.images, target, network, prior, private.decoys
    )
    expected = [one for one in report.attacks[0].measures if one.name.startswith(MODE_RANKING)]
    assert [one.by_identity for one in found[:-1]] == [one.by_identity for one in expected[:-1]]
    assert [one.name for one in found] == [one.name for one in expected]
    assert found[-1].name == f"{MODE_RANKING}[prior_distance]"
    assert set(SENTENCES) <= set(report.caveats)
    assert "Exchangeable, as said." in report.verdict.sentences
    check_rendered(dataclasses.replace(report, labels=[*range(20)], label_names=[str(one) for one in range(20)]))


def test_what_cannot_be_measured_of_other_people_says_why(private: PrivateImages) -> None:
    assert private.decoys is not None
    model = load_network(tiny_target("decoys", k=K))
    photographs = dataclasses.replace(private, true_identity=None)
    assert photographs.held_images is not None
    held = model.outputs(photographs.held_images)[1]
    found = {one.name: one for one in real_people(model, photographs, held, None)}
    assert found["false_accepts/strangers"].note == "not measured: no images of strangers; pass --public-dataset"
    assert found["attribute_accuracy"].note.startswith("not measured: no column says an attribute of these people")
    decoys = dataclasses.replace(private.decoys, strata="sex", base_rate=0.6)
    with_strata = dataclasses.replace(photographs, decoys=decoys)
    shared = {one.name: one for one in real_people(model, with_strata, held, None)}
    assert shared["attribute_accuracy[sex]"].value == 1
    assert "base rate 60 %" in shared["attribute_accuracy[sex]"].note


def test_what_does_not_know_the_decoys_is_refused(dealt: Path, private: PrivateImages, tmp_path: Path) -> None:
    plain = dataclasses.replace(private, decoys=None)
    with pytest.raises(ValueError, match=r"trained with decoys, and 'private images' has none.*decoys deal wrote"):
        small_audit(plain, tmp_path)
    with pytest.raises(ValueError, match=r"has 5 classes, and the data hold 10 identities.*--label-column identities"):
        small_audit(private, tmp_path, evaluation_model=identity_network(CLASSES))
    nameless = dataclasses.replace(identity_network(CLASSES), class_names=())
    with pytest.raises(ValueError, match="has 5 classes, and the data hold 10 identities"):
        small_audit(private, tmp_path, evaluation_model=nameless)
    with pytest.raises(ValueError, match=r"holds decoys.*assignment=calor_hf.data.decoys.read_assignment"):
        PrivateImages.from_dataset(load_splits(str(dealt)), image_size=SIDE)
    assert not any(tmp_path.iterdir())
    assert secret_folder(dealt).is_dir()


def test_a_model_leaks_faces_if_any_of_the_k_is_found_and_says_what_is_attributed() -> None:
    found = report_with_decoys(set(range(20)), exchangeability="exchangeable by construction: 1/k = 50.0 %")
    assert found.verdict.kind == "leaks"
    said = " ".join(found.verdict.sentences)
    for expected in (
        "The model leaks the faces of people and decoys that it learned: in 90.0 % of 400 rebuilt images of 40 classes",
        "recognized one of the 2 people of its class, private or decoy",
        "20 of 40 people were recognized in at least one of 10 images",
        "an attacker would submit, by how sure the attacked model is, 20 of 40 people are recognized; by chance 0.0 %",
        "taken for the private one in 47.0 %: the recognition rate / 2, and 2.0 % false matches",  # 0.9 / 2 + 0.02
        "With 2 guesses the private person is found for 100.0 % of the classes.",
        "Exchangeable by construction: 1/k = 50.0 %.",
        "Ranked by 2 other statistics (weight norm, bias), the first one is the private one in 40.0 % to 50.0 %.",
    ):
        assert expected in said
    holds = (
        "An attacker who shows photographs to the model names the private identity of a class in 100.0 % (89.0–100.0 %)"
    )
    (said,) = (one for one in found.caveats if one.startswith(holds))
    assert "97.0 % (86.0–100.0 %) with a photograph of each private person, among strangers, 51.0 %" in said
    check_rendered(found)
    untested = report_with_decoys({1, 2})
    assert "Whether private identities and decoys are exchangeable was not tested" in " ".join(
        untested.verdict.sentences
    )
    # That the attacker names no private identity is no reason to call faces that are rebuilt "nothing".
    assert report_with_decoys({0}).verdict.kind == "leaks"
    assert report_with_decoys(set(range(20)), hit=0.0).verdict.kind == "found nothing"


def test_what_is_published_depends_on_the_assignment_by_one_percent_at_most() -> None:
    drawn = [report_with_decoys(private) for private in (set(range(20)), set(range(20, 40)), set(range(10, 30)))]
    assert len({one.to_json() for one in drawn}) == 3
    assert len({one.publishable().to_json() for one in drawn}) == 1
    one, other = (json.loads(report_with_decoys(set(range(count))).publishable().to_json()) for count in (20, 21))
    assert differences(one, other) == pytest.approx(0.03, abs=0.011)  # one class more of 40, rounded to 1 %
    published = drawn[0].publishable()
    assert set(SENTENCES) <= set(published.caveats)
    assert concluded(published).caveats == published.caveats
    names = {measure.name for measure in published.attacks[0].measures}
    assert {HEADLINE, decoy_hits(HEADLINE), guesses(HEADLINE), MODE_RANKING, f"{MODE_RANKING}[bias]"} <= names
    assert [one.value for one in published.other_threats] == [0.02, 1, 0.97, 0.51]
    assert not names & {"feature_distance", "false_discovery"}
    assert 'by_identity": {}' in published.to_json()
    with pytest.raises(ValueError, match="from 20 classes on, and 19 were attacked"):
        report_with_decoys({1}, classes=19).publishable()


def differences(one: Any, other: Any) -> float:
    """Largest difference of two numbers at the same place of JSON values; text may only differ in numbers."""
    if isinstance(one, dict):
        return max((differences(one[name], other[name]) for name in one.keys() - {"checksum"}), default=0.0)
    if isinstance(one, list):
        return max((differences(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, float):
        return float(abs(one - other))
    if isinstance(one, str):
        assert re.sub("[0-9.]+", "", one) == re.sub("[0-9.]+", "", other)
    else:
        assert one == other
    return 0.0
