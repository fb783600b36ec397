"""Whatever field of the training arguments is set acts in each stage, or is refused before the first step."""

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from transformers import ProgressCallback, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from calor_hf import CALoRForImageClassification, CALoRTrainer, CALoRTrainingArguments
from calor_hf.training.arguments import CALoRTrainingArguments as Arguments
from calor_hf.training.fields import AS_IN_TRAINER, DIFFERENCES, PASSED_ON, REFUSED, how
from tests.training.small_task import Patterns, arguments, config

pytestmark = pytest.mark.usefixtures("always_adapts")
V4 = transformers.__version__.startswith("4.")
NAMES = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
TESTS = Path(__file__).parents[1]
CHECKPOINTING = "gradient_checkpointing" if V4 else "activation_checkpointing"


class Watched(CALoRTrainer):
    """Notes, for each batch of training, what of the arguments can be seen in it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plan: Any
        self.batches: list[dict[str, Any]] = []
        self.evaluated: list[int] = []
        self.saved: list[int] = []
        self.dtype: Any = None
        if self.args.bf16:
            linear = next(module for module in self.model.modules() if isinstance(module, torch.nn.Linear))
            linear.register_forward_hook(lambda module, inputs, output: setattr(self, "dtype", output.dtype))

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.batches.append(self.seen(model, inputs))
        return found

    def seen(self, model: Any, inputs: Any) -> dict[str, Any]:
        optimizer: Any = self.optimizer.optimizer
        first = optimizer.param_groups[0]
        layers = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
        return {
            "step": self.state.global_step,
            "stage": self.plan.at(self.state.global_step).name,
            "rate": round(first["lr"], 6),
            "optimizer": (type(optimizer).__name__, *(first.get(n) for n in ("betas", "eps", "momentum"))),
            "decay": max(group["weight_decay"] for group in optimizer.param_groups),
            "images": inputs["pixel_values"][:, 0, 0, 0].tolist(),
            "autocast": self.dtype,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "checkpointing": [module._gradient_checkpointing_func.keywords for module in layers],
            "compiled": hasattr(model, "_orig_mod"),
            "columns": sorted(inputs),
        }

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self.evaluated.append(self.state.global_step)
        return super()._evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.saved.append(self.state.global_step)
        super()._save_checkpoint(*args, **kwargs)

    def logged(self) -> list[int]:
        return [entry["step"] for entry in self.state.log_history if "loss" in entry]

    def each_stage(self, name: str) -> tuple[Any, Any]:
        """The one value that was seen in each stage."""
        fit, adapt = ([b[name] for b in self.batches if b["stage"] == stage] for stage in ("fit", "adapt"))
        assert all(value == fit[0] for value in fit)
        assert all(value == adapt[0] for value in adapt)
        return fit[0], adapt[0]


class Norms(TrainerCallback):
    """Norm of the gradient that the optimizer gets."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        norms = [weight.grad.norm() for weight in model.parameters() if weight.grad is not None]
        self.norms.append(float(torch.stack(norms).norm()))


def trainer(folder: Path, kind: str = "resnet", given: dict[str, Any] | None = None, **changes: Any) -> Watched:
    """Two steps per epoch; two epochs of each stage if ``changes`` do not say otherwise."""
    torch.manual_seed(0)
    model = CALoRForImageClassification.from_config(config(kind), rank=3)
    plan = {"num_train_epochs": 2, "adapt_epochs": 2, "save_strategy": "no", "logging_strategy": "no", **changes}
    parameters = {"train_dataset": Patterns(32, 1), "eval_dataset": Patterns(30, 2), **(given or {})}
    return Watched(model=model, args=arguments(folder, **plan), **parameters)


class Kept:
    """Input of ``compute_metrics``."""

    seen: Any = None

    def __call__(self, prediction: Any) -> dict[str, float]:
        self.seen = prediction
        return {"one": 1.0}


def rows(count: int, seed: int) -> datasets.Dataset:
    data = [{**Patterns(count, seed)[i], "age": 3} for i in range(count)]
    return datasets.Dataset.from_list([{**row, "pixel_values": row["pixel_values"].tolist()} for row in data])


