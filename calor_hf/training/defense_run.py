"""What the trainer tells a defense: about the run, and about a batch."""

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from calor_hf.core.seeding import StepDraws
from calor_hf.data.pixel_input import PixelScale
from calor_hf.defenses.training_run import TrainingRun
from calor_hf.modeling.modeling_defended import DefendedForImageClassification

if TYPE_CHECKING:
    from calor_hf.training.trainer import DefenseTrainer


def training_run(trainer: "DefenseTrainer") -> TrainingRun:
    """What a defense may use of ``trainer``."""

    def make_optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        cls, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
        return cast(torch.optim.Optimizer, cls(parameters, weight_decay=trainer.args.weight_decay, **options))

    return TrainingRun(
        model=trainer.bare_model,
        scale=PixelScale.of(trainer.processing_class),
        seed=trainer.args.seed,
        make_optimizer=make_optimizer,
        learning_rate=lambda: trainer.optimizer.param_groups[0]["lr"],
        sum_over_processes=lambda value: trainer.accelerator.reduce(value, reduction="sum"),
        processes=trainer.args.world_size,
    )


def draws_of_batch(trainer: "DefenseTrainer", count: int, part: int) -> StepDraws:
    """Random numbers of the batch of ``count`` samples that is the number ``part`` of its optimizer step."""
    args = trainer.args
    return StepDraws.of_batch(
        seed=args.seed,
        step=trainer.state.global_step,
        count=count,
        batch_size=args.per_device_train_batch_size,
        part=part,
        parts=args.gradient_accumulation_steps,
        process=args.process_index,
        processes=args.world_size,
    )


def frozen_parameters(model: DefendedForImageClassification) -> list[nn.Parameter]:
    """Parameters that the model's defense keeps as they are."""
    names = set(model.defense.frozen(model.backbone))
    return [weight for name, weight in model.backbone.named_parameters() if name in names and weight.requires_grad]
