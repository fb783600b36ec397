"""A run in which the head, or everything in front of it, cannot learn is refused before its first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from transformers import AutoModelForImageClassification

from calor_hf import CALoRForImageClassification, DefenseTrainer
from calor_hf.modeling import lora_config
from calor_hf.training.calor_trainer import trainer_class
from tests.training.small_task import Patterns, arguments, config

peft = pytest.importorskip("peft", reason="adapters need the extra calor-hf[peft]")
# peft asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")


def calor() -> Any:
    return CALoRForImageClassification.from_config(config("vit"), rank=3)


def ordinary() -> Any:
    return AutoModelForImageClassification.from_config(config("vit"))


def run(folder: Path, model: Any, optimizer: Any = None) -> DefenseTrainer:
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    args = arguments(folder, max_steps=1, adapt_steps=1, save_strategy="no")
    return trainer_class(inside)(
        model=model,
        args=args,
        train_dataset=Patterns(16, 1),
        eval_dataset=Patterns(12, 2),
        optimizers=(optimizer, None),
    )


def without_gradient(module: Any) -> None:
    module.forward = torch.no_grad()(module.forward)


def frozen_weight(model: Any) -> None:
    model.classification_head.down.bias.requires_grad_(False)


def frozen_layer(model: Any) -> None:
    model.classification_head.up.requires_grad_(False)


def head_with_rate_0(model: Any) -> Any:
    groups = [{"params": model.backbone.parameters()}, {"params": model.classification_head.parameters(), "lr": 0.0}]
    return SGD(groups, lr=0.01)


def head_without_gradient(model: Any) -> None:
    without_gradient(model.classification_head)


def frozen_backbone(model: Any) -> None:
    model.backbone.requires_grad_(False)


def backbone_without_gradient(model: Any) -> None:
    without_gradient(model.backbone)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (frozen_weight, r"classification_head.down.bias cannot learn, .*: it is frozen; call requires_grad_\(True\)"),
        (frozen_layer, "classification_head.up.weight cannot learn, .*: it is frozen"),
        (head_with_rate_0, "classification_head.down.weight cannot learn, .*: its learning rate is 0"),
        (
            head_without_gradient,
            "classification_head.down.weight cannot learn, .*: the scores do not depend on it; run",
        ),
        (
            frozen_backbone,
            "nothing in front of the classification head can learn: .* frozen; .* the defense 'transfer'",
        ),
        (backbone_without_gradient, "nothing in front of the classification head can learn: .* do not depend on it"),
    ],
)
def test_what_cannot_learn_is_refused(spoil: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    model = calor()
    trainer = run(tmp_path, model, spoil(model))
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_optimizer_of_an_earlier_training_lacks_what_was_frozen_then(tmp_path: Path) -> None:
    model = calor()
    trainer = run(tmp_path, model)
    model.classification_head.requires_grad_(False)
    trainer.create_optimizer()
    model.classification_head.requires_grad_(True)
    with pytest.raises(ValueError, match=r"down\.weight cannot learn, .*: the optimizer does not hold it; make the"):
        trainer.train()


def test_classifier_of_an_ordinary_model_is_found(tmp_path: Path) -> None:
    model = ordinary()
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match=r"classifier\.weight cannot learn"):
        run(tmp_path, model).train()


def adapted(model: Any, names: Callable[[str], bool], whole: list[str]) -> Any:
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and names(name)]
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=linear, modules_to_save=whole))


@pytest.mark.parametrize(
    ("model", "names", "whole", "message"),
    [
        (
            calor,
            "backbone",
            ["classifier"],
            r'cannot learn, .* frozen; .* pass modules_to_save=\["classification_head"\]',
        ),
        (
            calor,
            "classification_head",
            None,
            "nothing in front of the .* frozen; .* layers of the backbone as target_mod",
        ),
        (ordinary, "vit", None, r'classifier.weight cannot learn, .* with peft pass modules_to_save=\["classifier"\]'),
        (calor, "", None, None),  # adapters on the head too
        (ordinary, "vit", ["classifier"], None),
    ],
)
def test_adapters_have_to_reach_the_head_and_the_backbone(
    model: Callable[[], Any], names: str, whole: list[str], message: str | None, tmp_path: Path
) -> None:
    trainer = run(tmp_path, adapted(model(), lambda name: name.startswith(names), whole))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
    if message is None:
        trainer.train()
        moved = {
            name for name, value in trainer.model.named_parameters() if name in before and (value != before[name]).any()
        }
        assert {"classif" in name for name in moved} == {True, False}
        return
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_lora_config_of_ours_passes(tmp_path: Path) -> None:
    model = calor()
    run(tmp_path, peft.get_peft_model(model, lora_config(model, r=2))).train()
