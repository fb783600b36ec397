"""Planned cost of attacks, compared with the cost that they count."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calor_hf import AuditOptions
from calor_hf.attacks.specs import NamedAttack
from calor_hf.recipes.plan import PASSES, Part, _extrapolated, plan_attack
from tests.attacks.tiny_world import VARIANTS, Pictures, ready, tiny_generator, tiny_target

QUICK = ("gmi", "rlb", "auto")
EACH = [
    pytest.param(variant, marks=[] if variant in QUICK else [pytest.mark.slow])
    for variant, (name, _) in VARIANTS.items()
    if name != "brep"  # ends by the target's answers
]


def planned(
    variant: str, prior: str, folder: Path, classes: int, processes: int = 1, seconds: float = 1e6, **settings: Any
) -> tuple[Part, dict[str, int]]:
    """Plan of an attack on some classes, and the passes that it counts in one process."""
    target, generator = tiny_target(dtype=torch.float32), tiny_generator(prior, torch.float32)
    if variant.startswith("mirror_blackbox"):
        settings["enough"] = 2.0  # no class is found before the end
    if variant == "auto":  # none that ends by the target's answers; two that share their starts
        settings["members"] = (
            "plg:steps=3,initial_candidates=40",
            "bypass:steps=2,initial_candidates=40",
            "gmi:steps=4",
        )
    attack = ready(variant, target, generator, folder, **settings)
    options = AuditOptions(images_per_class=2, chunk_size=4, public_images=Pictures())
    named = NamedAttack(variant, variant, attack)
    part, memory, learns = plan_attack(named, target, generator, range(classes), options, processes, seconds)
    assert part.seconds > 0
    assert memory > 0
    assert learns == variant.startswith(("trapdoor", "lokt", "surrogate"))
    spent = attack.run(target, generator, range(classes), images_per_class=2, chunk_size=4).cost
    return part, {name: getattr(spent, name) for name in PASSES}


@pytest.mark.parametrize("variant", EACH)
def test_trials_up_to_the_whole_budget_give_the_passes(variant: str, tmp_path: Path) -> None:
    priors = {"if_gmi": "dcgan", "sfmi": "flow"}
    part, counted = planned(variant, priors.get(VARIANTS[variant][0], "renderer"), tmp_path, 5)
    assert part.passes == counted


@pytest.mark.parametrize("variant", ["plg, chosen starts", "ppa", "mirror_blackbox"])
def test_a_conditional_generator_draws_starts_for_each_class(variant: str, tmp_path: Path) -> None:
    part, counted = planned(variant, "conditional", tmp_path, 3)
    assert part.passes == counted


@pytest.mark.parametrize("variant", ["gmi", pytest.param("mirror", marks=pytest.mark.slow)])
def test_short_trials_are_extrapolated(variant: str, tmp_path: Path) -> None:
    part, counted = planned(variant, "renderer", tmp_path, 5, seconds=0.0, steps=40)
    for name, count in counted.items():
        assert part.passes[name] == pytest.approx(count, rel=0.05)


def test_settings_that_stop_shrinking_early_are_extrapolated_by_their_own_slopes(tmp_path: Path) -> None:
    # At the smallest budgets the later stages have one step each.
    lengths = {"steps": 40, "later_steps": 20, "most_stages": 2}
    part, counted = planned("if_gmi", "dcgan", tmp_path, 3, seconds=0.0, **lengths)
    for name, count in counted.items():
        assert part.passes[name] == pytest.approx(count, rel=0.05)


def test_passes_of_gmi_by_hand(tmp_path: Path) -> None:
    # 5 classes x 2 images: 7 steps each, and the final images.
    part, _ = planned("gmi", "dcgan", tmp_path, 5, steps=7)
    assert part.passes == {"generator_passes": 80, "target_passes": 80, "target_gradients": 70}


def test_processes_repeat_what_is_done_once_a_run(tmp_path: Path) -> None:
    # 5 classes x 2 images x 2 restarts: 8 steps and one look, 3 more in the final selection. Each of 2 processes makes
    # the pool of 40 and shows it twice.
    part, _ = planned("ppa", "renderer", tmp_path, 5, processes=2)
    passes = {"generator_passes": 20 * 9 + 2 * 40, "target_passes": 20 * 12 + 2 * 80, "target_gradients": 160}
    assert part.passes == passes


def test_an_attack_that_ends_by_the_answers_has_a_plan_too(tmp_path: Path) -> None:
    part, counted = planned("brep", "renderer", tmp_path, 5)
    assert 0.2 < part.passes["target_passes"] / counted["target_passes"] < 5


def test_the_whole_cost_from_three_trials() -> None:
    # 1 + 2 steps + 3 views: trials at (1, 1), (2, 1) and (1, 3); the whole budget is (5, 7).
    found = _extrapolated(np.array([6.0]), [(np.array([8.0]), 4 / 1), (np.array([12.0]), 6 / 2)])
    assert found.tolist() == [1 + 2 * 5 + 3 * 7]
    assert _extrapolated(np.array([4.0]), []).tolist() == [4.0]
