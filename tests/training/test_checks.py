"""Checks before the first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from calor_hf import CALoRForImageClassification, CALoRTrainer, CALoRTrainingArguments
from calor_hf.training.before_training import _warn_of_names
from calor_hf.training.checks import check_labels
from calor_hf.training.learning import unused_parameters
from tests.tiny_models import EVERY, tiny_base, tiny_inputs

SLOW = ("PerceiverForImageClassificationFourier", "PerceiverForImageClassificationConvProcessing")


@pytest.mark.parametrize(
    "class_name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EVERY]
)
def test_unused_weights_are_those_that_get_no_gradient_in_training_either(class_name: str) -> None:
    model = CALoRForImageClassification.from_base(tiny_base(class_name), rank=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    inputs = tiny_inputs(class_name)
    unused = {id(weight) for weight in unused_parameters(model, inputs)}
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())

    model.stage = "fit"
    model(**inputs, labels=torch.tensor([0, 3, 9, 3])).loss.backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (id(weight) in unused), name


def test_labels_that_the_model_has_no_class_for_are_refused_before_training(tmp_path: Path) -> None:
    class Samples(torch.utils.data.Dataset[dict[str, Any]]):
        labels = torch.tensor([0, 1, 10])

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> dict[str, Any]:
            raise AssertionError("no image is read")

    args = CALoRTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model = CALoRForImageClassification.from_base(tiny_base("vit"), rank=3)
    with pytest.raises(ValueError, match=r"a label of the data is 10, but the model has 10 classes \(0 to 9\)"):
        CALoRTrainer(model=model, args=args, train_dataset=Samples(), eval_dataset=Samples()).train()


def test_labels_of_a_hub_data_set_are_read_without_its_images() -> None:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list("abc"))})
    data = Dataset.from_dict({"image": [Image.new("L", (1, 1))] * 2, "label": [0, 2]}, features=features)

    def refuse(batch: Any) -> Any:
        raise AssertionError("no image is read")

    check_labels(data.with_transform(refuse), 3)
    with pytest.raises(ValueError, match="a label of the data is 2, but the model has 2 classes"):
        check_labels(data.with_transform(refuse), 2)


def test_ignored_and_soft_and_unknown_labels_pass() -> None:
    class Ignored:
        labels = (-100, 1)

    class Soft:
        labels = torch.full((2, 5), 0.2)

    for data in (Ignored(), Soft(), [1, 2], None):
        check_labels(data, 2)


@pytest.mark.parametrize(
    ("report_to", "names", "warns"),
    [
        (["wandb", "tensorboard"], ["Ada", "Grace"], True),
        (["tensorboard"], ["Ada", "Grace"], False),
        (["trackio"], ["LABEL_0", "LABEL_1"], False),
    ],
)
def test_trackers_that_get_names_of_people_are_warned_of(
    report_to: list[str], names: list[str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(names))))
    _warn_of_names(SimpleNamespace(bare_model=model, args=SimpleNamespace(report_to=report_to, should_log=True)))
    assert ("wandb get the names of the classes" in caplog.text) == warns
    assert bool(caplog.text) == warns