# Runs: each verifies many fields at once.

RUNS: dict[str, dict[str, Any]] = {
    "epochs": {
        "num_train_epochs": 2.5, "logging_strategy": "epoch", "eval_strategy": "epoch", "save_strategy": "epoch",
        "eval_delay": 1.5, "logging_first_step": True, "eval_on_start": True, "save_total_limit": 2,
        "save_only_model": True, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2,
    },
    "steps": {
        "max_steps": 3, "adapt_steps": 4, "logging_strategy": "steps", "logging_steps": 2, "eval_strategy": "steps",
        "eval_steps": 4, "save_strategy": "steps", "save_steps": 0.8, "save_total_limit": None,
        "report_to": "tensorboard", "disable_tqdm": False, "include_num_input_tokens_seen": "all",
        "skip_memory_metrics": False, "debug": "underflow_overflow", "run_name": "mine",
    },
    "rates": {
        "learning_rate": 0.01, "lr_scheduler_type": "polynomial", "warmup_ratio" if V4 else "warmup_steps": 0.5,
        "lr_scheduler_kwargs": {"lr_end": 0.002, "power": 1.0}, "adam_beta1": 0.8, "adam_beta2": 0.95,
        "adam_epsilon": 1e-6, "weight_decay": 0.3, "max_grad_norm": 1e-5, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 8, "optim": "adamw_torch",
    },
    "precision": {
        "kind": "vit", "bf16": True, "bf16_full_eval": True, CHECKPOINTING: True,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}, "full_determinism": True,
    },
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager", "num_train_epochs": 1, "adapt_epochs": 1},
    "data": {
        "dataloader_num_workers": 1, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True,
        "dataloader_drop_last": True, "accelerator_config": {"even_batches": False, "non_blocking": True},
        "num_train_epochs": 1, "adapt_epochs": 1,
        **({} if V4 else {"dataloader_in_order": False, "dataloader_multiprocessing_context": "fork"}),
    },
    "metrics": {
        "include_for_metrics": ["inputs", "loss"], "eval_accumulation_steps": 1, "eval_do_concat_batches": False,
        "per_device_eval_batch_size": 10, "num_train_epochs": 1, "adapt_epochs": 1,
    },
    "seeds": {"seed": 5, "data_seed": 7, "num_train_epochs": 1, "adapt_epochs": 1},
}  # fmt: skip
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "rates": lambda: {"callbacks": [Norms()]},
    "data": lambda: {"train_dataset": Patterns(44, 1)},
    "metrics": lambda: {"compute_metrics": Kept(), "train_dataset": rows(32, 1)},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Watched]:
    done: dict[str, Watched] = {}

    def of(name: str) -> Watched:
        if name not in done:
            given = GIVEN.get(name, dict)()
            done[name] = trainer(tmp_path_factory.mktemp(name), given=given, **RUNS[name])
            try:
                done[name].train()
            finally:
                torch.use_deterministic_algorithms(False)
        return done[name]

    return of


def callback(run: Any, kind: type) -> Any:
    return next((one for one in run.callback_handler.callbacks if isinstance(one, kind)), None)


def folders(run: Any) -> list[str]:
    return sorted(path.name for path in Path(run.args.output_dir).glob("checkpoint-*"))


def loader(run: Any) -> Any:
    return run.callback_handler.train_dataloader


def seen_metrics(run: Any) -> Any:
    return run.compute_metrics.seen


def full_evaluation(run: Any) -> Any:
    before = run.model.dtype
    run.evaluate()
    found = before, run.model.dtype
    run.model.float()
    return found


def both(value: Any) -> tuple[Any, Any]:
    """The same in each stage."""
    return value, value


def counts(run: Any) -> list[int]:
    return [len(batch["images"]) for batch in run.batches]


