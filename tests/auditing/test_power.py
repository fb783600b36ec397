"""Whether an audit could have found anything: ceilings of an oracle and of spoiled priors, and the control."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calor_hf import AuditOptions, PrivateImages, load_generator
from calor_hf.attacks.specs import parse_attack
from calor_hf.auditing import power
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import Network, load_network
from calor_hf.auditing.power import Power
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.data.loading import load_splits
from calor_hf.generators import Generator
from calor_hf.generators.dcgan import DCGAN, DCGANConfig
from tests.attacks.tiny_world import SIDE, tiny_target
from tests.auditing.test_audit import small_audit

CLASSES = [0, 2, 4]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(power.PROJECTION, steps=30, pool=300)
    monkeypatch.setattr(power, "PROJECTION", config)
    monkeypatch.setattr(power, "GUIDANCE", dataclasses.replace(config, steps=5, pool=20))


@pytest.fixture(scope="module")
def drawn() -> PrivateImages:
    return PrivateImages.from_dataset(load_splits(num_identities=5, image_size=SIDE), image_size=SIDE)


def pixels(private: PrivateImages) -> Network:
    """Takes an image for the person whose mean private image is nearest."""
    means = torch.stack([private.images[private.labels == label].float().mean(dim=0) / 255 for label in range(5)])

    def scores(features: Tensor) -> Tensor:
        return -torch.cdist(features, means.flatten(1).to(features))

    return Network("pixels", nn.Linear(1, 1), lambda images: images.flatten(1), scores)


def power_of(private: PrivateImages, prior: Generator[Any], chunk_size: int = 256, **options: Any) -> Power:
    target, model = tiny_target(dtype=torch.float32), pixels(private)
    return Power(Evaluator(target, private, prior, CLASSES, model, AuditOptions(**options)), 4, chunk_size)


class Constant(DCGAN):
    """A prior that draws one image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__(DCGANConfig(image_size=SIDE, width=4, discriminator="none"))
        self.image = image

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.image.expand(len(latents), -1, -1, -1)


def spoiled(scale: float = 0.0) -> DCGAN:
    """A prior of random weights, whose images differ the less the smaller its last layer is."""
    torch.manual_seed(0)
    prior = DCGAN(DCGANConfig(image_size=SIDE, width=4, discriminator="none")).eval()
    with torch.no_grad():
        for weight in prior.last.parameters():
            weight.mul_(scale)
    return prior


def test_an_oracle_can_draw_the_private_people(drawn: PrivateImages) -> None:
    ceiling = power_of(drawn, load_generator("renderer", image_size=SIDE)).prior()
    assert (ceiling.images.name, ceiling.images.images, ceiling.images.identities) == ("identity_match@1", 6, 3)
    assert ceiling.images.value >= 0.5 > ceiling.chance
    assert ceiling.identities.value >= 2 / 3 > ceiling.chance_identities
    assert ceiling.faults == []


def test_a_prior_of_blotches_cannot(drawn: PrivateImages) -> None:
    # Every image is the same gray, so the same person of three (or none) is seen in all of them.
    tested = power_of(drawn, spoiled())
    assert tested.resolution().images.value >= 5 / 6
    for check in (tested.prior(), tested.guided()):
        assert check.images.name == "attack_accuracy@1"
        assert check.images.value == check.chance
        assert check.identities.value == check.chance_identities


def test_results_do_not_depend_on_chunks(drawn: PrivateImages) -> None:
    whole, parts = (power_of(drawn, spoiled(5.0), chunk_size).checks() for chunk_size in (256, 1))
    for one, other in zip(whole, parts, strict=True):
        assert one.images.by_identity == other.images.by_identity
        assert (one.note, one.chance, one.chance_identities) == (other.note, other.chance, other.chance_identities)


