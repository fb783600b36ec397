"""The ensemble: its images are its members', its samples are looked at once, and it spares no one unless told to."""

from typing import Any

import pytest
import torch

from calor_hf.attacks import Attack
from calor_hf.attacks.auto import Auto, AutoConfig
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.reconstruction import Reconstruction
from tests.attacks.tiny_world import tiny_generator, tiny_target

MEMBERS = ("plg:steps=3,initial_candidates=40,views=1", "bypass:steps=2,initial_candidates=40", "gmi:steps=4")


def run(attack: Attack[Any], **options: Any) -> Reconstruction:
    return attack.run(tiny_target(), tiny_generator("renderer"), [3, 0, 1], images_per_class=2, seed=4, **options)


@pytest.mark.parametrize("chunk_size", [2, 1000])
def test_images_are_those_of_the_members_side_by_side(chunk_size: int) -> None:
    found = run(Auto(AutoConfig(members=MEMBERS)), chunk_size=chunk_size)
    alone = [run(parse_attack(word).attack) for word in MEMBERS]
    assert found.labels.tolist() == [0] * 6 + [1] * 6 + [3] * 6
    for name in ("images", "latents", "scores"):
        blocks = getattr(found, name).unflatten(0, (3, 3, 2))
        for member, one in enumerate(alone):
            assert torch.allclose(blocks[:, member].flatten(0, 1), getattr(one, name), rtol=0, atol=1e-8)
    # Two members start from the same forty samples, which the target looks at once.
    assert found.cost.target_passes == sum(one.cost.target_passes for one in alone) - 40
    assert found.cost.generator_passes == sum(one.cost.generator_passes for one in alone) - 40
    assert found.cost.target_gradients == sum(one.cost.target_gradients for one in alone)


def test_other_samples_are_not_shared() -> None:
    words = ("plg:steps=2,initial_candidates=40", "bypass:steps=2,initial_candidates=41")
    alone = sum(run(parse_attack(word).attack).cost.target_passes for word in words)
    assert run(Auto(AutoConfig(members=words))).cost.target_passes == alone


def test_fast_spares_whom_the_target_gives_away(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Auto(AutoConfig(members=MEMBERS)))
    second = whole.scores.unflatten(0, (3, 3, 2))[:, 0].amin(dim=1)  # by the first member
    limit = float(second.sort().values[1:].mean())  # one class lies above it
    monkeypatch.setattr("calor_hf.attacks.auto.AGREES", limit)
    spared = int(second.argmax())
    fast = run(Auto(AutoConfig(members=MEMBERS, fast=True)))
    mine, theirs = (found.images.unflatten(0, (3, 3, 2)) for found in (fast, whole))
    for person in range(3):
        if person == spared:
            assert torch.equal(mine[person, 1], theirs[person, 0])
            assert torch.equal(mine[person, 2], theirs[person, 0])
        else:
            assert torch.allclose(mine[person], theirs[person], atol=1e-8)
    assert fast.cost.target_gradients < whole.cost.target_gradients
    assert fast.labels.tolist() == whole.labels.tolist()


def test_progress_runs_through_all_members() -> None:
    told: list[tuple[int, int]] = []
    run(Auto(AutoConfig(members=MEMBERS)), callback=lambda labels, step, steps, success: told.append((step, steps)))
    assert [step for step, _ in told] == sorted(step for step, _ in told)
    assert told[-1] == (3000, 3000)
    assert {steps for _, steps in told} == {3000}


def test_effort_reaches_the_members() -> None:
    config = Auto.configure(budget=0.5, members=("gmi", "plg@adaptive"))
    assert config.effort == 50
    assert [member.config.steps for member in Auto(config).members.values()] == [750, 300]
    assert Auto(config).parts(tiny_target(), tiny_generator("renderer")) == ("gmi", "plg-adaptive")


@pytest.mark.parametrize(
    "members", [(), ("auto",), ("gmi", "gmi"), ("gmii",), ("gmi:stepps=3",), ("plg@mine",)], ids=str
)
def test_members_that_cannot_be(members: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"members|unknown|stepps"):
        AutoConfig(members=members)


def test_members_for_decoys_run_on_decoys_alone() -> None:
    attack = Auto(AutoConfig(members=("gmi:steps=1", "mode_ranking:steps=2,views=1")))
    plain, decoys = tiny_target(), tiny_target("decoys", k=2)
    prior = tiny_generator("renderer")
    assert attack.parts(plain, prior) == ("gmi-steps-1",)
    assert attack.parts(decoys, prior) == ("gmi-steps-1", "mode_ranking-steps-2-views-1")
    assert (attack.adaptive_to(plain), attack.adaptive_to(decoys)) == (False, True)
    found = [attack.run(target, prior, [3, 0], images_per_class=2) for target in (plain, decoys)]
    assert [one.labels.tolist() for one in found] == [[0, 0, 3, 3], [0] * 4 + [3] * 4]
    alone = parse_attack("mode_ranking:steps=2,views=1").attack.run(decoys, prior, [3, 0], images_per_class=2)
    assert torch.allclose(found[1].images.unflatten(0, (2, 2, 2))[:, 1].flatten(0, 1), alone.images, atol=1e-8)
    assert "mode_ranking-adaptive" in Auto(AutoConfig()).parts(decoys, prior)
    with pytest.raises(ValueError, match="mode_ranking attack a defense that the target has not"):
        run(Auto(AutoConfig(members=("mode_ranking",))))


def test_if_gmi_is_a_member_where_the_prior_has_blocks() -> None:
    attack, target = Auto(AutoConfig()), tiny_target()
    whole, blocks = tiny_generator("renderer"), tiny_generator("dcgan")
    assert attack.parts(target, whole) == ("plg-adaptive", "plg", "mirror-quick", "bypass", "ppa")
    assert attack.parts(target, blocks) == (*attack.parts(target, whole), "if_gmi")
    attack.check(target, whole)


def test_members_attack_mid_through_its_mean() -> None:
    target = tiny_target("mid")
    words = ("plg:steps=1,views=1", "ppa:steps=1,initial_candidates=0,restarts=1", "gmi:steps=1,noise=drawn")
    attack = Auto(AutoConfig(members=words))
    assert [member.config.noise for member in attack.members.values()] == ["mean", "mean", "drawn"]
    assert attack.adaptive_to(target)
    assert parse_attack("auto").changed == ()
    assert [member.config.noise for member in Auto(AutoConfig()).members.values()] == ["mean"] * 9


def test_what_a_member_refuses_is_told_with_its_name() -> None:
    with pytest.raises(ValueError, match="member if_gmi: "):
        run(Auto(AutoConfig(members=("gmi:steps=1", "if_gmi"))))