FIT_THEN_ADAPT = ["fit"] * 3 + ["adapt"] * 4
RATES = [0.0, 0.005, 0.01, 0.006] + [0.001] * 4  # half of the fit stage warms up, then a line to 0.002; then a tenth
# Field: the run that it is set in, what shows it, and what that has to be.
ACTS: dict[str, tuple[str, Callable[[Any], Any], Any]] = {
    "num_train_epochs": ("epochs", lambda r: [s.stop - s.start for s in r.plan.stages], [5, 4]),
    "max_steps": ("steps", lambda r: [b["stage"] for b in r.batches], FIT_THEN_ADAPT),
    "logging_strategy": ("epochs", lambda r: r.logged(), [1, 2, 4, 5, 6, 7, 8, 9]),  # 5, 7 and 9 end epochs of stages
    "logging_first_step": ("epochs", lambda r: r.logged()[0], 1),
    "logging_steps": ("steps", lambda r: r.logged(), [2, 3, 4, 5, 6, 7]),
    "eval_strategy": ("epochs", lambda r: r.evaluated, [0, 4, 5, 6, 7, 8, 9]),
    "eval_delay": ("epochs", lambda r: 2 in r.evaluated, False),
    "eval_on_start": ("epochs", lambda r: r.evaluated[0], 0),
    "eval_steps": ("steps", lambda r: r.evaluated, [3, 4, 5, 7]),
    "save_strategy": ("epochs", lambda r: r.saved, [2, 4, 5, 6, 7, 8, 9]),
    "save_steps": ("steps", lambda r: r.saved, [3, 5, 6, 7]),  # 0.8 of 7 steps
    "save_total_limit": ("epochs", lambda r: len(folders(r)), 2),
    "save_only_model": ("epochs", lambda r: list(Path(r.args.output_dir).glob("*/optimizer.pt")), []),
    "warmup_steps": ("epochs", lambda r: [b["rate"] for b in r.batches][:6], [0.0, 0.005, 0.01, 0.01, 0.01, 0.001]),
    "output_dir": ("steps", folders, ["checkpoint-3", "checkpoint-5", "checkpoint-6", "checkpoint-7"]),
    "report_to": ("steps", lambda r: callback(r, TensorBoardCallback) is not None, True),
    "disable_tqdm": ("steps", lambda r: callback(r, ProgressCallback) is not None, True),
    "run_name": ("steps", lambda r: r.args.run_name, "mine"),
    "include_num_input_tokens_seen": ("steps", lambda r: r.state.num_input_tokens_seen, 7 * 16 * 3 * 32 * 32),
    "skip_memory_metrics": ("steps", lambda r: "train_mem_cpu_alloc_delta" in r.state.log_history[-1], True),
    "debug": ("steps", lambda r: any("Debug" in repr(h) for h in r.model._forward_hooks.values()), True),
    "learning_rate": ("rates", lambda r: max(b["rate"] for b in r.batches), 0.01),
    "lr_scheduler_type": ("rates", lambda r: [b["rate"] for b in r.batches[::2]], RATES),
    "lr_scheduler_kwargs": ("rates", lambda r: r.batches[6]["rate"], 0.006),
    "warmup_ratio": ("rates", lambda r: r.batches[2]["rate"], 0.005),
    "optim": ("rates", lambda r: r.each_stage("optimizer"), both(("AdamW", (0.8, 0.95), 1e-6, None))),
    "adam_beta1": ("rates", lambda r: r.each_stage("optimizer")[1][1][0], 0.8),
    "adam_beta2": ("rates", lambda r: r.each_stage("optimizer")[1][1][1], 0.95),
    "adam_epsilon": ("rates", lambda r: r.each_stage("optimizer")[1][2], 1e-6),
    "weight_decay": ("rates", lambda r: r.each_stage("decay"), both(0.3)),
    "max_grad_norm": ("rates", lambda r: [0.9e-5 < n < 1.001e-5 for n in callback(r, Norms).norms], [True] * 8),
    "gradient_accumulation_steps": ("rates", lambda r: [b["step"] for b in r.batches], sorted([*range(8)] * 2)),
    "per_device_train_batch_size": ("rates", counts, [8] * 16),
    "bf16": ("precision", lambda r: r.each_stage("autocast"), both(torch.bfloat16)),
    "bf16_full_eval": ("precision", full_evaluation, (torch.float32, torch.bfloat16)),
    CHECKPOINTING: ("precision", lambda r: [len(found) > 0 for found in r.each_stage("checkpointing")], [True, True]),
    f"{CHECKPOINTING}_kwargs": (
        "precision", lambda r: r.each_stage("checkpointing")[1][0]["use_reentrant"], False
    ),
    "full_determinism": ("precision", lambda r: r.each_stage("deterministic"), both(True)),
    "torch_compile": ("compiled", lambda r: r.each_stage("compiled"), both(True)),
    "torch_compile_backend": ("compiled", lambda r: r.accelerator.state.dynamo_plugin.backend.value, "EAGER"),
    "dataloader_num_workers": ("data", lambda r: loader(r).num_workers, 1),
    "dataloader_prefetch_factor": ("data", lambda r: loader(r).prefetch_factor, 3),
    "dataloader_persistent_workers": ("data", lambda r: loader(r).persistent_workers, True),
    "dataloader_drop_last": ("data", lambda r: (counts(r), len(r.measured.labels)), ([16] * 4, 30)),
    "dataloader_in_order": ("data", lambda r: loader(r).in_order, False),
    "dataloader_multiprocessing_context": (
        "data", lambda r: loader(r).multiprocessing_context.get_start_method(), "fork"
    ),
    "accelerator_config": ("data", lambda r: (r.accelerator.even_batches, r.accelerator.non_blocking), (False, True)),
    "include_for_metrics": ("metrics", lambda r: None in (seen_metrics(r).inputs, seen_metrics(r).losses), False),
    "eval_do_concat_batches": ("metrics", lambda r: type(seen_metrics(r).predictions), list),
    "eval_accumulation_steps": ("metrics", lambda r: r.args.eval_accumulation_steps, 1),
    "per_device_eval_batch_size": ("metrics", lambda r: [len(one) for one in seen_metrics(r).label_ids], [10] * 3),
    "remove_unused_columns": ("metrics", lambda r: r.each_stage("columns"), both(["labels", "pixel_values"])),
}  # fmt: skip


