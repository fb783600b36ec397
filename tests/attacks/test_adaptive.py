"""Attacks that know the defense: past a low-rank head, and away from trapdoors."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from calor_hf.attacks import trapdoor
from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.bypass import Bypass, BypassConfig, directions, margin_codes, mean_codes
from calor_hf.attacks.trapdoor import Trapdoor, TrapdoorConfig, TriggerPlan, find_signatures, find_triggers
from calor_hf.heads.classifier_head import MeanOfHeads
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.targets.module_target import ModuleTarget
from tests.attacks.tiny_world import CLASSES, SIDE, Pictures, tiny_attack, tiny_generator, tiny_target


def low_rank() -> LowRankHead:
    torch.manual_seed(0)
    return LowRankHead(6, 5, 3).double()


def test_mean_codes_by_hand() -> None:
    head = low_rank()
    with torch.no_grad():
        head.up.weight.copy_(torch.tensor([[3.0, 0, 0], [0, 2, -1], [0, 1, 1], [0, -4, 0], [-1, 0, 1]]))
    # The mean row is (0.4, −0.2, 0.2).
    assert mean_codes(head).tolist() == [[1, 1, -1], [-1, 1, -1], [-1, 1, 1], [-1, -1, -1], [-1, 1, 1]]


def test_margin_codes_against_a_bounded_optimizer() -> None:
    head = low_rank()
    with torch.no_grad():
        head.up.weight *= 6
    weight, bias = head.up.weight.detach().numpy(), head.up.bias.detach().numpy()
    found = margin_codes(head)
    inside = 0
    for label in range(5):

        def loss(code: Any, label: int = label) -> float:
            scores = weight @ code + bias
            return float(np.log(np.exp(scores - scores[label]).sum()))

        best = minimize(loss, np.zeros(3), bounds=[(-1, 1)] * 3, options={"ftol": 1e-14, "gtol": 1e-10})
        assert loss(found[label].numpy()) == pytest.approx(best.fun, abs=1e-5)
        inside += (np.abs(best.x) < 0.99).sum()
    assert inside > 0  # some lie on no corner, which signs alone would not find


def test_directions_of_a_head() -> None:
    head = low_rank()
    product = (head.up.weight @ head.down.weight).detach()
    found = directions(head, torch.ones(1, 6, dtype=torch.float64))
    assert torch.allclose(found, product - product.mean(0))
    linear = nn.Linear(4, 5).double()
    flat = directions(linear, torch.ones(1, 2, 2, dtype=torch.float64).flatten(1))
    assert torch.allclose(flat, (linear.weight - linear.weight.mean(0)).detach())
    noisy: Any = tiny_target("mid", beta=1.0, sample_at_eval=True).head
    mean_path = noisy.decoder.weight @ noisy.encoder.weight[: noisy.width]
    found = directions(noisy, torch.ones(1, 16, dtype=torch.float64))
    assert torch.allclose(found, (mean_path - mean_path.mean(0)).detach())


def distance_of(head: Any, features: Tensor, **settings: Any) -> Tensor:
    target = ModuleTarget(nn.Linear(3, 5).double(), 5, 1)
    target.head = head
    batch = Batch.of([1, 3], 1, 0, features.new_empty(0))
    return Bypass(BypassConfig(**settings)).distance(AttackedTarget(target), features, batch)


def test_distances_by_hand() -> None:
    head = low_rank()
    features = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = F.linear(features, head.down.weight, head.down.bias)
    codes = mean_codes(head)[[1, 3]]
    cosine = distance_of(head, features, code="mean")
    squared = distance_of(head, features, code="mean", match="squared")
    for row in range(2):
        along = (values[row] * codes[row]).sum() / values[row].norm() / 3**0.5
        assert cosine[row].item() == pytest.approx(1 - along.item())
        # arctanh(0.9) = 1.47222
        expected = ((values[row] - 1.4722194895832204 * codes[row]) ** 2).sum() / 3
        assert squared[row].item() == pytest.approx(expected.item())
    place = directions(head, features[:1])[[1, 3]]
    assert torch.allclose(distance_of(head, features, space="features"), 1 - F.cosine_similarity(features, place))
    # A head that saturates completely hides nothing: the gradient in front of the Tanh is alive.
    with torch.no_grad():
        head.down.weight *= 1e6
    probe = features.clone().requires_grad_(True)
    assert torch.autograd.grad(head(probe).sum(), probe)[0].abs().max() == 0
    assert torch.autograd.grad(distance_of(head, probe).sum(), probe)[0].abs().min() > 1e-3


def test_heads_side_by_side() -> None:
    heads = MeanOfHeads([low_rank(), low_rank()], [6, 6])
    features = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = distance_of(heads, torch.cat([features, features], 1))
    assert torch.allclose(both, distance_of(low_rank(), features))


def test_codes_need_a_low_rank_head() -> None:
    attack = Bypass(BypassConfig(space="code"))
    with pytest.raises(ValueError, match=r"low-rank head and tanh.*pass space=features"):
        attack.run(tiny_target(), tiny_generator("dcgan"), [0])
    with pytest.raises(ValueError, match="low-rank head"):
        attack.run(tiny_target("calor", rank=3, activation="relu"), tiny_generator("dcgan"), [0])
    assert attack.check(tiny_target("calor", rank=3), tiny_generator("dcgan")) is None  # type: ignore[func-returns-value]
    for wrong in ({"space": "cube"}, {"code": "corner"}, {"match": "dot"}, {"score_weight": -1.0}, {"views": -1}):
        with pytest.raises(ValueError, match=r"space|code|match|score_weight|views"):
            BypassConfig(**wrong)


def linear_target(classes: int = CLASSES) -> ModuleTarget:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 7), nn.Linear(7, classes)).double()
    return ModuleTarget(module, classes, SIDE, head="2")


def test_a_linear_models_triggers_are_the_signs_of_its_rows() -> None:
    target = linear_target(2)
    images = torch.rand(4, 3, SIDE, SIDE, dtype=torch.float64) * 0.8 + 0.1
    found = find_triggers(target, images, [1, 0], TriggerPlan(images=4, steps=40, reach=0.02, seed=0))
    weight = (target.module[2].weight @ target.module[1].weight).detach()  # type: ignore[index]
    for trigger, row in zip(found, (weight[1] - weight[0], weight[0] - weight[1]), strict=True):
        assert torch.allclose(trigger.flatten(), 0.02 * row.sign())


def test_signatures_are_what_triggers_change_and_a_stopped_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, plan = linear_target(), TriggerPlan(images=4, steps=3, reach=0.02, seed=0)
    images = torch.rand(4, 3, SIDE, SIDE, dtype=torch.float64) * 0.8 + 0.1
    monkeypatch.setattr(trapdoor, "AT_ONCE", 8)  # two classes at a time
    whole = find_signatures(target, images, plan, tmp_path / "whole")
    center = target.features(images).mean(0)
    assert torch.allclose(whole["center"], center)
    for label in range(CLASSES):
        trigger = find_triggers(target, images, [label], plan)
        change = target.features(images + trigger).mean(0) - center
        assert torch.allclose(whole["signatures"][label], change / change.norm())

    calls: list[list[int]] = []
    search = find_triggers

    def stopping(target: Any, images: Tensor, classes: list[int], plan: TriggerPlan) -> Tensor:
        calls.append(classes)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(target, images, classes, plan)

    monkeypatch.setattr(trapdoor, "find_triggers", stopping)
    with pytest.raises(KeyboardInterrupt):
        find_signatures(target, images, plan, tmp_path / "stopped")
    again = find_signatures(target, images, plan, tmp_path / "stopped")
    assert calls == [[0, 1], [2, 3], [2, 3], [4]]
    assert torch.equal(again["signatures"], whole["signatures"])
    find_signatures(target, images, plan, tmp_path / "stopped")
    assert len(calls) == 4  # all is there
    find_signatures(target, images, TriggerPlan(images=4, steps=3, reach=0.03, seed=0), tmp_path / "stopped")
    assert len(calls) == 7  # another search


def test_likeness_and_selection_by_hand() -> None:
    attack = Trapdoor(TrapdoorConfig(select_weight=0.5))
    attack._found = {
        "center": torch.tensor([1.0, 0.0]),
        "signatures": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    }
    features = torch.tensor([[4.0, 4.0], [1.0, -2.0], [1.0, 5.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    # From the center: (3, 4), (0, −2), (0, 5): cosines 0.6, −1 (counted as 0) and 1.
    assert attack.likeness(features, labels).tolist() == pytest.approx([0.6, 0, 1])

    class Seen:
        def features(self, images: Tensor) -> Tensor:
            return features

    batch = Batch(labels, 3, 0, features.new_empty(0))
    seen: Any = Seen()
    evaluated = attack.final_scores(seen, features, batch, torch.tensor([0.9, 0.5, 0.9], dtype=torch.float64))
    assert evaluated.tolist() == pytest.approx([0.6, 0.5, 0.4])


def test_it_stays_away_from_the_signature(tmp_path: Path) -> None:
    target, generator = tiny_target(), tiny_generator("renderer")
    likeness = []
    for weight in (0.0, 1.0):
        attack: Any = tiny_attack("trapdoor", steps=40, avoid_weight=weight, select_weight=weight)
        with pytest.raises(ValueError, match="call prepare"):
            attack.run(target, generator, [0])
        attack.prepare(target, generator, Pictures(), tmp_path, 0)
        found = attack.run(target, generator, [0, 1, 2], images_per_class=2)
        likeness.append(attack.likeness(target.features(found.images), found.labels).mean().item())
    assert likeness[1] < likeness[0] - 0.2
    for wrong in ({"avoid_weight": -1.0}, {"reach": 0.0}, {"trigger_steps": 0}, {"trigger_images": 0}):
        with pytest.raises(ValueError, match=r"avoid_weight|reach|trigger"):
            TrapdoorConfig(**wrong)


def test_samples_of_the_prior_stand_in_for_public_images(tmp_path: Path) -> None:
    target, generator = tiny_target(), tiny_generator("conditional")
    attack: Any = tiny_attack("trapdoor")
    attack.prepare(target, generator, None, tmp_path, 0)
    assert attack._found["signatures"].shape == (CLASSES, 16)
    assert torch.allclose(attack._found["signatures"].norm(dim=1), torch.ones(CLASSES, dtype=torch.float64))


def test_mode_ranking_descends_on_the_scores_of_one_identity_for_each_image() -> None:
    target = tiny_target("decoys", k=2)
    attack: Any = tiny_attack("mode_ranking", views=0, objective="ce")
    assert attack.adaptive_to(target)
    assert not attack.adaptive_to(tiny_target())
    batch = Batch.of([1, 4], 3, 0, torch.empty(0, dtype=torch.float64))
    images = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head: Any = target.head
    scores = head.identity_scores(target.features(images))
    wanted = torch.tensor([2, 3, 2, 8, 9, 8])  # class c has the identities 2c and 2c + 1
    expected = torch.nn.functional.cross_entropy(scores, wanted, reduction="none")
    torch.testing.assert_close(attack.identity(AttackedTarget(target), images, batch), expected)
    found = attack.run(target, tiny_generator("dcgan"), [1, 4], images_per_class=2)
    scores = head.identity_scores(target.features(found.images.to(torch.float64)))
    toward_first = scores[[0, 1, 2, 3], [2, 2, 8, 8]] - scores[[0, 1, 2, 3], [3, 3, 9, 9]]
    assert toward_first[0] > toward_first[1]
    assert toward_first[2] > toward_first[3]
    # The best of several starts would be of whichever identity.
    with pytest.raises(ValueError, match="restarts must be 1 on a model with decoys, got 2"):
        tiny_attack("mode_ranking", restarts=2).run(target, tiny_generator("dcgan"), [1])


def test_progress_of_mode_ranking_says_nothing_of_the_starts_it_chose_from() -> None:
    attack: Any = tiny_attack("mode_ranking", views=0, initial_candidates=100)
    seen: list[float] = []
    task = {"images_per_class": 2, "callback": lambda labels, step, steps, success: seen.append(success)}
    attack.run(tiny_target("decoys", k=2), tiny_generator("dcgan"), [1, 4], **task)
    assert seen
    assert all(math.isnan(one) for one in seen)
