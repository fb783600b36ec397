"""Importing the package: Auto classes registered, nothing heavy loaded, every name there."""

import subprocess
import sys

import pytest

import calor_hf


def run(code: str) -> str:
    """Output of a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_loading_a_submodule_first_registers_the_auto_classes_and_loads_nothing_heavy() -> None:
    code = """
import sys
import calor_hf.defenses.calor
from transformers import AutoConfig, AutoModelForImageClassification
config = AutoConfig.for_model("calor")
print(type(config).__name__, AutoModelForImageClassification._model_mapping[type(config)].__name__)
import calor_hf.data.synthetic_faces, calor_hf.robustness
print(sorted({"art", "datasets", "evaluate", "matplotlib", "tensorboard"} & set(sys.modules)))
"""
    assert run(code).splitlines() == ["CALoRConfig CALoRForImageClassification", "[]"]


@pytest.mark.parametrize("name", calor_hf.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(calor_hf, name) is not None


def test_names_are_listed() -> None:
    assert sorted(calor_hf.__all__) == sorted(set(calor_hf.__all__))
    assert set(calor_hf.__all__) <= set(dir(calor_hf))


def test_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(AttributeError, match=r"'calor_hf' has no attribute 'CALoRTrainr'; it has .*CALoRTrainer,"):
        calor_hf.CALoRTrainr  # noqa: B018