SLOW = ("torch_compile", "torch_compile_backend")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ACTS if name in NAMES]
)
def test_a_field_acts_in_each_stage(run: Callable[[str], Watched], name: str) -> None:
    of, observe, expected = ACTS[name]
    found = observe(run(of))
    assert found == (pytest.approx(expected) if name == "lr_scheduler_type" else expected)


# Fields that need more than one run


def order(run: Any) -> list[list[float]]:
    return [batch["images"] for batch in run.batches]


def trained(folder: Path, **changes: Any) -> Watched:
    found = trainer(folder, **{"num_train_epochs": 1, "adapt_epochs": 1, **changes})
    found.train()
    return found


def test_the_order_of_images_is_that_of_the_data_seed(run: Callable[[str], Watched], tmp_path: Path) -> None:
    first = order(run("seeds"))
    assert order(trained(tmp_path / "a", seed=6, data_seed=7)) == first
    assert order(trained(tmp_path / "b", seed=5)) != first  # the seed's, then
    assert first[:2] != first[2:]  # another order in the adapt stage's epoch


@pytest.mark.skipif(V4, reason="a field of transformers 5")
def test_images_can_be_taken_in_their_order(tmp_path: Path) -> None:
    images = Patterns(32, 1).images[:, 0, 0, 0].tolist()
    assert order(trained(tmp_path, train_sampling_strategy="sequential")) == [images[:16], images[16:]] * 2


