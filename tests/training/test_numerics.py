"""Training every registered defense where numbers end: NaN, overflow, half precision; and twice, bit by bit."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl

from calor_hf import CALoRForImageClassification, suggest_rank
from calor_hf.core.files import read_tensors
from calor_hf.modeling import defend
from calor_hf.training.checkpoints import complete_checkpoints
from calor_hf.training.checks import NonFiniteLossError
from calor_hf.training.trainer import DefenseTrainer
from tests.training.small_task import CLASSES, DEFENSE_KINDS, TRAINED, Patterns, assert_same_weights, defense_trainer
from tests.training.test_calor_trainer import InterruptAt
from tests.training.test_every_defense import base, images

EPOCH = 3  # steps: 48 images in batches of 16


# Each defense on one kind of base; on the others as well when there is time.
ONE_KIND_EACH = [
    pytest.param(name, kind, marks=() if place % len(DEFENSE_KINDS) == turn else pytest.mark.slow)
    for place, name in enumerate(TRAINED)
    for turn, kind in enumerate(DEFENSE_KINDS)
]


def short_run(folder: Path, name: str, kind: str = "vit", callbacks: Any = None, **changes: Any) -> DefenseTrainer:
    """Two epochs, with a checkpoint after each; then one of the second stage, where there is one."""
    run = defense_trainer(folder, name, kind, callbacks, **{"num_train_epochs": 2, **changes})
    run.train_dataset = Patterns(16 * EPOCH, 1)
    return run


class Spoil(TrainerCallback):
    """A weight, or a gradient, of the head becomes NaN at the given step."""

    def __init__(self, step: int, gradient: bool) -> None:
        self.step, self.gradient = step, gradient

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step and not self.gradient:
            next(model.classification_head.parameters()).data.fill_(torch.nan)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step and self.gradient:
            next(model.classification_head.parameters()).grad.fill_(torch.nan)


def stopped(run: DefenseTrainer) -> str:
    """Train; what the run says at its end, which is true, after a look at all that it saved."""
    with pytest.raises(NonFiniteLossError) as error:
        run.train()
    folder, said = Path(run.args.output_dir), str(error.value)
    saved = [read_tensors(file)[0] for file in folder.rglob("*.safetensors")]
    assert all(value.isfinite().all() for tensors in saved for value in tensors.values())
    found = complete_checkpoints(folder)
    assert (f"the last good checkpoint is {found[-1]}." if found else "no checkpoint had been saved.") in said
    return said


@pytest.mark.parametrize("name", TRAINED)
def test_a_picture_with_nan_stops_training(name: str, tmp_path: Path) -> None:
    run = short_run(tmp_path, name)
    run.train_dataset.images[20, 0, 3, 3] = torch.nan
    assert re.match(r"the loss is not finite at step [123] \(stage 'fit'\); no checkpoint", stopped(run))


@pytest.mark.parametrize("name", TRAINED)
def test_a_weight_with_nan_stops_training_at_its_step(name: str, tmp_path: Path) -> None:
    run = short_run(tmp_path, name, callbacks=[Spoil(EPOCH + 2, gradient=False)])
    assert f"the loss is not finite at step {EPOCH + 2} (stage 'fit'); the last good" in stopped(run)


@pytest.mark.parametrize("step", [EPOCH, 2 * EPOCH])  # after the first a checkpoint is due, after the second the end
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_that_spoils_the_weights_is_not_saved(name: str, step: int, tmp_path: Path) -> None:
    run = short_run(tmp_path, name, callbacks=[Spoil(step, gradient=True)])
    assert re.match(rf"classification_head\.\S+ is not finite after step {step} \(stage 'fit'\)", stopped(run))


def test_ctrl_c_does_not_save_what_a_step_spoiled(tmp_path: Path) -> None:
    callbacks = [InterruptAt(EPOCH + 1), Spoil(EPOCH + 2, gradient=True)]  # steps done, and the step itself
    assert f"is not finite after step {EPOCH + 2} (stage 'fit')" in stopped(
        short_run(tmp_path, "none", "vit", callbacks)
    )


@pytest.mark.parametrize(
    ("flag", "looked"),
    [
        (None, []),
        ("should_log", ["loss"]),
        ("should_evaluate", ["loss and weights"]),
        ("should_save", ["loss and weights"]),
        ("should_training_stop", ["loss and weights"]),
    ],
)
def test_an_accelerator_is_waited_for_only_where_it_matters(
    tmp_path: Path, flag: str | None, looked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    run = short_run(tmp_path, "none")
    monkeypatch.setattr(run, "check_finite", lambda weights: found.append("loss and weights" if weights else "loss"))
    monkeypatch.setattr(type(run.args), "device", torch.device("cuda"))
    run.control = TrainerControl(**({} if flag is None else {flag: True}))
    assert run.settle()
    assert found == looked


def test_statistics_that_overflow_are_not_saved(tmp_path: Path) -> None:
    # Its square is no float32: batch norm makes zeros of it and the loss stays finite, but not the variance it keeps.
    run = short_run(tmp_path, "none", "resnet")
    run.train_dataset.images[20] = 1e30
    assert re.match(rf"a batch norm's running_var is not finite after step {EPOCH}", stopped(run))


def test_evaluation_and_choice_of_a_rank_refuse_a_picture_with_nan(tmp_path: Path) -> None:
    run = short_run(tmp_path, "loft")
    run.eval_dataset.images[7] = torch.nan
    with pytest.raises(FloatingPointError, match="the scores of 1 of 60 images are not finite; look for images or"):
        run.evaluate()
    with pytest.raises(FloatingPointError, match="the features of 1 of 60 images are not finite; look for images or"):
        suggest_rank(run.model, run.train_dataset, run.eval_dataset)
    with pytest.raises(FloatingPointError, match="the features of 1 of 60 images are not finite"):
        CALoRForImageClassification.from_base(base("vit"), rank=3, head_init="svd", calibration=run.eval_dataset.images)


@pytest.mark.usefixtures("always_adapts")
@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(("count", "classes"), [(17, CLASSES), (16, 1)])
def test_a_batch_of_one_image_or_one_class(name: str, count: int, classes: int, tmp_path: Path) -> None:
    norm = {"input_norm": "batchnorm"} if name in ("calor", "loft") else {}
    run = short_run(tmp_path, name, settings=norm, num_train_epochs=1)
    run.train_dataset = Patterns(count, 1)
    run.train_dataset.labels %= classes
    before = [weight.clone() for weight in run.model.parameters()]
    run.train()
    assert run.state.global_step == (1 + (name == "calor")) * (1 + count // 17)
    assert all(weight.isfinite().all() for weight in run.model.state_dict().values())
    assert not all(torch.equal(*pair) for pair in zip(before, run.model.parameters(), strict=True))


# ---------------------------------------------------------------------------------------------------- half precision


def pass_of(name: str, kind: str, dtype: torch.dtype, cast: bool, pixels: Tensor) -> Any:
    """Output of a training pass, with gradients, under autocast or of weights in half precision."""
    model = defend(base(kind), name).train()
    model.in_training_run = True
    model = model.to(dtype) if cast else model
    with torch.autocast("cpu", dtype=dtype, enabled=not cast):
        out = model(pixel_values=pixels, labels=torch.arange(4))
    out.loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return out.loss, out.logits, all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("cast", [False, True], ids=["autocast", "cast"])
@pytest.mark.parametrize(("name", "kind"), ONE_KIND_EACH)
def test_overflow_in_half_precision_shows_in_the_loss(name: str, kind: str, cast: bool) -> None:
    for dtype, size, finite in (
        (torch.float16, 1, True), (torch.float16, 1e5, False), (torch.bfloat16, 1e5, True),
    ):  # fmt: skip
        loss, logits, gradients = pass_of(name, kind, dtype, cast, size * images())
        assert (loss.dtype, logits.dtype) == (torch.float32, torch.float32)
        assert (bool(loss.isfinite()), bool(gradients)) == (finite, finite)


def scaled_run(folder: Path, name: str) -> DefenseTrainer:
    """As ``fp16=True`` trains on a GPU: float16 under autocast, gradients of a loss that is scaled until they fit.

    (On a CPU transformers takes ``fp16=True`` and trains in float32.)
    """
    run = short_run(folder, name, max_grad_norm=0.0)
    run.compute_loss_context_manager = lambda: torch.autocast("cpu", dtype=torch.float16)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-12)
    return run


@pytest.mark.parametrize("name", TRAINED)
def test_scaled_gradients_that_overflow_cost_a_step_and_no_more(name: str, tmp_path: Path) -> None:
    run = scaled_run(tmp_path, name)
    before = [weight.clone() for weight in run.model.parameters()]
    run.train()
    assert run.accelerator.scaler.get_scale() < 2.0**40  # some steps were left out
    assert all(weight.isfinite().all() for weight in run.model.state_dict().values())
    assert not all(torch.equal(*pair) for pair in zip(before, run.model.parameters(), strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_a_loss_that_overflows_in_half_precision_stops_training(name: str, tmp_path: Path) -> None:
    run = scaled_run(tmp_path, name)
    run.train_dataset.images[20] *= 1e5
    assert re.match(r"the loss is not finite at step [123] .*prefer bf16 to fp16", stopped(run))


# ----------------------------------------------------------------------------------------------------- bit by bit


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(("name", "kind"), ONE_KIND_EACH)
def test_training_twice_gives_the_same_bits(name: str, kind: str, tmp_path: Path) -> None:
    models = []
    for folder in ("one", "two"):
        run = short_run(tmp_path / folder, name, kind, num_train_epochs=1)
        run.train()
        models.append(run.model)
    assert_same_weights(*models)
