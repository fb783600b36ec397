"""Whatever is passed to the trainer acts, in each stage, or is refused before the first step."""

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, SequentialSampler, default_collate
from transformers import (
    EarlyStoppingCallback,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from calor_hf import CALoRForImageClassification, CALoRTrainer, DefenseTrainer
from calor_hf.modeling import defend
from calor_hf.training.callbacks import StageCallback
from calor_hf.training.calor_trainer import NotAdaptedError
from calor_hf.training.parameters import PARAMETERS
from tests.training.small_task import CLASSES, Patterns, arguments, assert_same_weights, config, defense_trainer

pytestmark = pytest.mark.usefixtures("always_adapts")

FIT, END = 2, 6  # steps: an epoch of two, then two epochs of adapting


def model() -> Any:
    torch.manual_seed(0)
    return CALoRForImageClassification.from_config(config("resnet"), rank=3)


def trainer(
    folder: Path, kind: type[CALoRTrainer] = CALoRTrainer, given: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A run of six steps; ``given`` are parameters of the trainer, ``changes`` training arguments."""
    plan = {"num_train_epochs": 1, "adapt_epochs": 2, "logging_steps": 1, "save_strategy": "no", **changes}
    parameters = {"model": model(), "train_dataset": Patterns(32, 1), "eval_dataset": Patterns(30, 2), **(given or {})}
    return kind(args=arguments(folder, **plan), **parameters)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = trainer(tmp_path_factory.mktemp("plain"))
    run.train()
    return run


def test_the_table_names_every_parameter_of_this_version() -> None:
    assert list(PARAMETERS) == [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]


# Refused


class Tuples(Patterns):
    def __getitem__(self, index: int) -> Any:
        return tuple(super().__getitem__(index).values())


class Labeled(Patterns):
    """Labels that only the samples know."""

    def __init__(self, value: Any) -> None:
        super().__init__(32, 1)
        self._labels, self.value = self.labels, value
        del self.labels

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Any:
        label = int(self._labels[index])
        return {"pixel_values": self.images[index], "labels": label if index % 3 else self.value}


def mixed(batch: Any) -> Any:
    batch = default_collate(batch)
    hard = torch.nn.functional.one_hot(batch["labels"], CLASSES).float()
    return {"pixel_values": batch["pixel_values"], "labels": (hard + hard.flip(0)) / 2}


def several(batch: Any) -> Any:
    return {**mixed(batch), "labels": torch.ones(len(batch), CLASSES)}


def transformed() -> Any:
    data = datasets.Dataset.from_dict({"image": [[0.0]] * 4, "label": [0, 1, 2, 3]})
    return data.with_transform(lambda rows: {"pixel_values": rows["image"], "labels": rows["label"]})


def without_a_class(p: Any) -> float:
    return 0.5


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "loss": ({"compute_loss_func": lambda *a, **k: 0}, {}, "compute_loss_func would replace the loss"),
    "no model": ({"model": torch.nn.Linear(1, 1)}, {}, "of transformers, got Linear"),
    "no training data": ({"train_dataset": None}, {}, "train_dataset must hold images"),
    "name": ({"eval_dataset": "test"}, {}, "eval_dataset must be one data set, got str"),
    "splits": ({"eval_dataset": {"a": Patterns(4, 2)}}, {}, "needs one eval_dataset"),
    "class weights": ({"class_weights": torch.ones(2)}, {}, r"shape \(6,\), a weight per class"),
    "tuples": ({"train_dataset": Tuples(32, 1)}, {}, "no training batch can be made.*must be dictionaries"),
    "no labels": ({"data_collator": lambda b: {"x": default_collate(b)["labels"]}}, {}, "named labels, got x"),
    "transform": ({"train_dataset": transformed()}, {}, "KeyError: 'image'.*remove_unused_columns=False"),
    "empty": ({"eval_dataset": Patterns(0, 2)}, {}, "the validation data are empty"),
    "label -1": ({"train_dataset": Labeled(-1)}, {}, "a label of the data is -1"),
    "label 9": ({"eval_dataset": Labeled(9)}, {}, "a label of the data is 9, but the model has 6 classes"),
    "float": ({"train_dataset": Labeled(0.5)}, {}, "must be one int64 class per image or soft labels"),
    "several": ({"data_collator": several}, {}, "soft labels .batch, 6. that add up to 1, got torch.float32 of shape"),
    "mixing": ({"data_collator": mixed}, {}, "confidence adaptation needs one whole-number label.*soft"),
    "early": ({"callbacks": [EarlyStoppingCallback()]}, {"metric_for_best_model": "loss"}, "the stages fit, adapt"),
    "metrics fail": ({"compute_metrics": lambda p: p.logits}, {}, "compute_metrics fails on the validation split: At"),
    "no dictionary": ({"compute_metrics": lambda p: 0.5}, {}, "must return a dictionary of names and numbers"),
    "arrays": ({"compute_metrics": lambda p: {"all": p.predictions}}, {}, "ndarray is not JSON serializable"),
    "unknown best": ({}, {"metric_for_best_model": "f1"}, "metric_for_best_model=f1 is not measured; pass one of acc"),
    "other rate": (
        {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.5})}, {}, "learning_rate is 0.01, and the optimizer's"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_act_is_refused_before_the_first_step(tmp_path: Path, case: str) -> None:
    given, changes, message = REFUSED[case]
    steps: list[int] = []

    class Count(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            steps.append(1)

    given = {**given, "callbacks": [*given.get("callbacks", []), Count()]}
    with pytest.raises((TypeError, ValueError), match=message):
        trainer(tmp_path, given=given, **changes).train()
    assert steps == []


def test_an_optimizer_of_other_weights_is_refused(tmp_path: Path) -> None:
    base = ResNetForImageClassification(config("resnet"))
    optimizer = torch.optim.SGD(base.parameters(), lr=0.01)  # before the head is replaced
    defended = defend(base, "calor", rank=3)
    with pytest.raises(ValueError, match=r"lacks 4 of the model's weights .*classification_head"):
        trainer(tmp_path, given={"model": defended, "optimizers": (optimizer, None)}).train()


def test_a_scheduler_is_refused_if_there_are_stages(tmp_path: Path) -> None:
    defended = model()
    optimizer = torch.optim.SGD(defended.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ValueError, match=r"does not know the stages.*optimizers=\(optimizer, None\)"):
        trainer(tmp_path, given={"model": defended, "optimizers": (optimizer, schedule)})


def test_label_smoothing_of_plain_arguments_is_refused(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to="none")
    base = ResNetForImageClassification(config("resnet"))
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1 would replace the loss"):
        DefenseTrainer(model=base, args=args)


def test_arguments_without_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TrainingArguments knows nothing of the second; pass CALoRTrainingArguments"):
        CALoRTrainer(model=model(), args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


def test_the_callback_of_the_stages_cannot_be_removed(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.remove_callback(StageCallback)
    with pytest.raises(ValueError, match="StageCallback was removed"):
        run.train()


# Acting


def numbers(p: Any) -> dict[str, Any]:
    return {"accuracy": 75.0, "f1": np.float32(0.5), "by_class": {"a": 0.5}, "nothing": float("nan")}


class Batches:
    """Metrics a batch at a time."""

    def __call__(self, p: Any, compute_result: bool) -> dict[str, float]:
        return {"f1": 0.5}


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({"compute_metrics": numbers}, {}),
        ({"compute_metrics": Batches()}, {"batch_eval_metrics": True}),
        ({"compute_metrics": lambda p: {"f1": (p.predictions == p.label_ids).mean()},
          "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(dim=1)}, {}),
        ({}, {"prediction_loss_only": True}),
    ],
    ids=["numbers", "batches", "classes", "loss"],
)  # fmt: skip
def test_metrics_say_what_is_logged_and_do_not_choose_the_result(
    tmp_path: Path, plain: Any, given: dict[str, Any], changes: dict[str, Any]
) -> None:
    run = trainer(tmp_path, given=given, **changes)
    run.train()
    assert run.selection() == plain.selection()
    assert run.measured == plain.measured
    assert_same_weights(run.model, plain.model)
    if given:
        assert all("eval_f1" in entry for entry in run.state.log_history if "eval_loss" in entry)


@pytest.mark.parametrize("changes", [{"save_total_limit": 1, "save_strategy": "epoch"}, {"save_strategy": "best"}])
def test_the_chosen_checkpoint_is_kept_whatever_the_best_metric_is(
    tmp_path: Path, plain: Any, changes: dict[str, Any]
) -> None:
    seen: list[float] = []

    def falling(p: Any) -> dict[str, float]:
        seen.append(-float(len(seen)))
        return {"falls": seen[-1]}

    run = trainer(tmp_path, given={"compute_metrics": falling}, metric_for_best_model="falls", **changes)
    run.train()
    assert run.state.best_metric == -1.0  # that of the first stage
    assert_same_weights(run.model, plain.model)
    best = plain.selection().best.step
    saved = CALoRForImageClassification.from_pretrained(tmp_path / f"checkpoint-{best}")
    assert_same_weights(run.model, saved)


class At(TrainerCallback):
    """Sets ``flags`` of the control after a step, ``before`` or after the trainer's own callback."""

    def __init__(self, step: int, event: str = "on_step_end", **flags: bool) -> None:
        self.step, self.flags = step, flags
        setattr(self, event, self.act)

    def act(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step in (-1, state.global_step):
            vars(control).update(self.flags)


@pytest.mark.parametrize(("step", "stage"), [(1, "fit"), (FIT, "fit"), (3, "adapt")])
def test_a_callback_that_stops_too_early_leaves_a_checkpoint_to_continue(
    tmp_path: Path, plain: Any, step: int, stage: str
) -> None:
    run = trainer(tmp_path, given={"callbacks": [At(step, should_training_stop=True)]})
    folder = tmp_path / f"checkpoint-{step}"
    with pytest.raises(NotAdaptedError, match=f"training ended in stage '.*' after step {step} of 6, .*{folder}"):
        run.train()
    assert (folder / "model.safetensors").is_file()
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert_same_weights(again.model, plain.model)
    accepting = trainer(
        tmp_path / "b", given={"callbacks": [At(step, should_training_stop=True)]}, accept_unadapted=True
    )
    accepting.train()
    assert accepting.state.global_step == step
    assert list(accepting.measured.metrics)[-1] == "result"


def test_a_callback_may_stop_once_there_is_a_result(tmp_path: Path) -> None:
    run = trainer(tmp_path, given={"callbacks": [At(5, "on_log", should_training_stop=True)]})
    run.train()
    assert run.state.global_step == 5
    assert run.selection().best.step == 4


def test_epochs_that_a_callback_ends_are_made_up_for(tmp_path: Path) -> None:
    run = trainer(tmp_path, given={"callbacks": [At(-1, should_epoch_stop=True)]})
    run.train()
    assert run.state.global_step == END
    assert [c.step for c in run.selection().candidates] == [4, 6]


def test_callbacks_cannot_lose_a_candidate(tmp_path: Path, plain: Any) -> None:
    class Evaluates(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not self.busy:
                self.busy = True
                run.evaluate(run.train_dataset)  # logged as eval_*, too
                run.evaluate(run.train_dataset, metric_key_prefix="validation")
                self.busy = False
            control.should_save = False

        busy = False

    run = trainer(tmp_path, given={"callbacks": [Evaluates(), At(1, should_save=True, should_evaluate=True)]})
    run.add_callback(At(-1, should_evaluate=False, should_save=False))
    run.train()
    assert run.selection() == plain.selection()
    assert_same_weights(run.model, plain.model)


def test_an_optimizer_acts_in_each_stage(tmp_path: Path) -> None:
    defended = model()
    optimizer = torch.optim.SGD(defended.parameters(), lr=0.01)
    run = trainer(
        tmp_path, given={"model": defended, "optimizers": (optimizer, None)}, adapt_learning_rate=0.002,
        adapt_only_last_layer=True, lr_scheduler_type="constant",
    )  # fmt: skip
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert max(rates[:FIT]) == pytest.approx(0.01)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.0, 0.002])
    first = CALoRForImageClassification.from_pretrained(tmp_path / "stage-1").state_dict()
    last = CALoRForImageClassification.from_pretrained(tmp_path / f"checkpoint-{END}").state_dict()
    changed = {name for name, value in first.items() if not torch.equal(value, last[name])}
    assert changed == {name for name in first if name.startswith("classification_head.up")}


@pytest.mark.parametrize("by_class", [False, True])
def test_networks_of_a_defense_have_the_same_optimizer(tmp_path: Path, by_class: bool) -> None:
    run = defense_trainer(tmp_path, "trap_mid", "resnet")
    made: list[Any] = []

    class Noted(torch.optim.AdamW):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    run._given_optimizer = True
    if by_class:
        run.optimizer_cls_and_kwargs = (Noted, {"lr": 1e-2, "betas": (0.5, 0.9)})
    else:
        run.optimizer = Noted(run.model.parameters(), lr=1e-2, betas=(0.5, 0.9))
    run.train()
    assert [optimizer.param_groups[0]["betas"] for optimizer in made] == [(0.5, 0.9)] * 2


def test_a_model_from_model_init_is_the_one_that_is_defended(tmp_path: Path, plain: Any) -> None:
    made = []

    def init() -> Any:
        with torch.random.fork_rng():
            made.append(model())
        return made[-1]

    run = trainer(tmp_path, given={"model": None, "model_init": init})
    run.train()
    assert len(made) == 2
    assert run.model is made[1]
    assert run.selection() == plain.selection()
    assert_same_weights(run.model, plain.model)


def test_trials_of_a_search_have_folders_and_results_of_their_own(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run = trainer(tmp_path, given={"model": None, "model_init": model})
    with pytest.raises(ValueError, match="compute_objective is needed"):
        run.hyperparameter_search(n_trials=1, backend="optuna")
    results = []

    def objective(metrics: dict[str, float]) -> float:
        results.append(metrics["eval_accuracy"])
        return results[-1]

    best = run.hyperparameter_search(
        lambda trial: {"adapt_learning_rate": trial.suggest_float("adapt_learning_rate", 1e-4, 1e-3)},
        objective, n_trials=2, direction="maximize", backend="optuna",
    )  # fmt: skip
    assert best.objective in (results[3], results[7])  # three evaluations on the way, then the result's
    for folder in ("run-0", "run-1"):
        assert (tmp_path / folder / "stage-1" / "model.safetensors").is_file()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_own_collators_and_samplers_act_and_may_read_the_stage(tmp_path: Path) -> None:
    class Mixing(CALoRTrainer):
        data_collator: Any

        def get_train_dataloader(self) -> Any:
            def collate(batch: Any) -> Any:
                stages.append(self.model.stage)
                return mixed(batch) if self.model.stage == "fit" else default_collate(batch)

            usual, self.data_collator = self.data_collator, collate
            try:
                return super().get_train_dataloader()
            finally:
                self.data_collator = usual

        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    stages: list[str] = []
    run = trainer(tmp_path, Mixing)
    run.train()
    assert {"fit", "adapt"} == set(stages)
    assert run.state.global_step == END


def test_ignored_labels_do_not_count(tmp_path: Path) -> None:
    run = trainer(tmp_path, given={"train_dataset": Labeled(-100), "eval_dataset": Labeled(-100)})
    run.train()
    images = [entry["validation_images"] for entry in run.state.log_history if "validation_images" in entry]
    assert images == [21, 21, 21]  # of 32, every third is ignored
    assert len(run.measured.labels) == len(run.measured.predictions) == 21
    assert set(run.measured.labels) == {1, 2, 4, 5}


class Stream(IterableDataset[Any]):
    def __init__(self, count: int, seed: int) -> None:
        self.data = Patterns(count, seed)

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(len(self.data)))


def test_streams_are_trained_and_validated_on(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, given={"train_dataset": Stream(32, 1), "eval_dataset": Stream(30, 2)}, max_steps=2, adapt_steps=2
    )
    run.train()
    assert run.state.global_step == 4
    assert len(run.measured.labels) == 30


def test_evaluation_and_prediction_take_the_keywords_of_the_trainer(plain: Any) -> None:
    usual = plain.evaluate(metric_key_prefix="mine")
    assert plain.evaluate(ignore_keys=["hidden_states"])["eval_accuracy"] == usual["mine_accuracy"]
    assert plain.evaluate({"a": Patterns(12, 3), "b": Patterns(12, 3)}).keys() >= {"eval_a_accuracy", "eval_b_accuracy"}
    found = plain.predict(Patterns(12, 3), ignore_keys=["features", "hidden_states"], metric_key_prefix="own")
    assert "own_accuracy" in found.metrics
    unlabeled = [{"pixel_values": sample["pixel_values"]} for sample in (Patterns(12, 3)[i] for i in range(12))]
    assert plain.predict(unlabeled).predictions.shape == (12, CLASSES)
    with pytest.raises(ValueError, match="eval_dataset must be a data set or no name, got 'test'"):
        plain.evaluate("test")


def test_splits_act_for_a_single_stage(tmp_path: Path) -> None:
    args = arguments(tmp_path, num_train_epochs=1, eval_strategy="epoch", metric_for_best_model="eval_a_accuracy")
    base = ResNetForImageClassification(config("resnet"))
    splits = {"a": Patterns(12, 3), "b": Patterns(12, 4)}
    callbacks: Any = [EarlyStoppingCallback(1)]
    run = DefenseTrainer(model=base, args=args, train_dataset=Patterns(32, 1), eval_dataset=splits, callbacks=callbacks)
    run.train()
    assert any("eval_b_accuracy" in entry for entry in run.state.log_history)
    assert math.isfinite(run.state.best_metric or math.nan)


def test_a_card_takes_the_keywords_of_the_trainer(plain: Any) -> None:
    with pytest.raises(ValueError, match="tasks must be image-classification, got depth"):
        plain.create_model_card(tasks="depth")
    with pytest.raises(ValueError, match="one data set of the training, got a, b"):
        plain.create_model_card(dataset=["a", "b"])
    plain.save_model()
    plain.create_model_card(
        language="en", tasks=["image-classification"], dataset_tags="me/faces", dataset="Faces", tags="mine",
        finetuned_from="me/base", license="mit",
    )  # fmt: skip
    card = (Path(plain.args.output_dir) / "README.md").read_text()
    for line in ("language: en", "- me/faces", "- mine", "base_model: me/base", "license: mit"):
        assert line in card