def test_a_batch_that_is_too_large_for_the_memory_is_made_smaller(tmp_path: Path) -> None:
    class Small(Watched):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if len(inputs["labels"]) > 10:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args, **kwargs)

    model = CALoRForImageClassification.from_config(config("resnet"), rank=3)
    args = arguments(tmp_path, num_train_epochs=1, adapt_epochs=1, save_strategy="no", auto_find_batch_size=True)
    run = Small(model=model, args=args, train_dataset=Patterns(32, 1), eval_dataset=Patterns(30, 2))
    run.train()
    size = run._train_batch_size
    assert size in (8, 9, 10)
    assert [stage.stop for stage in run.plan.stages] == [-(-32 // size), 2 * -(-32 // size)]
    assert max(len(batch["images"]) for batch in run.batches) == size


class StopAt(TrainerCallback):
    def __init__(self, trainer: Any, step: int) -> None:
        self.trainer, self.step = trainer, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            self.trainer._stage_callback.stop.requested = True


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., Path]:
    """A run that was interrupted in the middle of an epoch of each stage's kind of data."""

    def of(**changes: Any) -> Path:
        run = trainer(tmp_path, **changes)
        run.add_callback(StopAt(run, 5))
        with pytest.raises(KeyboardInterrupt):
            run.train()
        return tmp_path / "checkpoint-5"

    return of


@pytest.mark.parametrize("skip", [True, False])
def test_ignore_data_skip_begins_the_epoch_anew_in_the_same_stage(
    stopped: Callable[..., Path], tmp_path: Path, skip: bool
) -> None:
    again = trainer(tmp_path, ignore_data_skip=not skip)
    again.train(resume_from_checkpoint=str(stopped()))
    assert [batch["stage"] for batch in again.batches] == ["adapt"] * 3
    assert [batch["step"] for batch in again.batches] == [5, 6, 7]
    assert (order(again)[0] in order(again)[1:]) is False
    epochs = [entry["epoch"] for entry in again.state.log_history if "train_accuracy" in entry]
    assert epochs == ([2.0, 3.0, 4.0] if skip else [2.0, 2.5, 3.5])


class Counter(TrainerCallback, transformers.trainer_callback.ExportableState):
    """Counts steps."""

    def __init__(self) -> None:
        self.count = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"count": self.count}}


def test_states_of_callbacks_come_back(stopped: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = stopped(given={"callbacks": [Counter()]})
    again = trainer(tmp_path, given={"callbacks": [Counter()]}, restore_callback_states_from_checkpoint=True)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert callback(again, Counter).count == 8


def test_a_checkpoint_without_its_schedule_is_not_resumed(stopped: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = stopped(save_only_model=True)
    again = trainer(tmp_path)
    with pytest.raises(ValueError, match="has no optimizer and no schedule \\(save_only_model\\)"):
        again.train(resume_from_checkpoint=str(checkpoint))
    assert again.batches == []


# Fields that only hardware, launchers or integrations show: they have the value that the Trainer's own arguments give

UNCHANGED: dict[str, Any] = {
    "fp16": True, "fp16_full_eval": True, "tf32": False, "torch_compile_mode": "default", "torch_empty_cache_steps": 2,
    "eval_use_gather_object": True, "log_level": "error", "log_level_replica": "error", "log_on_each_node": False,
    "project": "p", "trackio_space_id": "t", "trackio_bucket_id": "b", "trackio_static_space_id": "s",
    "logging_dir": "logs", "save_on_each_node": True, "use_cpu": True, "no_cuda": True, "use_mps_device": True,
    "dataloader_pin_memory": True, "average_tokens_across_devices": False, "hub_always_push": True,
    "greater_is_better": True, "adafactor": True, "fp16_backend": "cpu_amp", "half_precision_backend": "cpu_amp",
    "fp16_opt_level": "O2", "torchdynamo": "eager", "per_gpu_train_batch_size": 3, "per_gpu_eval_batch_size": 3,
    "push_to_hub_model_id": "m", "push_to_hub_organization": "me", "push_to_hub_token": "hf_x",
    "include_inputs_for_metrics": True, "fsdp": "", "fsdp_config": {"min_num_params": 3},
    "fsdp_min_num_params": 0, "fsdp_transformer_layer_cls_to_wrap": "Layer", "deepspeed": None,
    "parallelism_config": None, "ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 3,
    "ddp_broadcast_buffers": True, "ddp_static_graph": True, "ddp_timeout": 9, "local_rank": -1,
    "_n_gpu": 2, "tpu_num_cores": 2, "tpu_metrics_debug": True, "mp_parameters": "x", "ray_scope": "all",
    "do_train": True, "do_eval": True, "do_predict": True, "overwrite_output_dir": True,
    "resume_from_checkpoint": "somewhere",
    ("activation_checkpointing" if V4 else "gradient_checkpointing"): True,
    ("activation_checkpointing_kwargs" if V4 else "gradient_checkpointing_kwargs"): {"use_reentrant": False},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in UNCHANGED if name in NAMES])
def test_a_field_is_passed_on_unchanged(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # transformers 4 tells accelerate there
    usual = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "save_total_limit": None,
             "hub_strategy": "end"}  # fmt: skip
    if name == "push_to_hub_model_id":
        usual["push_to_hub_organization"] = "me"  # else the Hub is asked who this is

    def of(kind: type[TrainingArguments]) -> Any:
        try:
            found = vars(kind(**{**usual, name: UNCHANGED[name]}))
        except (ValueError, AssertionError) as error:  # without such a device
            return str(error)
        return {key: value for key, value in found.items() if key in NAMES}

    assert of(Arguments) == of(TrainingArguments)


@pytest.mark.skipif(V4, reason="transformers 4 tells accelerate once there are several processes")
def test_how_processes_are_joined_reaches_accelerate(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "ddp_find_unused_parameters": True,
        "ddp_bucket_cap_mb": 3,
        "ddp_broadcast_buffers": True,
    }
    handler = trainer(tmp_path, **settings).accelerator.ddp_handler
    assert (handler.find_unused_parameters, handler.bucket_cap_mb, handler.broadcast_buffers) == (True, 3, True)


# Refused

WRONG: dict[str, Any] = {
    "label_smoothing_factor": 0.1, "label_names": ["foo"], "neftune_noise_alpha": 5.0, "use_liger_kernel": True,
    "liger_kernel_config": {"swiglu": True}, "use_cache": True, "past_index": 0, "include_tokens_per_second": True,
    "train_sampling_strategy": "group_by_length", "group_by_length": True, "length_column_name": "size",
    "enable_jit_checkpoint": True, "save_safetensors": False, "use_legacy_prediction_loop": True, "jit_mode_eval": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in WRONG if name in NAMES])
