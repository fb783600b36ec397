"""Target, data, evaluation models and prior are matched by class names: the same classes in another order."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from calor_hf import ATTACKS, PrivateImages
from calor_hf.auditing.networks import Network
from calor_hf.auditing.options import AuditOptions, load_networks
from calor_hf.core.label_names import class_order
from calor_hf.generators import load_generator
from calor_hf.generators.conditional import Conditional, ConditionalConfig
from calor_hf.targets.hf_target import HFTarget

NAMES, ORDER = ["ann", "bob", "cid"], [2, 0, 1]
OTHER = [NAMES[number] for number in ORDER]  # cid, ann, bob


def classifier(names: list[str]) -> ResNetForImageClassification:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=len(names))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    return ResNetForImageClassification(config)


def in_other_order() -> HFTarget:
    """The same network as ``classifier(NAMES)``, with the classes in another order."""
    model: Any = classifier(OTHER)
    last, first = model.classifier[1], classifier(NAMES).classifier[1]
    last.load_state_dict({name: value[ORDER] for name, value in first.state_dict().items()})
    return HFTarget(model, image_size=16)


@pytest.fixture(scope="module")
def target() -> HFTarget:
    return HFTarget(classifier(NAMES), image_size=16)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def prior() -> Conditional:
    torch.manual_seed(3)
    generator = Conditional(ConditionalConfig(num_classes=3, image_size=16, latent_dim=4, width=4)).eval()
    for name, weight in generator.named_parameters():
        if ".scale" in name or ".shift" in name:
            torch.nn.init.normal_(weight)  # else all classes look the same before training
    generator.class_names = OTHER
    return generator


def test_logits_of_evaluation_models_get_the_order_of_the_target(target: HFTarget, images: Tensor) -> None:
    options = AuditOptions(second_evaluation_model=in_other_order(), embedding=in_other_order())
    networks = load_networks(target, in_other_order(), options)
    expected = networks["target"].outputs(images)[1]
    assert expected is not None
    for role in ("evaluation_model", "second_evaluation_model"):
        logits = networks[role].outputs(images)[1]
        assert logits is not None
        torch.testing.assert_close(logits, expected)
        assert list(networks[role].class_names) == NAMES
    assert list(networks["embedding"].class_names) == OTHER  # its features are used, not its classes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["ann", "bob", "dan"],
            "the evaluation model '.*' has other classes.*: it lacks cid and has dan",
        ),
        (["ann", "bob"], r"has 2 classes, the target 3"),
        (["ann", "bob", "bob"], "has other classes"),
    ],
)
def test_evaluation_models_of_other_classes_are_refused(target: HFTarget, names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_networks(target, HFTarget(classifier(names), image_size=16), AuditOptions())


def test_networks_without_names_correspond_by_number(target: HFTarget, caplog: pytest.LogCaptureFixture) -> None:
    unnamed = Network("own", torch.nn.Flatten(), torch.nn.Flatten(), lambda features: features[:, :3])
    assert load_networks(target, unnamed, AuditOptions())["evaluation_model"] is unnamed
    assert class_order(["LABEL_0", "LABEL_1"], ["0", "1"], "x") is None
    assert class_order(["0", "10", "2"], ["0", "2", "10"], "x") == [0, 2, 1]  # these are names
    with pytest.raises(ValueError, match="twice"):
        class_order(["a", "a", "b"], ["b", "a", "a"], "x")


def test_private_images_get_the_labels_of_the_target() -> None:
    pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])  # cid, ann, bob
    private = PrivateImages("faces", pixels, labels, pixels, labels.flip(0), tuple(OTHER), torch.eye(3))
    found = private.for_classes(NAMES)
    assert [NAMES[label] for label in found.labels] == OTHER
    assert found.held_labels is not None
    assert [NAMES[label] for label in found.held_labels] == OTHER[::-1]
    assert found.label_names == tuple(NAMES)
    assert found.true_identity is not None
    assert found.true_identity.argmax(dim=1).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match="'faces' has other classes than the target"):
        private.for_classes(["ann", "bob", "dan"])


def test_labels_of_a_prior_are_those_of_the_target(
    prior: Conditional, target: HFTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, latents = prior.for_classes(NAMES), torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    wanted, own = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    assert torch.equal(view(latents, wanted), prior(latents, own))
    assert not torch.equal(view(latents, wanted), prior(latents, wanted))
    assert torch.equal(view.realism(view(latents, wanted), wanted), prior.realism(prior(latents, own), own))
    assert view.for_classes(OTHER).class_order is None
    view.save_pretrained(tmp_path / "prior")
    loaded = load_generator(str(tmp_path / "prior"))
    assert list(loaded.class_names) == OTHER
    assert torch.equal(loaded.for_classes(NAMES)(latents, wanted), view(latents, wanted))

    def keep(self: Any, folder: str) -> str:
        self.save_pretrained(folder)
        return folder

    monkeypatch.setattr(ModelHubMixin, "push_to_hub", keep)
    loaded.push_to_hub(str(tmp_path / "pushed"))
    assert "ann" not in (tmp_path / "pushed" / "config.json").read_text()
    assert list(loaded.class_names) == OTHER


def test_attacks_ask_the_prior_for_the_class_they_attack(prior: Conditional, target: HFTarget) -> None:
    plg = ATTACKS.get("plg")
    attack = plg(plg.configure(steps=1, views=0))
    expected = copy.copy(prior)
    expected.class_names, expected.class_order = (), [1, 2, 0]
    found, again = (attack.run(target, one, [0, 1, 2], images_per_class=1) for one in (prior, expected))
    assert torch.equal(found.images, again.images)
    other = copy.copy(prior)
    other.class_names = ["ann", "bob", "dan"]
    with pytest.raises(ValueError, match="the prior 'conditional' has other classes than the target"):
        attack.run(target, other, [0], images_per_class=1)
