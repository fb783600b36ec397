"""Every registered defense on a convolutional net and two transformers; a new file in `defenses` is tested unnamed."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

from calor_hf import (
    DEFENSES,
    CALoRForImageClassification,
    DefendedConfig,
    DefendedForImageClassification,
    DefenseTrainer,
)
from calor_hf.modeling import defend
from tests.processes.server import Server
from tests.tiny_models import tiny_base
from tests.training.small_task import (
    CLASSES,
    DEFENSE_KINDS,
    STEPS,
    TRAINED,
    Patterns,
    assert_same_weights,
    config,
    defense_trainer,
    image_processor,
)
from tests.training.test_processes import TASK

NAMES = DEFENSES.names()
EVERY = [(name, kind) for name in NAMES for kind in DEFENSE_KINDS]
EVERY_TRAINED = [(name, kind) for name, kind in EVERY if name in TRAINED]
# Every base for the library's own method, and one for the others, in the quick run.
RESUMED = [
    pytest.param(name, kind, marks=[] if name == "calor" or kind == DEFENSE_KINDS[0] else [pytest.mark.slow])
    for name, kind in EVERY_TRAINED
]
# Their step depends on how it is split: the kernel matrix of a batch, noise drawn in sequence, a discriminator's batch
# norm.
BATCH_MATTERS = ("bido", "mid", "trap_mid")


def base(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(config(kind))


def images(count: int = 4) -> torch.Tensor:
    data = Patterns(count, 3)
    return torch.stack([data[index]["pixel_values"] for index in range(count)])


def scores(model: Any) -> torch.Tensor:
    torch.manual_seed(7)  # MID draws noise
    with torch.no_grad():
        found: torch.Tensor = model.eval()(pixel_values=images()).logits
    return found


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_saved_model_reloads_with_equal_scores_and_runs_in_a_pipeline(name: str, kind: str, tmp_path: Path) -> None:
    names = {index: f"person {index}" for index in range(CLASSES)}
    model = defend(base(kind), name, id2label=names)
    expected = scores(model)
    model.save_pretrained(tmp_path)
    image_processor().save_pretrained(tmp_path)
    saved = AutoConfig.from_pretrained(tmp_path)
    assert saved.make_defense().config == model.defense.config
    for loader in (type(model), AutoModelForImageClassification):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is type(model)
        assert_same_weights(loaded, model)
        assert torch.equal(scores(loaded), expected)
    torch.manual_seed(7)
    answer = pipeline("image-classification", model=str(tmp_path))(Image.new("RGB", (32, 32), "red"), top_k=2)
    assert {entry["label"] for entry in answer} <= set(names.values())


@pytest.mark.parametrize(("name", "kind"), EVERY_TRAINED)
def test_what_should_learn_learns_and_nothing_else(name: str, kind: str, tmp_path: Path) -> None:
    trainer = defense_trainer(tmp_path, name, kind, save_strategy="no" if name != "calor" else "epoch")
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    defense = trainer.model.defense
    frozen = {f"backbone.{key}" for key in defense.frozen(trainer.model.backbone)} if name == "transfer" else set()
    trainer.train()
    assert all(weight.requires_grad for weight in trainer.model.parameters())
    moved = {key for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])}
    assert moved.isdisjoint(frozen)
    # A key's bias adds the same to all scores of a query: no gradient but rounding.
    still = {key for key in before.keys() - moved - frozen if not key.endswith(("key.bias", "k_proj.bias"))}
    assert still == set()
    assert any(key.startswith("classification_head.") for key in moved)
    assert bool(frozen) == (name == "transfer")


TERMS = {
    "none": {"cross_entropy"},
    "calor": {"cross_entropy", "confidence_adaptation"},
    "loft": {"cross_entropy"},
    "mid": {"cross_entropy", "kl"},
    "bido": {"cross_entropy", "input", "label"},
    "label_smoothing": {"hard", "smooth"},
    "transfer": {"cross_entropy"},
    "random_erasing": {"cross_entropy"},
    "decoys": {"cross_entropy"},  # without identities
    "trap_mid": {"clean", "trapdoor", "trap_success"},
    "at_at": {"clean", "adversarial"},
}


@pytest.mark.parametrize("kind", DEFENSE_KINDS)
@pytest.mark.parametrize("name", TERMS)
def test_terms_are_logged_by_name_and_sum_up_to_the_loss(name: str, kind: str, tmp_path: Path) -> None:
    trainer = defense_trainer(tmp_path, name, kind, save_strategy="no" if name != "calor" else "epoch")
    trainer.train()
    found: set[str] = set()
    for entry in trainer.state.log_history:
        if "loss" in entry:
            terms = {term: entry[term] for term in TERMS[name] & entry.keys()}
            found |= terms.keys()
            assert all(value != 0 for value in terms.values()) or name == "trap_mid"
            total = sum(value for term, value in terms.items() if term != "trap_success")
            assert total == pytest.approx(entry["loss"], rel=1e-3, abs=1e-4)
    assert found == TERMS[name]


def test_draws_of_a_batch_follow_step_accumulation_and_process() -> None:
    args = SimpleNamespace(seed=3, gradient_accumulation_steps=2, process_index=1, world_size=3)
    trainer: Any = SimpleNamespace(args=args, state=SimpleNamespace(global_step=7), _train_batch_size=4)
    draws = DefenseTrainer.draws_of_batch(trainer, count=2, part=1)
    assert (draws.seed, draws.step, draws.count) == (3, 7, 2)
    assert (draws.first, draws.all_first, draws.all_count, draws.per_step) == (16, 12, 12, 24)


@pytest.mark.parametrize(("name", "kind"), RESUMED)
def test_resumed_equals_uninterrupted(name: str, kind: str, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None}
    whole = defense_trainer(tmp_path, name, kind, **plan)
    whole.train()
    expected = copy.deepcopy(whole.model)
    again = defense_trainer(tmp_path, name, kind, **plan)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{3 * (STEPS // 3) + 3}"))
    assert_same_weights(again.model, expected)
    state = whole.model.defense.state_dict()
    assert bool(state) == (name == "trap_mid")
    if state:
        assert torch.equal(again.model.defense.state_dict()["triggers"], state["triggers"])
        again.save_model(str(tmp_path / "published"))
        published = {path.name for path in (tmp_path / "published").iterdir()}
        assert "defense_state.pt" not in published
        assert not any("trigger" in key for key in again.model.state_dict())


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_autocast_gives_finite_gradients_and_float32_scores(name: str, kind: str) -> None:
    model = defend(base(kind), name).train()
    model.in_training_run = True
    labels = torch.arange(4) % CLASSES
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(pixel_values=images(), labels=labels)
    assert (out.logits.dtype, out.loss.dtype) == (torch.float32, torch.float32)
    out.loss.backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    assert sum(weight.grad is not None for weight in model.parameters()) > 2


@pytest.mark.slow  # every defense, in one process and in two; test_processes.py has CALoR in the quick part
def test_two_processes(tmp_path: Path, server: Server) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes in ((one, 1), (two, 2)):
        folder.mkdir()
        options = {"folder": str(folder), "kind": "every defense", "per_device_train_batch_size": 16 // processes}
        done = server.task(TASK, options, processes)
        assert done.status == 0, done.shown[-3000:]
    apart = json.loads((two / "apart.json").read_text())
    assert set(apart) == {f"{name}-{kind}" for name, kind in EVERY_TRAINED}
    assert max(apart.values()) == 0  # the processes hold the same weights
    for name, kind in EVERY_TRAINED:
        a, b = (AutoModelForImageClassification.from_pretrained(folder / f"{name}-{kind}") for folder in (one, two))
        left, right = a.state_dict(), b.state_dict()
        # In units of the largest weight: the temperature of a model that hardly learned enlarges the last layer.
        sizes = {key: max(1.0, float(value.abs().max())) for key, value in left.items()}
        far = max(float((left[key].double() - right[key].double()).abs().max()) / sizes[key] for key in left)
        assert far < (0.5 if name in BATCH_MATTERS else 2e-6), (name, kind, far)


# ------------------------------------------------------------------------------------------------ the stock model


@pytest.mark.parametrize("kind", [*DEFENSE_KINDS, "DeiTForImageClassificationWithTeacher"])
@pytest.mark.parametrize("name", NAMES)
def test_to_base_gives_the_stock_model_where_no_module_was_changed(name: str, kind: str, tmp_path: Path) -> None:
    start = base(kind) if kind in DEFENSE_KINDS else tiny_base(kind)
    stock_class, pixels = type(start), torch.rand(2, 3, 32, 32)
    model = defend(start, name, id2label={i: f"person {i}" for i in range(start.config.num_labels)}).eval()
    if model.defense.own_head:
        with pytest.raises(ValueError, match=f"'{name}' replaces the classifier, so this is no {stock_class.__name__}"):
            model.to_base()
        return
    model.to_base().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == [stock_class.__name__]
    assert settings["defense"]["name"] == name
    stock = stock_class.from_pretrained(tmp_path)
    assert type(stock) is stock_class
    assert stock.config.id2label[1] == "person 1"
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(pixels).logits, model(pixels).logits)
    assert model.backbone.config.id2label != model.config.id2label  # the model itself is as it was


@pytest.mark.parametrize("name", NAMES)
def test_pushing_uploads_the_stock_model_where_there_is_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(
        "transformers.PreTrainedModel.push_to_hub", lambda self, *args, **kwargs: pushed.append(type(self).__name__)
    )
    model = defend(base("vit"), name)
    model.push_to_hub("someone/model")
    assert pushed == [type(model).__name__ if model.defense.own_head else "ViTForImageClassification"]


# ------------------------------------------------------------------------------------------------------- errors


def test_unknown_defense_has_a_suggestion() -> None:
    with pytest.raises(KeyError, match=r"unknown defense 'bidoo'\. Did you mean 'bido'\? Known: .*bido, calor"):
        DefendedForImageClassification.from_base(base("vit"), "bidoo")


def test_unknown_setting_has_a_suggestion() -> None:
    with pytest.raises(
        ValueError, match=r"MIDConfig has no setting betta \(did you mean beta\?\); known: beta, sample"
    ):
        DefendedForImageClassification.from_base(base("vit"), "mid", betta=0.1)


def test_models_with_calor_are_of_its_class_whoever_makes_them(tmp_path: Path) -> None:
    base("vit").save_pretrained(tmp_path)
    for model in (
        DefendedForImageClassification.from_base(base("vit"), "calor", rank=2),
        DefendedForImageClassification.from_pretrained(tmp_path, defense="calor", rank=2),
        CALoRForImageClassification.from_base(base("vit"), "calor", rank=2),
    ):
        assert type(model) is CALoRForImageClassification
    model.save_pretrained(tmp_path)
    again = DefendedForImageClassification.from_pretrained(tmp_path)
    assert type(again) is CALoRForImageClassification
    assert_same_weights(again, model)
    with pytest.raises(ValueError, match="CALoRForImageClassification has the defense 'calor', got 'mid'"):
        CALoRForImageClassification.from_base(base("vit"), "mid")


def test_model_of_another_defense_is_not_loaded_as_calor(tmp_path: Path) -> None:
    defend(base("vit"), "mid").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"defense 'mid'; load it with DefendedForImageClassification"):
        CALoRForImageClassification.from_pretrained(tmp_path)


def test_misspelled_setting_of_a_checkpoint_has_a_suggestion(tmp_path: Path) -> None:
    base("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown argument rnak; did you mean the setting rank"):
        CALoRForImageClassification.from_pretrained(tmp_path, rnak=3)


def test_checkpoint_of_a_defense_that_is_not_registered(tmp_path: Path) -> None:
    defend(base("vit"), "mid").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"mid"', '"midd"'))
    for loader in (DefendedForImageClassification, AutoModelForImageClassification):
        with pytest.raises(
            ValueError, match=r"unknown defense 'midd'\. Did you mean 'mid'\?.*package that registers it"
        ):
            loader.from_pretrained(tmp_path)


def test_base_checkpoint_needs_a_defense_and_a_saved_model_keeps_its_own(tmp_path: Path) -> None:
    base("vit").save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"is an undefended model; pass defense= one of .*bido, calor"):
        DefendedForImageClassification.from_pretrained(tmp_path / "base")
    model = DefendedForImageClassification.from_pretrained(tmp_path / "base", defense="mid", beta=0.3, num_labels=4)
    assert isinstance(model.config, DefendedConfig)
    assert (model.config.defense_settings["beta"], model.config.num_labels) == (0.3, 4)
    model.save_pretrained(tmp_path / "mid")
    again = DefendedForImageClassification.from_pretrained(tmp_path / "mid", defense="mid", beta=0.3)
    assert_same_weights(again, model)
    with pytest.raises(
        ValueError, match=r"a saved model of the defense 'mid' with beta=0.3, got beta=0.1; leave beta out"
    ):
        DefendedForImageClassification.from_pretrained(tmp_path / "mid", defense="mid", beta=0.1)
    with pytest.raises(ValueError, match=r"with defense='mid', got defense='bido'"):
        DefendedForImageClassification.from_pretrained(tmp_path / "mid", defense="bido")


def test_kept_classifier_is_the_trained_one_and_random_for_other_classes(tmp_path: Path) -> None:
    start = base("resnet")
    start.save_pretrained(tmp_path)
    trained = start.classifier[-1].weight.detach().clone()
    model = DefendedForImageClassification.from_pretrained(tmp_path, defense="label_smoothing")
    head: Any = model.classification_head
    assert torch.equal(head.last_layer.weight, trained)
    other = DefendedForImageClassification.from_pretrained(tmp_path, defense="label_smoothing", num_labels=3)
    assert other(pixel_values=images()).logits.shape == (4, 3)


@pytest.mark.parametrize("name", [name for name in NAMES if DEFENSES.get(name).needs_trainer])
def test_training_without_the_trainer_is_refused_where_it_would_be_undefended(name: str, tmp_path: Path) -> None:
    model = defend(base("vit"), name)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", dataloader_pin_memory=False)
    with pytest.raises(RuntimeError, match=f"the defense '{name}' .* train it with DefenseTrainer"):
        Trainer(model=model, args=arguments, train_dataset=Patterns(16, 1)).train()
    assert model.eval()(
        pixel_values=images(), labels=torch.arange(4)
    ).loss.isfinite()  # evaluating is no one's business


def test_plain_training_arguments_will_do(tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    arguments = TrainingArguments(str(tmp_path), num_train_epochs=2, use_cpu=True, dataloader_pin_memory=False, **quiet)
    model = defend(base("vit"), "label_smoothing", alpha=-0.1)
    trainer = DefenseTrainer(model=model, args=arguments, train_dataset=Patterns(64, 1), eval_dataset=Patterns(60, 2))
    trainer.train()
    assert 0 <= trainer.measure_training_images()["accuracy"] <= 1


def test_calor_says_that_it_needs_its_own_arguments(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", dataloader_pin_memory=False)
    trainer = DefenseTrainer(model=defend(base("vit"), "calor"), args=arguments, train_dataset=Patterns(16, 1))
    with pytest.raises(ValueError, match=r"TrainingArguments knows nothing of the second; pass CALoRTrainingArguments"):
        trainer.train()


def test_trap_mid_says_that_it_needs_an_image_processor(tmp_path: Path) -> None:
    trainer = defense_trainer(tmp_path, "trap_mid", "vit")
    trainer.processing_class = None
    with pytest.raises(ValueError, match=r"trap_mid works on pixels in \[0, 1\].*pass processing_class="):
        trainer.train()


def test_bido_refuses_a_frozen_layer_that_it_should_measure(tmp_path: Path) -> None:
    trainer = defense_trainer(tmp_path, "bido", "resnet")
    for weight in [*trainer.model.backbone.parameters()][:-1]:
        weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no gradient flows through the input of .*name another layer"):
        trainer.train()


def test_confidence_adaptation_alone_keeps_the_classifier(tmp_path: Path) -> None:
    trainer = defense_trainer(tmp_path, "calor", "resnet", settings={"low_rank": False}, num_train_epochs=2)
    assert trainer.model.config.rank is None
    trainer.train()
    assert {entry["stage"] for entry in trainer.state.log_history if "loss" in entry} == {1, 2}
    assert type(trainer.model.to_base()).__name__ == "ResNetForImageClassification"
    with pytest.raises(ValueError, match=r"low_rank=False keeps the model's classifier, so rank=3 says nothing"):
        defend(base("vit"), "calor", low_rank=False, rank=3)


def test_transfer_keeps_statistics_of_frozen_batch_norms_if_asked(tmp_path: Path) -> None:
    for freeze in (False, True):
        settings = {"freeze_ratio": 1.0, "freeze_bn_stats": freeze}
        trainer = defense_trainer(tmp_path / str(freeze), "transfer", "resnet", settings=settings, save_strategy="no")
        before = {key: value.clone() for key, value in trainer.model.backbone.named_buffers()}
        trainer.train()
        same = [torch.equal(value, before[key]) for key, value in trainer.model.backbone.named_buffers()]
        assert all(same) == freeze