def test_a_value_that_cannot_act_is_refused(tmp_path: Path, name: str) -> None:
    reason = REFUSED[name][1].partition(";")[0].partition(":")[0]
    with pytest.raises(ValueError, match=f"^{name}=.* {re.escape(reason)}"):
        CALoRTrainingArguments(str(tmp_path), use_cpu=True, **{name: WRONG[name]})


def test_values_that_a_trial_or_a_script_sets_are_refused_before_the_first_step(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.args.label_names = ["foo"]
    with pytest.raises(ValueError, match=r"label_names=\['foo'\] would hide the labels"):
        run.train()
    assert run.batches == []
    with pytest.raises(ValueError, match=r"label_names=\['foo'\] would hide the labels"):
        CALoRTrainer(model=run.model, args=run.args)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"max_steps": 0}, "max_steps must be > 0, or -1"),
        ({"num_train_epochs": 0}, "hardly pulls, so it cannot start from this model; train the first stage"),
        ({"optim": "adamw_torch", "optim_args": "momentum=0.5"}, "optim_args=momentum=0.5 has no effect on optim=adam"),
        ({"optim_target_modules": "all-linear"}, "optim_target_modules=all-linear has no effect on"),
    ],
)
def test_what_would_do_nothing_is_refused(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **wrong).train()


@pytest.mark.skipif(V4, reason="transformers 4 reads them for optimizers of other libraries alone")
def test_arguments_of_the_optimizer_act_in_each_stage(tmp_path: Path) -> None:
    run = trained(tmp_path, optim="sgd", optim_args="momentum=0.5")
    assert run.each_stage("optimizer") == both(("SGD", None, None, 0.5))


# The table

