"""What attacks are expected to cost, held against what they count."""

from pathlib import Path
from typing import Any

import pytest
import torch

from calor_hf.attacks import ATTACKS
from calor_hf.auditing.forecast import PASSES, Forecast, Trials, forecast
from tests.attacks.tiny_world import VARIANTS, Pictures, ready, tiny_generator, tiny_target

QUICK = ("gmi", "ked", "plg", "ppa", "mirror", "if_gmi", "rlb", "mirror_blackbox", "lokt")
TOLD = [
    pytest.param(variant, marks=[] if variant in QUICK else [pytest.mark.slow])
    for variant, (name, _) in VARIANTS.items()
    if name not in ("brep", "auto")
]


def told(variant: str, prior: str, folder: Path, classes: int, chunk: int, processes: int = 1, **settings: Any) -> Any:
    target, generator = tiny_target(dtype=torch.float32), tiny_generator(prior, torch.float32)
    attack = ready(variant, target, generator, folder, **settings)
    found = forecast(
        attack, target, generator, range(classes), name=variant, images_per_class=2, chunk_size=chunk,
        processes=processes, public_images=Pictures(), trial_seconds=0.1,
    )  # fmt: skip
    return attack, target, generator, found


def counted(attack: Any, target: Any, generator: Any, classes: int, chunk: int) -> dict[str, int]:
    spent = attack.run(target, generator, range(classes), images_per_class=2, chunk_size=chunk).cost
    return {name: getattr(spent, name) for name in PASSES if name != "discriminator_passes"}


def without_discriminator(found: Forecast) -> dict[str, int]:
    return {name: count for name, count in found.passes.items() if name != "discriminator_passes"}


@pytest.mark.parametrize("variant", TOLD)
def test_passes_are_those_that_the_attack_counts(variant: str, tmp_path: Path) -> None:
    prior = "dcgan" if variant.startswith("if_gmi") else "renderer"
    longer: dict[str, Any] = (
        {"enough": 2.0} if variant.startswith("mirror_blackbox") else {}
    )  # no class is found before the end
    attack, target, generator, found = told(variant, prior, tmp_path, 5, 4, **longer)
    assert without_discriminator(found) == counted(attack, target, generator, 5, 4)
    assert found.seconds > 0
    assert found.memory_bytes > 0


@pytest.mark.parametrize("variant", ["plg, chosen starts", "ppa", "mirror_blackbox"])
def test_a_generator_with_classes_looks_for_starts_of_each(variant: str, tmp_path: Path) -> None:
    longer: dict[str, Any] = {"enough": 2.0} if variant.startswith("mirror_blackbox") else {}
    attack, target, generator, found = told(variant, "conditional", tmp_path, 3, 4, **longer)
    assert without_discriminator(found) == counted(attack, target, generator, 3, 4)


def test_gmi_by_hand(tmp_path: Path) -> None:
    # 5 classes x 2 images: 7 steps each, and one look at the end; the discriminator sees each step.
    *_, found = told("gmi", "dcgan", tmp_path, 5, 4, steps=7)
    assert found.passes == {
        "generator_passes": 80, "discriminator_passes": 70, "target_passes": 80, "target_gradients": 70,
    }  # fmt: skip


def test_plg_by_hand(tmp_path: Path) -> None:
    # Two views a step.
    *_, found = told("plg", "renderer", tmp_path, 5, 4, steps=7)
    assert found.passes == {
        "generator_passes": 80, "discriminator_passes": 0, "target_passes": 150, "target_gradients": 140,
    }  # fmt: skip


def test_ppa_by_hand_and_shared_by_processes(tmp_path: Path) -> None:
    # 5 classes x 2 images x 2 restarts: 8 steps and one look, 3 more in the final selection. Each of 2 processes makes
    # the pool of 40 and shows it twice.
    *_, found = told("ppa", "renderer", tmp_path, 5, 4, processes=2)
    assert found.passes == {
        "generator_passes": 20 * 9 + 2 * 40, "discriminator_passes": 0, "target_passes": 20 * (9 + 3) + 2 * 80,
        "target_gradients": 160,
    }  # fmt: skip


def test_mirror_by_hand(tmp_path: Path) -> None:
    *_, found = told("mirror", "renderer", tmp_path, 5, 4)
    assert found.passes == {
        "generator_passes": 10 * 9 + 40, "discriminator_passes": 0, "target_passes": 10 * 9 + 40,
        "target_gradients": 80,
    }  # fmt: skip


def test_auto_plans_its_members_and_shared_starts_once(tmp_path: Path) -> None:
    members: dict[str, Any] = {
        "members": ("plg:steps=3,initial_candidates=40", "bypass:steps=2,initial_candidates=40", "gmi:steps=4")
    }
    attack, target, generator, found = told("auto", "renderer", tmp_path, 5, 4, **members)
    assert without_discriminator(found) == counted(attack, target, generator, 5, 4)


def test_wall_time_is_that_of_the_process_with_most_classes() -> None:
    target, generator = tiny_target(dtype=torch.float32), tiny_generator("renderer", torch.float32)
    plg = ATTACKS.get("plg")
    rates = Trials(plg(plg.configure(steps=30)), target, generator, [0, 1], 2).rates()
    alone, shared = rates.total(5)[0], rates.total(5, 2)[0]
    assert shared / alone == pytest.approx(3 / 5)
    assert rates.total(5, 8)[0] / alone == pytest.approx(1 / 5)


def test_what_cannot_be_told_is_named(tmp_path: Path) -> None:
    *_, found = told("brep", "renderer", tmp_path, 5, 4)
    assert found.seconds != found.seconds  # NaN
    assert "depends on the target's answers" in found.notes[0]
    *_, found = told("trapdoor", "renderer", tmp_path, 5, 4)
    assert "learns before the first class is not counted" in found.notes[0]


def test_settings_change_and_what_was_learned_stays(tmp_path: Path) -> None:
    target, generator = tiny_target(dtype=torch.float32), tiny_generator("renderer", torch.float32)
    attack: Any = ready("lokt", target, generator, tmp_path)
    other: Any = attack.with_settings(steps=3, lr=0.5)
    assert (other.config.steps, other.inner.config.steps, other.inner.config.lr) == (3, 3, 0.5)
    assert other.students is attack.students
    assert attack.inner.config.steps == attack.config.steps == 6