def test_what_a_prior_lacks_is_said(drawn: PrivateImages, tmp_path: Path) -> None:
    colored = spoiled(5.0)
    assert power_of(drawn, colored).faults() == []
    assert power_of(drawn, spoiled()).faults() == ["The prior draws images gray, and the private images are in color."]
    gray = dataclasses.replace(drawn, images=drawn.images[:, :1].expand(-1, 3, -1, -1))
    assert power_of(gray, colored).faults() == ["The prior draws images in color, and the private images are gray."]
    assert power_of(gray, spoiled()).faults() == []
    large = dataclasses.replace(drawn, images=drawn.images.repeat_interleave(2, dim=3).repeat_interleave(2, dim=2))
    assert power_of(large, colored).faults() == ["The prior draws 16 pixels, fewer than the target's 32."]
    colored.trained_steps = 300, 2000
    colored.save_pretrained(tmp_path)
    found = power_of(drawn, load_generator(str(tmp_path))).faults()
    assert found == ["The training of the prior is unfinished: it had 300 of 2000 steps."]


def test_the_guide_neither_judges_nor_is_attacked(drawn: PrivateImages) -> None:
    flat = nn.Flatten()
    second = dataclasses.replace(
        pixels(drawn), module=nn.Linear(1, 1), features=lambda x: pixels(drawn).features(1 - x)
    )
    for options, judge, guide in (
        ({}, "evaluation_model", "target"),
        ({"embedding": flat}, "embedding", "target"),
        ({"embedding": flat, "second_evaluation_model": second}, "embedding", "second_evaluation_model"),
        ({"second_evaluation_model": second}, "evaluation_model", "second_evaluation_model"),
    ):
        tested = power_of(drawn, spoiled(), **options)
        assert (tested._judge(), tested._guide()) == (judge, guide)
    check = power_of(drawn, spoiled(), embedding=flat).guided()
    assert check.images.name == "embedding_accuracy@1"
    assert "the network with the role target" in check.note


def test_the_control_is_compared_person_by_person(drawn: PrivateImages) -> None:
    shown = {label: drawn.images[drawn.labels == label].float().mean(dim=0) / 255 for label in range(5)}
    tested, labels = power_of(drawn, Constant(shown[1])), torch.tensor([0, 0, 2, 2, 4, 4])

    def rebuilt(people: list[int]) -> Reconstruction:
        images = torch.stack([shown[label] for label in people])
        return Reconstruction(images, labels, torch.zeros(6, 100), torch.ones(6), Cost())

    attack = parse_attack("gmi")
    # Recognized by person: target 1/2, 0, 0; control 1, 1/2, 0: 3/6 of the images, difference 2/6.
    target, control = rebuilt([0, 2, 4, 4, 0, 0]), rebuilt([0, 0, 2, 4, 0, 2])
    check = tested.control([(attack, target)], [(attack, control)], "content")
    assert check.images.by_identity == {0: 1.0, 2: 0.5, 4: 0.0}
    assert check.identities.value == pytest.approx(2 / 3)
    assert check.difference is not None
    assert check.difference.value == pytest.approx(1 / 3)
    assert (check.note, check.digest) == ("the attack gmi", "content")

    other = Constant(shown[4])
    over = tested.control([(attack, target)], [(attack, control)], "content", other)
    alone = power_of(drawn, other).control([(attack, target)], [(attack, control)], "content")
    assert over == dataclasses.replace(alone, note="the attack gmi, over a prior of its own")
    # By chance: the last image, taken for the person before; over the other prior each image of person 4.
    assert (check.chance, over.chance) == pytest.approx((1 / 6, 1 / 3))


def test_an_audit_measures_its_power(tmp_path: Path) -> None:
    report = small_audit(
        tmp_path, skip_power=False, control=tiny_target(), attacks=["gmi:steps=2"], classes=[0, 1, 4]
    )  # fmt: skip
    assert [check.name for check in report.power] == ["resolution", "prior", "guided", "control"]
    assert (tmp_path / "control" / "gmi-steps-2" / "reconstructions.safetensors").is_file()
    with pytest.raises(ValueError, match=r"the control is defended \(calor\)"):
        small_audit(tmp_path / "out", control=tiny_target("calor", rank=2))
    with pytest.raises(ValueError, match="the target is undefended itself"):
        small_audit(tmp_path / "out", target=tiny_target(), control=tiny_target())
    judge = load_network(tiny_target())
    with pytest.raises(ValueError, match="the evaluation model is the control or a copy of it"):
        small_audit(tmp_path / "out", control=tiny_target(), evaluation_model=judge)
    with pytest.raises(ValueError, match="the control recognizes 0 of 12 images that it is said to have learned"):
        small_audit(tmp_path / "out", control=tiny_target())
    assert not (tmp_path / "out").exists()
