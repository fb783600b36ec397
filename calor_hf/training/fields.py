"""How the trainers treat each field of ``TrainingArguments``: as in Trainer, with a difference, or refused."""

import copy
from typing import Any

from transformers import Trainer

AS_IN_TRAINER = frozenset({
    "output_dir", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "max_grad_norm", "optim", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16", "tf32",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "torch_empty_cache_steps", "auto_find_batch_size", "logging_dir", "logging_first_step", "log_on_each_node",
    "log_level", "log_level_replica", "disable_tqdm", "include_num_input_tokens_seen", "run_name", "project",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics", "debug", "eval_on_start",
    "eval_accumulation_steps", "eval_use_gather_object", "save_on_each_node", "greater_is_better", "ignore_data_skip",
    "restore_callback_states_from_checkpoint", "seed", "data_seed", "full_determinism", "push_to_hub", "hub_model_id",
    "hub_token", "hub_private_repo", "hub_revision", "use_cpu", "no_cuda", "use_mps_device", "accelerator_config",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "dataloader_in_order", "remove_unused_columns", "include_inputs_for_metrics",
    "adafactor", "fp16_backend", "half_precision_backend", "fp16_opt_level", "torchdynamo", "per_gpu_train_batch_size",
    "per_gpu_eval_batch_size", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token",
})  # fmt: skip
"""Fields that act as in ``Trainer``, in every stage."""

PASSED_ON = frozenset({
    "fsdp", "fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "deepspeed",
    "parallelism_config", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "ddp_backend", "ddp_timeout", "local_rank", "_n_gpu", "tpu_num_cores", "tpu_metrics_debug",
    "mp_parameters", "ray_scope",
})  # fmt: skip
"""Fields of launchers and hardware that reach ``Trainer`` and accelerate unchanged."""

_STEPS = "As in Trainer; a share below 1 is of the steps of all stages."
_FIRST = "Of the first stage; `adapt` follows it with its own `adapt_learning_rate`, constant."
_SCRIPTS = "For scripts, as in Trainer: the trainers do not read it, and `calor-hf train` refuses it."
_LOGGED = "As in Trainer, for what `compute_metrics` gets; results are measured without it."

DIFFERENCES = {
    "num_train_epochs": "Length of the first stage, which `adapt` follows; `adapt_start_epoch` puts `adapt` inside it.",
    "max_steps": "Length of the first stage in steps; `adapt_steps` is that of `adapt`.",
    "learning_rate": _FIRST + " Must be above 0.",
    "lr_scheduler_type": _FIRST + " Schedules that follow metrics are refused if there are several stages.",
    "lr_scheduler_kwargs": _FIRST,
    "warmup_steps": _FIRST + " A share below 1 is of its steps.",
    "warmup_ratio": _FIRST + " A share of its steps.",
    "optim_args": "As in Trainer; refused if the optimizer does not read it.",
    "optim_target_modules": "As in Trainer; refused if the optimizer does not read it.",
    "average_tokens_across_devices": "Without effect, as the loss is a mean over the images of each batch.",
    "bf16_full_eval": "As in Trainer for `evaluate()` and `predict()`; results are measured and saved as trained.",
    "fp16_full_eval": "As in Trainer for `evaluate()` and `predict()`; results are measured and saved as trained.",
    "logging_strategy": "As in Trainer; the ends of stages, and each epoch of `adapt`, are logged anyway.",
    "logging_steps": _STEPS,
    "logging_nan_inf_filter": "As in Trainer for evaluations; a training loss that is not finite ends the run.",
    "report_to": "As in Trainer; `CALoRTrainingArguments` reports to TensorBoard by default.",
    "eval_strategy": "As in Trainer; the end of the first stage, and each epoch of `adapt`, are evaluated anyway.",
    "eval_steps": _STEPS,
    "eval_delay": "As in Trainer for `eval_strategy`; checkpoints that the result is chosen from are evaluated anyway.",
    "prediction_loss_only": _LOGGED,
    "eval_do_concat_batches": _LOGGED,
    "include_for_metrics": _LOGGED,
    "batch_eval_metrics": _LOGGED,
    "save_strategy": "As in Trainer; the end of the first stage, and each epoch of `adapt`, are saved anyway.",
    "save_steps": _STEPS,
    "save_total_limit": "As in Trainer, in the order of steps; the checkpoint chosen so far is kept. "
    "`CALoRTrainingArguments` keeps 2 by default.",
    "save_only_model": "As in Trainer; resuming from such a checkpoint is refused, as its schedule is lost.",
    "hub_strategy": "`end`: one push of the finished model. `every_save` needs `push_unfinished`; others are refused.",
    "hub_always_push": "Without effect: no push is skipped, as each is waited for.",
    "load_best_model_at_end": "As in Trainer with one stage; with several it is refused, as the result is the "
    "checkpoint chosen by `max_accuracy_drop`.",
    "metric_for_best_model": "As in Trainer; one that is not measured is refused. With several stages it does not "
    "choose the result.",
    "dataloader_drop_last": "Training images alone; evaluations read all images.",
    "train_sampling_strategy": "`random` or `sequential`, as in Trainer; images have no lengths to group by.",
    "resume_from_checkpoint": _SCRIPTS + " Pass it to `train()`.",
    "overwrite_output_dir": _SCRIPTS + " `--overwrite` deletes an earlier run.",
    "do_train": _SCRIPTS,
    "do_eval": _SCRIPTS,
    "do_predict": _SCRIPTS,
}
"""Fields that act with a difference, and which."""

