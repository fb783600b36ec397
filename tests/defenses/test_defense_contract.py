"""Contract of every registered defense; a new file in `defenses` is tested here without being named."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.outputs import Forward, Progress
from calor_hf.defenses import DEFENSES, Defense

NAMES = DEFENSES.names()
PUBLISHED = ("none", "calor", "loft", "mid", "bido", "label_smoothing", "transfer", "random_erasing", "trap_mid")
CLASSES, FEATURES, BATCH = 6, 8, 6


def make(name: str, **settings: Any) -> Defense[Any]:
    method = DEFENSES.get(name)
    return method(method.complete(method.config_class(**settings), FEATURES, CLASSES))


def stages_of(name: str) -> tuple[str, ...]:
    return DEFENSES.get(name).stage_names


def arguments(**changes: Any) -> SimpleNamespace:
    plan = {
        "num_train_epochs": 20.0,
        "max_steps": -1,
        "learning_rate": 1e-3,
        "adapt_epochs": 10.0,
        "adapt_steps": None,
        "adapt_learning_rate": None,
        "adapt_start_epoch": None,
        "adapt_only_last_layer": False,
        "adapt_freeze_batch_norm": True,
    }
    return SimpleNamespace(**{**plan, **changes})


def head_of(defense: Defense[Any]) -> nn.Module:
    return defense.build_head(FEATURES, CLASSES) if defense.own_head else nn.Linear(FEATURES, CLASSES)


def forward_pass(
    defense: Defense[Any],
    class_weights: Tensor | None = None,
    training: bool = True,
    batch: int = BATCH,
    scale: float = 1.0,
) -> tuple[Tensor, Forward]:
    features = scale * torch.randn(batch, FEATURES)
    logits, extras = defense.run_head(head_of(defense), features)
    logits.retain_grad()
    hooked = (features.clone().requires_grad_(), (features / scale).exp().requires_grad_())
    images = torch.randn(batch, 3, 4, 4)
    return logits, Forward(logits, torch.arange(batch), features, class_weights, images, hooked, extras, training)


NAMED_STAGES = [(name, stage) for name in NAMES for stage in stages_of(name)]


def test_the_registry_holds_the_published_ones() -> None:
    assert set(PUBLISHED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_strength_is_a_setting_whose_range_the_defense_takes(name: str) -> None:
    method = DEFENSES.get(name)
    strength = method.strength(64, 20)
    if strength is None:
        assert name in ("none", "decoys", "temperature")  # k is that of the data; no temperature costs accuracy
        return
    values = [strength.at(share) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert values[0] == pytest.approx(strength.weakest, rel=1e-3)
    assert values[-1] == pytest.approx(strength.strongest, rel=1e-3)
    for value, share in zip(values, (0, 0.25, 0.5, 0.75, 1), strict=True):
        method.complete(method.config_class(**{strength.setting: value}), 64, 20)
        assert strength.share_of(value) == pytest.approx(share, abs=0.1 if strength.whole else 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_class_says_what_it_is(name: str) -> None:
    cls = DEFENSES.get(name)
    assert cls.__doc__
    assert cls.__doc__.strip().splitlines()[0].endswith(".")
    assert cls.stage_names
    assert all(field.metadata.get("help") for field in dataclasses.fields(cls.config_class))


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip(name: str) -> None:
    config = make(name).config
    values = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(values) == config
    with pytest.raises(ValueError, match="has no setting no_such_setting; known:"):
        type(config).from_dict({**values, "no_such_setting": 1})


@pytest.mark.parametrize("name", NAMES)
def test_head_turns_features_into_scores(name: str) -> None:
    defense = make(name)
    torch.manual_seed(3)
    first: Any = head_of(defense)
    torch.manual_seed(3)
    second: Any = head_of(defense)
    features = torch.randn(BATCH, FEATURES)
    scores = []
    for head in (first, second):
        torch.manual_seed(4)
        scores.append(defense.run_head(head, features)[0])
    assert scores[0].shape == (BATCH, CLASSES)
    assert torch.equal(*scores)
    if defense.own_head:
        assert any(layer is first.last_layer for layer in first.modules())
        outputs = CLASSES * (defense.identities_per_class or 1)
        assert next(iter(first.last_layer.parameters())).shape[0] == outputs
    else:
        with pytest.raises(NotImplementedError, match="keeps the model's classifier"):
            defense.build_head(FEATURES, CLASSES)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "stage"), NAMED_STAGES)
def test_terms_are_finite_named_scalars_and_pull_at_the_logits(name: str, stage: str, weighted: bool) -> None:
    defense = make(name)
    logits, out = forward_pass(defense, torch.linspace(0.5, 2, CLASSES) if weighted else None)
    terms = defense.loss(out, Progress.at_end(stage))
    assert terms
    for term, value in terms.items():
        assert term.isidentifier()
        assert value.shape == ()
        assert value.isfinite()
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(("name", "stage"), NAMED_STAGES)
def test_class_weights_count(name: str, stage: str) -> None:
    defense = make(name)
    _, out = forward_pass(defense, training=False)
    plain = sum(defense.loss(out, Progress.at_end(stage)).values())
    equal = dataclasses.replace(out, class_weights=torch.full((CLASSES,), 2.0))
    tilted = dataclasses.replace(out, class_weights=torch.linspace(0.1, 5, CLASSES))
    torch.testing.assert_close(sum(defense.loss(equal, Progress.at_end(stage)).values()), plain)
    assert sum(defense.loss(tilted, Progress.at_end(stage)).values()) != plain


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "changes", [{}, {"max_steps": 100, "adapt_steps": 50}, {"adapt_start_epoch": 15.0}, {"adapt_learning_rate": 3e-5}]
)
def test_stages_are_the_named_ones_in_order(name: str, changes: dict[str, Any]) -> None:
    if DEFENSES.get(name).extra == "dp":
        pytest.importorskip("opacus", reason="opacus is not installed; .ci/dp runs this")
    stages = make(name).stages(arguments(**changes))
    assert tuple(stage.name for stage in stages) == stages_of(name)
    assert stages[0].learning_rate is None  # the first stage follows the trainer's schedule
    assert all(stage.epochs > 0 and (stage.steps is None or stage.steps > 0) for stage in stages)


def test_no_defense_is_cross_entropy_for_the_whole_run() -> None:
    defense = make("none")
    _, out = forward_pass(defense)
    assert defense.loss(out, Progress.at_end("fit")) == {"cross_entropy": F.cross_entropy(out.logits, out.labels)}
    (fit,) = defense.stages(arguments(max_steps=70))
    assert (fit.name, fit.epochs, fit.steps) == ("fit", 20.0, 70)


def test_calor_fits_by_cross_entropy_and_adapts_by_its_own_loss() -> None:
    # p = 1/2: cross-entropy ln 2, confidence adaptation 2 · 0.5⁴ · ln 0.5 = -0.086643.
    out = Forward(logits=torch.zeros(1, 2), labels=torch.tensor([0]))
    defense = make("calor", ca_a=2.0, ca_b=4.0)
    fit, adapt = (defense.loss(out, Progress.at_end(stage)) for stage in ("fit", "adapt"))
    assert {name: value.item() for name, value in fit.items()} == {"cross_entropy": pytest.approx(0.693147)}
    assert {name: value.item() for name, value in adapt.items()} == {"confidence_adaptation": pytest.approx(-0.0866434)}


def test_calor_adapts_after_the_schedule() -> None:
    fit, adapt = make("calor").stages(arguments())
    assert (fit.epochs, fit.steps, adapt.epochs, adapt.steps) == (20.0, None, 10.0, None)
    assert adapt.learning_rate == pytest.approx(1e-4)  # a tenth of the first
    assert not adapt.only_last_layer
    assert make("calor").stages(arguments(adapt_only_last_layer=True))[1].only_last_layer


def test_calor_counts_steps_where_it_is_told_to() -> None:
    fit, adapt = make("calor").stages(arguments(max_steps=100, adapt_steps=50))
    assert (fit.steps, adapt.steps) == (100, 50)


def test_calor_adapts_inside_the_schedule() -> None:
    fit, adapt = make("calor").stages(arguments(adapt_start_epoch=15.0, adapt_learning_rate=3e-5))
    assert (fit.epochs, adapt.epochs) == (15.0, 5.0)
    assert fit.epochs + adapt.epochs == 20.0
    assert adapt.learning_rate == 3e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a whole number >= 1, got 0"),
        ({"rank": True}, "rank must be a whole number >= 1, got True"),
        ({"rank": 2.5}, "rank must be a whole number >= 1, got 2.5"),
        ({"activation": "gelu"}, "unknown activation 'gelu'; pass one of tanh"),
        ({"input_norm": "layernorm"}, "unknown input_norm 'layernorm'; pass None or 'batchnorm'"),
        ({"ca_a": 0.0}, "a must be a positive finite number, got 0.0"),
        ({"ca_b": float("nan")}, "b must be a positive finite number, got nan"),
    ],
)
def test_calor_refuses_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("calor", **settings)


def test_calor_refuses_soft_labels_while_adapting_only() -> None:
    out = Forward(logits=torch.zeros(2, 3), labels=torch.full((2, 3), 1 / 3))
    defense = make("calor")
    assert defense.loss(out, Progress.at_end("fit"))["cross_entropy"].item() == pytest.approx(1.098612)
    with pytest.raises(ValueError, match="soft labels"):
        defense.loss(out, Progress.at_end("adapt"))
