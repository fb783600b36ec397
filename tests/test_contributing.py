"""The worked examples of CONTRIBUTING.md: a new method is one source file, and every contract test passes over it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# As if the files lay in the package's folders: the registries look through the packages' paths.
PLUGIN = """
import importlib
from pathlib import Path

for folder in (Path(__file__).parent / "package").iterdir():
    importlib.import_module(f"calor_hf.{folder.name}").__path__.append(str(folder))
"""
METRIC = '''
"""Brightness: a metric of the documented steps alone."""

from calor_hf.metrics.base import METRICS, Evidence, Measure, Metric, check_rows, mean_over_images


@METRICS.register("brightness")
class Brightness(Metric):
    """Mean brightness of the reconstructions."""

    needs = ("images", "labels")

    def measure(self, evidence: Evidence) -> list[Measure]:
        """The mean over all pixels."""
        self.require(evidence)
        check_rows(evidence.labels, images=evidence.images)
        values = evidence.images.double().mean(dim=(1, 2, 3))
        return [mean_over_images("brightness", "share", "neither", values, evidence.labels)]
'''
GENERATOR = '''
"""Linear: a generator of the documented steps alone."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from calor_hf.core.config import MethodConfig
from calor_hf.generators.base import GENERATORS, Generator


@dataclass(frozen=True, kw_only=True)
class LinearConfig(MethodConfig):
    """Settings of :class:`Linear`."""

    image_size: int = field(default=64, metadata={"help": "Side in pixels."})


@GENERATORS.register("linear")
class Linear(Generator[LinearConfig]):
    """One linear layer and a sigmoid."""

    config_class = LinearConfig
    latent_dim = 8

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        self.image_size = config.image_size
        self.layer = torch.nn.Linear(self.latent_dim, 3 * config.image_size**2)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """(batch, 3, side, side) from (batch, latent_dim)."""
        return torch.sigmoid(self.layer(latents)).unflatten(1, (3, self.image_size, self.image_size))
'''


def blocks_under(heading: str) -> list[str]:
    """Python blocks of a section of CONTRIBUTING.md."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def contract_of(folder: Path, room: str, name: str, source: str, tests: list[str]) -> list[str]:
    """Write the file, run the tests that name it, and return those that passed; none may fail."""
    package = folder / "package" / room
    package.mkdir(parents=True)
    (package / f"{name}.py").write_text(source, encoding="utf-8")
    (folder / "with_example.py").write_text(PLUGIN, encoding="utf-8")
    path = f"{REPOSITORY}{os.pathsep}{folder}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "with_example", "-p", "no:cacheprovider", "-vv", "-n", "0", "-k", name,
         "-m", "slow or not slow", *tests],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " SKIPPED" not in done.stdout
    return re.findall(r"::(test_\w+)(?:\[[^]]*\])? PASSED", done.stdout)


@pytest.mark.slow
def test_the_example_of_a_defense_is_found_trained_saved_and_tested(tmp_path: Path) -> None:
    source, test = blocks_under("How to add a defense")
    own = tmp_path / "test_confidence_penalty.py"
    own.write_text(test, encoding="utf-8")
    contracts = ["tests/defenses/test_defense_contract.py", "tests/training/test_every_defense.py"]
    passed = contract_of(tmp_path, "defenses", "confidence_penalty", source, [str(own), *contracts])
    assert set(passed) >= {
        "test_loss_matches_hand_computed_value",
        "test_negative_weight_is_refused",
        "test_config_round_trip",
        "test_resumed_equals_uninterrupted",
        "test_saved_model_reloads_with_equal_scores_and_runs_in_a_pipeline",
        "test_to_base_gives_the_stock_model_where_no_module_was_changed",
    }
    assert passed.count("test_resumed_equals_uninterrupted") == 3  # three kinds of base


@pytest.mark.slow
def test_the_example_of_an_attack_passes_the_whole_contract(tmp_path: Path) -> None:
    (source,) = blocks_under("How to add an attack")
    contracts = [
        "tests/attacks/test_attack_contract.py",
        "tests/attacks/test_faults.py",
        "tests/cli/test_plan_attack.py",
    ]
    passed = contract_of(tmp_path, "attacks", "hill_climbing", source, contracts)
    assert set(passed) >= {
        "test_result_depends_on_the_seed_and_not_on_the_grouping",
        "test_an_attack_twice_gives_the_same_bits",
        "test_target_and_generator_are_left_as_they_were",
        "test_no_other_network_runs",
        "test_a_stochastic_target_is_drawn_by_image_and_step",
        "test_queries_are_what_the_target_was_asked",
        "test_an_attack_is_handed_its_view_and_nothing_behind_it",
        "test_settings_presets_and_budgets",
        "test_a_target_that_returns_nan_in_the_middle",
        "test_trials_up_to_the_whole_budget_give_the_passes",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "name", "source", "contract"),
    [("metrics", "brightness", METRIC, "tests/metrics/test_metric_contract.py"),
     ("generators", "linear", GENERATOR, "tests/generators/test_generators.py")],
)  # fmt: skip
def test_the_documented_steps_are_enough(room: str, name: str, source: str, contract: str, tmp_path: Path) -> None:
    assert len(contract_of(tmp_path, room, name, source, [contract])) >= 3