_NO_TOKENS = "is about language models; images have no tokens: leave it out"
_NO_LENGTHS = "groups samples by length, and images have none: leave it out, or write a sampler (_get_train_sampler)"

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "label_smoothing_factor": (
        (0.0,),
        "would replace the loss that is the defense; leave it at 0: confidence adaptation sets the confidence, and the "
        "defense 'label_smoothing' has alpha for it",
    ),
    "label_names": (
        (None, ["labels"]),
        "would hide the labels that results are measured with; leave it out, and name them labels in data_collator",
    ),
    "neftune_noise_alpha": ((None,), _NO_TOKENS),
    "use_liger_kernel": ((False,), _NO_TOKENS),
    "liger_kernel_config": ((None,), _NO_TOKENS),
    "use_cache": ((False,), _NO_TOKENS),
    "past_index": ((-1,), _NO_TOKENS),
    "include_tokens_per_second": ((False,), _NO_TOKENS),
    "train_sampling_strategy": (("random", "sequential"), _NO_LENGTHS),
    "group_by_length": ((False,), _NO_LENGTHS),
    "length_column_name": (("length",), _NO_LENGTHS),
    "enable_jit_checkpoint": (
        (False,),
        "saves on SIGTERM a second time; leave it out: one process saves then, and several save as save_strategy says",
    ),
    "save_safetensors": ((True,), "saves pickled weights, which are not read here; leave it out"),
    "use_legacy_prediction_loop": ((False,), "evaluates in a way that transformers 5 no longer has; leave it out"),
    "jit_mode_eval": ((False,), "evaluates in a way that transformers 5 no longer has; pass torch_compile"),
}
"""Fields whose other values are refused: the accepted values, and the reason with the remedy."""


def check_fields(args: Any) -> None:
    """Refuse values of ``TrainingArguments`` that cannot act.

    Raises:
        ValueError: a value that :data:`REFUSED` does not accept, or a learning rate that is not positive.
    """
    for name, (accepted, reason) in REFUSED.items():
        value = getattr(args, name, accepted[0])
        if value not in accepted:
            raise ValueError(f"{name}={value} {reason}")
    if not args.learning_rate > 0:
        raise ValueError(f"learning_rate must be > 0, as later stages take a fraction of it; got {args.learning_rate}")
    if args.max_steps == 0:
        raise ValueError("max_steps must be > 0, or -1 for num_train_epochs; got 0")


def check_read_by_optimizer(args: Any, model: Any) -> None:
    """Refuse ``optim_args`` and ``optim_target_modules`` that the optimizer of the arguments does not read.

    Raises:
        ValueError: the optimizer is the same without them.
    """
    for name in ("optim_args", "optim_target_modules"):
        if not getattr(args, name):
            continue
        without = copy.copy(args)
        setattr(without, name, None)
        found, other = (Trainer.get_optimizer_cls_and_kwargs(one, model) for one in (args, without))
        if found == other:
            raise ValueError(
                f"{name}={getattr(args, name)} has no effect on optim={args.optim.value}; leave it out, or pass "
                "optimizer_cls_and_kwargs to the trainer"
            )


def how(name: str) -> str:
    """Describe how the trainers treat a field.

    Raises:
        KeyError: the field is not known.
    """
    if name in AS_IN_TRAINER:
        return "As in Trainer."
    if name in PASSED_ON:
        return "Passed on unchanged."
    if name in DIFFERENCES:
        return DIFFERENCES[name]
    accepted, reason = REFUSED[name]
    return f"Refused unless {' or '.join(f'`{value}`' for value in accepted)}: it {reason}."
