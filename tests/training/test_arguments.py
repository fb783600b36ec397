from pathlib import Path
from typing import Any

import pytest
from transformers.trainer_utils import HubStrategy

from calor_hf import CALoRTrainingArguments


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adapt_epochs": 0}, "adapt_epochs must be > 0, got 0"),
        ({"adapt_steps": -1}, "adapt_steps must be > 0, got -1"),
        ({"adapt_learning_rate": 0.0}, "adapt_learning_rate must be > 0"),
        ({"max_accuracy_drop": -1.0}, "max_accuracy_drop must be >= 0"),
        ({"adapt_start_epoch": 3.0, "num_train_epochs": 3}, "must lie inside num_train_epochs=3"),
        ({"adapt_start_epoch": 1.0, "max_steps": 10}, "adapt_start_epoch counts epochs"),
        ({"label_smoothing_factor": 0.1}, "confidence adaptation sets the confidence"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, "pass one that follows steps"),
        ({"lr_drop_epochs": [1.0]}, "lr_drop_epochs is a schedule of its own"),
        ({"lr_drop_epochs": [0.0], "lr_scheduler_type": "constant"}, "lr_drop_epochs must be > 0"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "perhaps from before the adapt stage",
        ),
    ],
)
def test_bad_values_are_refused_with_the_reason(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        CALoRTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **wrong)


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    args = CALoRTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.adapt_epochs, args.max_accuracy_drop) == (10.0, 0.5)
    assert args.report_to == ["tensorboard"]


def test_unfinished_models_are_not_pushed_unless_asked(tmp_path: Path) -> None:
    def strategy(**changes: Any) -> HubStrategy:
        return CALoRTrainingArguments(output_dir=str(tmp_path), use_cpu=True, push_to_hub=True, **changes).hub_strategy

    assert strategy() == HubStrategy.END
    with pytest.raises(ValueError, match="hub_strategy=every_save would push models that are not defended yet"):
        strategy(hub_strategy="every_save")
    with pytest.raises(ValueError, match="hub_strategy=checkpoint would publish optimizer states"):
        strategy(hub_strategy="checkpoint", push_unfinished=True)
    assert strategy(hub_strategy="every_save", push_unfinished=True) == HubStrategy.EVERY_SAVE
