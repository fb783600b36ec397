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
from tests.training.small_task import TRAINED, Patterns, arguments, assert_same_weights, config, defense_trainer

peft = pytest.importorskip("peft", reason="adapters need the extra calor-hf[peft]")
# peft asks transformers 5.23 by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")


def calor() -> Any:
    return CALoRForImageClassification.from_config(config("vit"), rank=3)


def ordinary() -> Any:
    return AutoModelForImageClassification.from_config(config("vit"))


def run(folder: Path, model: Any, optimizer: Any = None, **changes: Any) -> DefenseTrainer:
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    args = arguments(folder, max_steps=1, adapt_steps=1, save_strategy="no", **changes)
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
            r"nothing in front of the classification head can learn: .* frozen; .* pass head_only=True \(--head-only\)",
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


def parts(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """State of what is in front of the head, and of the head."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    head = {name for name in state if name.startswith("classif")}
    return {name: state[name] for name in state.keys() - head}, {name: state[name] for name in head}


def changed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return any(not torch.equal(value, after[name]) for name, value in before.items())


HEAD_ONLY: dict[str, Any] = {"max_steps": 2, "adapt_steps": 2, "save_strategy": "no", "head_only": True}


@pytest.mark.parametrize("name", ["ordinary", *(name for name in TRAINED if name != "bido")])
def test_the_head_alone_learns_if_asked_to(name: str, tmp_path: Path) -> None:
    if name == "ordinary":
        model = AutoModelForImageClassification.from_config(config("resnet"))
        args = arguments(tmp_path, **HEAD_ONLY)
        trainer = DefenseTrainer(model=model, args=args, train_dataset=Patterns(32, 1), eval_dataset=Patterns(12, 2))
    else:
        trainer = defense_trainer(tmp_path, name, "resnet", **HEAD_ONLY)
    body, head = parts(trainer.model)
    assert any("running_mean" in one for one in body)
    trainer.train()
    trained_body, trained_head = parts(trainer.model)
    assert not changed(body, trained_body)
    assert changed(head, trained_head)
    if name == "calor":  # in the first stage and in the second
        between_body, between_head = parts(type(trainer.model).from_pretrained(tmp_path / "stage-1"))
        assert not changed(body, between_body)
        assert changed(head, between_head)
        assert changed(between_head, trained_head)
    assert all(weight.requires_grad for weight in trainer.model.parameters())


def test_a_frozen_body_passes_with_head_only_and_a_frozen_head_does_not(tmp_path: Path) -> None:
    model = calor()
    frozen_backbone(model)
    run(tmp_path, model, head_only=True).train()
    assert not any(weight.requires_grad for weight in model.backbone.parameters())
    frozen_weight(model)
    with pytest.raises(ValueError, match=r"classification_head.down.bias cannot learn"):
        run(tmp_path, model, head_only=True).train()


def test_an_adapter_of_the_body_stays_as_it_is_with_head_only(tmp_path: Path) -> None:
    model = adapted(calor(), lambda name: name.startswith("backbone"), ["classification_head"])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run(tmp_path, model, head_only=True).train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(before[name], weight)}
    assert moved
    assert all("classification_head.modules_to_save" in name for name in moved)


def test_head_only_is_refused_if_the_defense_is_about_hidden_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head_only has no effect on the hidden layers that 'bido' is about"):
        defense_trainer(tmp_path, "bido", "resnet", **HEAD_ONLY).train()


def test_a_run_of_the_head_alone_resumes_as_one(tmp_path: Path) -> None:
    settings = {**HEAD_ONLY, "save_strategy": "epoch", "adapt_only_last_layer": True}
    whole = defense_trainer(tmp_path, "calor", "resnet", **settings)
    body, _ = parts(whole.model)
    whole.train()
    again = defense_trainer(tmp_path, "calor", "resnet", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_weights(again.model, whole.model)
    assert not changed(body, parts(again.model)[0])
    other = defense_trainer(tmp_path, "calor", "resnet", **{**settings, "head_only": False})
    with pytest.raises(ValueError, match="head_only was True, now it is False"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