ELSEWHERE = {
    "logging_nan_inf_filter": "training/test_numerics.py::test_a_picture_with_nan_stops_training",
    "prediction_loss_only": "training/test_trainer_parameters.py::test_metrics_say_what_is_logged",
    "batch_eval_metrics": "training/test_trainer_parameters.py::test_metrics_say_what_is_logged",
    "metric_for_best_model": "training/test_trainer_parameters.py::test_the_chosen_checkpoint_is_kept",
    "load_best_model_at_end": "training/test_arguments.py::test_bad_values_are_refused",
    "push_to_hub": "hub/test_push.py::test_nothing_is_pushed_before_training_ends",
    "hub_model_id": "hub/test_push.py::test_nothing_is_pushed_before_training_ends",
    "hub_strategy": "hub/test_push.py::test_unfinished_models_are_pushed_only_if_asked",
    "hub_private_repo": "hub/test_push.py::test_a_defense_without_a_head_of_its_own",
    "hub_revision": "hub/test_push.py::test_branch_and_token_of_the_arguments",
    "hub_token": "hub/test_push.py::test_branch_and_token_of_the_arguments",
    "seed": "training/test_numerics.py::test_training_twice_gives_the_same_bits",
    "data_seed": "training/test_fields.py::test_the_order_of_images_is_that_of_the_data_seed",
    "auto_find_batch_size": "training/test_fields.py::test_a_batch_that_is_too_large",
    "ddp_backend": "training/test_processes.py::test_gradient_checkpointing_in_two_processes",
    "ignore_data_skip": "training/test_fields.py::test_ignore_data_skip",
    "restore_callback_states_from_checkpoint": "training/test_fields.py::test_states_of_callbacks_come_back",
    "optim_args": "training/test_fields.py::test_what_would_do_nothing_is_refused",
    "optim_target_modules": "training/test_fields.py::test_what_would_do_nothing_is_refused",
    # Those of CALoRTrainingArguments
    "adapt_epochs": "training/test_calor_trainer.py::test_stage_learning_rate_and_optimizer",
    "adapt_steps": "training/test_calor_trainer.py::test_streamed_data_with_steps",
    "adapt_learning_rate": "training/test_trainer_parameters.py::test_an_optimizer_acts_in_each_stage",
    "head_learning_rate": "training/test_calor_trainer.py::test_the_head_can_have_its_own_learning_rate",
    "head_only": "training/test_learning.py::test_the_head_alone_learns_if_asked_to",
    "lr_drop_epochs": "training/test_schedule.py::test_the_rate_falls_to_a_tenth",
    "adapt_start_epoch": "training/test_calor_trainer.py::test_adapting_can_take_the_tail",
    "adapt_freeze_batch_norm": "training/test_calor_trainer.py::test_batch_norm_statistics_stand_still",
    "adapt_only_last_layer": "training/test_calor_trainer.py::test_only_the_last_layer_can_be_adapted",
    "max_accuracy_drop": "training/test_calor_trainer.py::test_losing_accuracy_is_an_error",
    "confidence_tolerance": "training/test_calor_trainer.py::test_adapting_stops_when_the_target_is_reached",
    "confidence_samples": "training/test_fields.py::test_confidence_is_measured_on_so_many_images",
    "class_chunk": "training/test_class_chunks.py::test_the_curve_is_that_of_ordinary_training",
    "accept_unadapted": "training/test_calor_trainer.py::test_an_unadapted_model_is_returned",
    "push_unfinished": "hub/test_push.py::test_unfinished_models_are_pushed_only_if_asked",
    "publish_label_names": "hub/test_push.py::test_names_leave_only_by_choice",
}


def test_confidence_is_measured_on_so_many_images(tmp_path: Path) -> None:
    run = trainer(tmp_path, confidence_samples=6)
    assert run.measure_training_images(lambda prediction: {"images": len(prediction.label_ids)})["images"] == 6


@pytest.mark.parametrize("name", sorted(field.name for field in dataclasses.fields(Arguments) if field.init))
def test_each_field_has_a_row_and_a_test(name: str) -> None:
    if name in NAMES:
        groups = [name in group for group in (AS_IN_TRAINER, PASSED_ON, DIFFERENCES)]
        assert sum(groups) == 1 or (sum(groups) == 0 and name in REFUSED), "a new field: say what it does"
        assert how(name).endswith((".", "`."))
    if name in REFUSED and name not in DIFFERENCES:
        assert name in WRONG
    else:
        assert name in {**ACTS, **UNCHANGED, **ELSEWHERE, **WRONG}
    if name in ELSEWHERE:
        file, test = ELSEWHERE[name].split("::")
        assert f"def {test}" in (TESTS / file).read_text(encoding="utf-8")
