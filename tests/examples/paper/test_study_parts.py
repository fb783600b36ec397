"""The maths of the studies, by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calor_hf.attacks import ATTACKS
from calor_hf.defenses import DEFENSES
from calor_hf.recipes.train_arguments import defense_settings, defenses_of_any_data, parse
from examples.paper.lab import Lab, LabOptions, true_class_confidence
from examples.paper.leakage import attack_labels, bars, of_share, pooled, with_interval
from examples.paper.studies.adaptation import Adaptation
from examples.paper.studies.autoencoder_rank import Autoencoder, band_power
from examples.paper.studies.confidence import checkpoint_after
from examples.paper.studies.inversion_space import shares
from examples.paper.studies.target_confidence import TargetConfidenceConfig
from examples.paper.studies.toy_2d import Toy2D, thinned
from examples.paper.trace import moving_average, relative, traced
from tests.attacks.tiny_world import tiny_generator, tiny_target


def test_moving_average_and_its_share_of_the_first() -> None:
    assert moving_average([2, 4, 6, 0, 4], 3) == pytest.approx([4, 10 / 3, 10 / 3])
    assert moving_average([1, 2, 3], 20) == [2]  # fewer values than the window: their mean
    assert moving_average([1, 2, 3], 1) == [1, 2, 3]
    assert relative([2, 4, 6, 0, 4], 3) == pytest.approx([1, 10 / 12, 10 / 12])
    with pytest.raises(ValueError, match="window >= 1"):
        moving_average([1.0], 0)
    with pytest.raises(ValueError, match="0 in the first steps"):
        relative([0.0, 0.0], 2)


@pytest.mark.parametrize("defense", defenses_of_any_data())
def test_a_rank_is_given_to_low_rank_heads_alone(defense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.paper.lab._train", lambda runs, name, options, keep: (name, options))
    name, options = Lab(tmp_path, LabOptions(quick=True)).train(defense, 0, rank=3)
    assert ("-tanh-3" in name) == ("--rank" in options) == (defense in ("calor", "loft"))
    model = parse([*map(str, options)])[0]
    DEFENSES.get(defense).config_class.from_dict(defense_settings(model))  # refuses settings that say nothing


def test_trainings_are_pooled_by_identity() -> None:
    # In all 0.4375. One resample in 16 has the first training and identity 0 alone (1), one identity 1 alone (0).
    first = {"by_identity": {"0": 1.0, "1": 0.0}, "images": 4}
    second = {"by_identity": {"0": 0.5, "1": 0.25}, "images": 4}
    mean, low, high = pooled([first, second])
    assert mean == pytest.approx(0.4375)
    assert (low, high) == (0, 1)
    assert pooled([{"by_identity": {"3": 0.5}, "images": 2}]) == (0.5, 0.5, 0.5)  # one identity has no interval
    assert bars([(0.5, 0.25, 1.0)]) == ([50.0], [[25.0], [50.0]])
    assert with_interval(0.5, 0.25, 1.0) == "50.0 [25.0, 100.0]"
    assert of_share({"value": None, "low": None, "high": None, "count": 0}) == (0, 0, 0)


def test_adaptation_is_compared_by_identity() -> None:
    def cell(defense: str, identities: dict[str, float]) -> dict[str, object]:
        numbers = {"leakage": {"plg": {"by_identity": identities, "images": 2}}}
        return {"cell": defense, "values": {"defense": defense, "seed": 0}, "numbers": numbers}

    found = {"cells": [cell("loft", {"0": 1.0, "1": 0.5}), cell("calor", {"0": 0.5, "1": 0.0})]}
    assert Adaptation.differences(found) == {"plg": (-0.5, -0.5, -0.5)}  # each lost a half
    found["cells"] += [cell("loft", {"0": 1.0, "1": 0.5}), cell("calor", {"0": 1.0, "1": 0.5})]  # this training nothing
    assert Adaptation.differences(found) == {"plg": (-0.25, -0.5, 0)}


def test_power_of_a_wave_is_in_its_band() -> None:
    # Four waves on 32 pixels: 1/8 cycles a pixel, 2/16; mean of the squared cosine 1/2, and of twice it 4 times that.
    wave = torch.cos(2 * torch.pi * 4 * torch.arange(32) / 32).expand(1, 3, 32, 32)
    assert band_power(2 * wave + 5) == pytest.approx([0, 0, 2, 0, 0, 0, 0, 0], abs=1e-6)


def test_shares_above_a_threshold() -> None:
    scores = torch.tensor([0.2, 0.9, 0.9995, 0.9999], dtype=torch.float64)
    found = shares(scores, torch.tensor([True, True, False, True]), 0.9)
    assert {k: found["sure"][k] for k in ("successes", "count", "of", "value")} == {
        "successes": 1, "count": 2, "of": 4, "value": 0.5,
    }  # fmt: skip
    assert found["sure"]["threshold"] == 0.999
    assert found["top"]["count"] == 2  # above, not at
    assert shares(scores, torch.tensor([True] * 4), 0.1)["top"]["count"] == 4


def test_confidence_is_the_own_class() -> None:
    logits = torch.tensor([[3.0, 0.0], [3.0, 0.0]]).log1p()  # (4, 1): 0.8 and 0.2
    assert true_class_confidence(logits, torch.tensor([0, 1])).tolist() == pytest.approx([0.8, 0.2])


def test_attack_labels_are_short_and_distinct() -> None:
    def found(specs: str) -> dict[str, object]:
        return {"settings": {"attacks": specs}}

    assert attack_labels(found("plg@adaptive:steps=3 ppa:steps=2")) == {
        "plg-adaptive-steps-3": "plg@adaptive", "ppa-steps-2": "ppa",
    }  # fmt: skip
    assert set(attack_labels(found("plg:steps=3 plg:steps=4")).values()) == {"plg:steps=3", "plg:steps=4"}


@pytest.mark.parametrize(
    ("spec", "generator"),
    [("plg:steps=5", "renderer"), ("if_gmi:steps=2,later_steps=3,most_stages=2,initial_candidates=20", "stylegan2")],
)
def test_a_trace_sees_every_step_and_changes_nothing(spec: str, generator: str) -> None:
    name, attack, trace = traced(spec)
    target, prior = tiny_target(), tiny_generator(generator)
    found = attack.run(target, prior, [0, 2], images_per_class=2, seed=1)
    plain = ATTACKS.get(name.partition("-")[0])(attack.config).run(target, prior, [0, 2], images_per_class=2, seed=1)
    assert torch.equal(found.images, plain.images)
    for series in (trace.variables, trace.images, trace.confidence):
        assert len(series) == 5 == sum(trace.steps)
        assert all(step.shape == (4,) and step.isfinite().all() for step in series)
    assert all((step > 0).all() for step in trace.images)
    assert all(((step > 0) & (step < 1)).all() for step in trace.confidence)


def test_a_trace_holds_the_gradient_itself() -> None:
    _, attack, trace = traced("plg:steps=1,views=0,objective=ce")
    target, prior = tiny_target(), tiny_generator("dcgan")
    seen: list[Tensor] = []

    def optimizer(variables: Tensor) -> torch.optim.Optimizer:
        seen.append(variables.detach().clone())
        return type(attack).optimizer(attack, variables)

    attack.optimizer = optimizer  # type: ignore[method-assign]
    attack.run(target, prior, [1], images_per_class=2, seed=0)
    latents = seen[0].requires_grad_(True)
    images = prior(latents)
    loss = torch.nn.functional.cross_entropy(target(images), torch.tensor([1, 1]), reduction="sum")
    by_latents, by_images = torch.autograd.grad(loss, (latents, images))
    torch.testing.assert_close(trace.variables[0], by_latents.norm(dim=1))
    torch.testing.assert_close(trace.images[0], by_images.flatten(1).norm(dim=1))
    own = target(images).softmax(dim=1)[:, 1].detach()
    torch.testing.assert_close(trace.confidence[0], own)


def test_all_of_an_image_goes_through_the_bottleneck() -> None:
    net = Autoencoder(2, 16, 4).eval()
    codes: list[Tensor] = []
    net.down.register_forward_hook(lambda module, inputs, output: codes.append(output))
    rebuilt = net(torch.rand(3, 3, 16, 16))
    assert codes[0].shape == (3, 2)
    torch.testing.assert_close(rebuilt, net.decoder(codes[0]))


def test_the_order_of_four_distances_and_a_thin_path() -> None:
    cells = [
        {"values": {"network": key, "seed": seed}, "numbers": {"distance": distance}}
        for seed, distances in ((1, (1.0, 2.0, 3.0, 4.0)), (2, (3.5, 2.0, 3.0, 4.0)))  # the second: a > c
        for key, distance in zip("abcd", distances, strict=True)
    ]
    assert Toy2D.order_holds({"settings": {"seeds": [1, 2]}, "cells": cells}) == "1 of 2 seeds"
    path = torch.arange(25.0)
    assert thinned(path).tolist() == [0, 10, 20, 24]
    assert thinned(path[:21]).tolist() == [0, 10, 20]


def test_the_checkpoint_of_an_epoch(tmp_path: Path) -> None:
    for step, epoch in ((3, 1.0), (6, 2.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": epoch}))
    assert checkpoint_after(tmp_path, 2).name == "checkpoint-6"
    with pytest.raises(ValueError, match=r"no checkpoint of .* after epoch 4; it has 1, 2"):
        checkpoint_after(tmp_path, 4)


def test_the_confidence_of_targets_is_traced_under_label_smoothing_with_both_pre_trainings() -> None:
    config = TargetConfidenceConfig()
    assert {"none", "label_smoothing"} <= set(config.defenses)  # the paper's Figure 8
    assert config.pretrainings == ("scratch", "public")
