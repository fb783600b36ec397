"""Importing the package: Auto classes registered, nothing heavy loaded, every name there."""

import subprocess
import sys

import pytest

import calor_hf


def run(code: str) -> str:
    """Output of a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


WRONG_USE = """
trian | gmii | list gmii | decoys dela
train --rnak 3 | train --learning-rate x | train --lr-scheduler-type cosin | train --defense calro
train --seed | train --role juror
plan trian | plan train --rnak 3 | plan audit --target | plan prior --seed x | plan --processes x train
compare --defenses mid --num-train-epoch 3 | compare --defenses calro | compare --trials x | compare --head-init svdd
decoys deal --pol a | decoys deal --k x | decoys deal --on-bad-image hide | decoys check --modle a | decoys check
decoys accuracy --model | decoys accuracy a --modle b
prior --priro gmi | prior --prior gmii | prior --minutes x | prior --seed
audit a --atacks gmi | audit | audit a --attacks gmii | audit a --images-per-class x | audit a --on-bad-image hide
robustness --targt a | robustness | robustness --target a --attacks pgdd | robustness --target a --eps x
export a --output b --fromat onnx | export a | export a --output b --format tf | export a --output b --image-size x
report --dif a b | report --diff a | card | card a --licence b | push a | push a b --privat
"""


def test_help_list_and_a_wrong_use_load_no_heavy_library() -> None:
    code = f"""
import sys
from calor_hf.cli.main import main

def status(words):
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code

print([status(words) for words in ([], ["--help"], ["--version"], ["list"])])
heavy = {{"torch", "transformers", "numpy", "datasets", "diffusers", "matplotlib"}}
for words in {[one.split() for one in WRONG_USE.replace(chr(10), "|").split("|") if one.strip()]}:
    if status(words) != 2 or heavy & set(sys.modules):
        sys.exit(f"{{words}}: {{heavy & set(sys.modules)}}")
"""
    assert run(code).splitlines()[-1] == "[0, 0, 0, 0]"


@pytest.mark.parametrize(
    "imports",
    [
        ("calor_hf", "importlib.util", "transformers.models.auto.modeling_auto"),
        pytest.param(("transformers", "calor_hf"), marks=pytest.mark.slow),
    ],
)
def test_auto_classes_are_registered_in_any_order_of_imports(imports: tuple[str, ...]) -> None:
    code = f"""
import {", ".join(imports)}
if "importlib.util" in {imports}:
    importlib.util.find_spec("transformers")  # looking for it does not use up the registration
from transformers import AutoConfig, AutoModelForImageClassification
config = AutoConfig.for_model("calor")
print(type(config).__name__, AutoModelForImageClassification._model_mapping[type(config)].__name__)
"""
    assert run(code) == "CALoRConfig CALoRForImageClassification"


def test_loading_a_submodule_first_registers_the_auto_classes_and_loads_nothing_heavy() -> None:
    code = """
import sys
import calor_hf.defenses.calor
from transformers import AutoConfig, AutoModelForImageClassification
config = AutoConfig.for_model("calor")
print(type(config).__name__, AutoModelForImageClassification._model_mapping[type(config)].__name__)
import calor_hf.data.synthetic_faces, calor_hf.generators, calor_hf.priors, calor_hf.robustness
print(sorted({"art", "datasets", "diffusers", "evaluate", "matplotlib", "tensorboard"} & set(sys.modules)))
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
