"""Trap-MID: a trapdoor that misleads inversion attacks away from private features."""

import copy
import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import Forward, Progress
from calor_hf.core.seeding import StepDraws, named_rng, torch_seed
from calor_hf.data.random_views import RandomView
from calor_hf.defenses.base import DEFENSES, Defense, Strength
from calor_hf.defenses.label_smoothing import SCHEDULES, cross_entropies, ramp
from calor_hf.defenses.training_run import TrainingRun, check_images
from calor_hf.heads.features import scores_of

AUGMENTATION = RandomView(
    scale=(0.8, 1.0), brightness=0, contrast=0, flip_probability=0.5, degrees=30, crop_probability=0.5,
    turn_probability=0.5,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrapMIDConfig(MethodConfig):
    """Settings of :class:`TrapMID`; the defaults are those of the authors' configurations."""

    blend: float = setting(0.02, "Share of the trigger in a poisoned image, 0 to 1.", gt=0, lt=1)
    weight: float = setting(0.2, "Weight of the trapdoor in the loss, 0 to 1.", gt=0, lt=1)
    trigger_step: float = setting(0.01, "How far a trigger's pixel moves in a step, > 0.", gt=0, le=1)
    augment: bool = setting(True, "Crop, mirror and turn images, clean and poisoned, so that the trap is robust.")
    alpha: float = setting(0.0, "Label smoothing of both losses, <= 0; the +NegLS variant.")
    schedule: str = setting("official", "Of alpha, as in label_smoothing.", choices=SCHEDULES)

    def validate(self) -> None:
        """Refuse positive label smoothing."""
        if not -math.inf < self.alpha <= 0:
            raise ValueError(f"alpha must be a finite number <= 0 (positive smoothing helps attacks), got {self.alpha}")


@DEFENSES.register("trap_mid")
class TrapMID(Defense[TrapMIDConfig]):
    """Invisible per-class triggers that mislead attacks, learned during training (Liu and Chen, NeurIPS 2024).

    Each step: a discriminator (the same architecture, one output) learns to tell poisoned images from clean ones; the
    triggers move by the sign of the gradient that hides them from it and makes them work; the classifier learns clean
    and poisoned images together. A poisoned image is ``blend`` · trigger + (1 − ``blend``) · image, in pixels.

    The triggers are a backdoor to the model: with them its predictions can be chosen. They are saved with checkpoints,
    to resume, and never with the model. A step costs about six of ordinary training. Results vary more
    between seeds than with other defenses.

    Source:
        Liu, Chen, "Trap-MID: Trapdoor-based Defense against Model Inversion Attacks", NeurIPS 2024, arXiv:2411.08460,
        and the released code, which the order of the three updates follows.
    """

    config_class = TrapMIDConfig
    needs_trainer = True
    release_warning = "Its checkpoints hold the triggers, which open the model's backdoor: do not publish them."

    def __init__(self, config: TrapMIDConfig) -> None:
        super().__init__(config)
        self._triggers: Tensor | None = None
        self._discriminator: Discriminator
        self._optimizer: torch.optim.Optimizer

    @property
    def step_cost(self) -> float:
        """Two batches, gradients of triggers, and a discriminator on both."""
        return 6.0

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """The weight of the trapdoor in the loss."""
        return Strength("weight", 0.02, 0.8, log=True)

    def begin(self, run: TrainingRun) -> None:
        """Create the discriminator from the current model, with the same public weights.

        Raises:
            ValueError: the trainer has no image processor.
        """
        super().begin(run)
        run.pixel_scale("trap_mid")
        device = next(run.model.parameters()).device
        self._discriminator = Discriminator(copy.deepcopy(run.model.backbone), run.model.feature_width).to(device)
        self._optimizer = run.make_optimizer(list(self._discriminator.parameters()))
        self._triggers = None

    def on_batch(self, inputs: dict[str, Any], draws: StepDraws, progress: Progress) -> dict[str, Any]:
        """Update discriminator and triggers; return clean images followed by poisoned ones."""
        scale = self.run.pixel_scale("trap_mid")
        images = check_images(inputs, "trap_mid").float()
        if inputs["labels"].ndim != 1:
            raise ValueError("trap_mid needs one whole-number label per image; switch mixup and cutmix off")
        classes = self.run.model.config.num_labels
        if self._triggers is None:
            # Drawn on the CPU, so that every device starts with the same triggers.
            draw = torch.Generator().manual_seed(torch_seed(self.run.seed, "defenses/trap_mid/triggers"))
            self._triggers = torch.rand((classes, *images.shape[1:]), generator=draw).to(images)
        pixels = scale.images(images)
        wanted = poison_classes(draws, classes).to(images.device)
        own = wanted[draws.first - draws.all_first :][: len(images)]

        with torch.autocast(images.device.type, enabled=False):
            # In the order of the released code: discriminator, triggers, and then the classifier in the training step.
            # The sign of a gradient that underflowed is lost, so no half precision here.
            self._discriminator_step(pixels, self._blend(self._triggers[own], pixels))
            self._triggers = self._moved_triggers(self._triggers, pixels, own, wanted, draws, progress)
        poisoned = self._blend(self._triggers[own], pixels)
        views = [
            self._view("defenses/trap_mid/clean-views", pixels, draws),
            self._view("defenses/trap_mid/poisoned-views", poisoned, draws),
        ]
        both = torch.cat([scale.normalize(view) for view in views])
        return {**inputs, "pixel_values": both, "labels": torch.cat([inputs["labels"], own])}

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``clean`` and ``trapdoor``: weighted cross-entropies in nats; ``cross_entropy`` outside training.

        In a training run ``trap_success`` is logged too.
        """
        if not out.training:
            return {"cross_entropy": self._cross_entropy(out.logits, out.labels, out.class_weights, 0.0)}
        half = len(out.labels) // 2
        if self._triggers is not None:  # the share of poisoned images that get the class of their trigger
            correct = out.logits[half:].detach().argmax(dim=1) == out.labels[half:]
            self.run.log("trap_success", correct.float().mean())
        weight, alpha = self.config.weight, self._alpha(progress)
        clean = self._cross_entropy(out.logits[:half], out.labels[:half], out.class_weights, alpha)
        # No class weights: each class is the goal of equally many triggers.
        trapdoor = self._cross_entropy(out.logits[half:], out.labels[half:], None, alpha)
        return {"clean": (1 - weight) * clean, "trapdoor": weight * trapdoor}

    def state_dict(self) -> dict[str, Any]:
        """Triggers, discriminator and its optimizer."""
        if self._triggers is None:
            return {}
        return {
            "triggers": self._triggers,
            "discriminator": self._discriminator.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved triggers and discriminator."""
        if state:
            device = next(self._discriminator.parameters()).device
            # A copy, as triggers are updated in place.
            self._triggers = state["triggers"].to(device, copy=True)
            self._discriminator.load_state_dict(state["discriminator"])
            self._optimizer.load_state_dict(state["optimizer"])

    @property
    def triggers(self) -> Tensor | None:
        """(classes, channels, height, width) in [0, 1], or None before training. Secret: they open the backdoor."""
        return self._triggers

    def _discriminator_step(self, pixels: Tensor, poisoned: Tensor) -> None:
        discriminator, optimizer = self._discriminator, self._optimizer
        images = torch.cat([pixels, poisoned])
        is_clean = torch.arange(len(images), device=images.device) < len(pixels)
        for group in optimizer.param_groups:
            group["lr"] = self.run.learning_rate()
        scores = discriminator.train()(self.run.pixel_scale("trap_mid").normalize(images))
        loss = F.binary_cross_entropy_with_logits(scores, is_clean.float())
        learning = [parameter for parameter in discriminator.parameters() if parameter.requires_grad]
        # allow_unused: some backbones own weights that no output reads, such as the last norm of CLIP.
        grads = torch.autograd.grad(loss, learning, allow_unused=True)
        for parameter, grad in zip(learning, grads, strict=True):
            parameter.grad = None if grad is None else self._mean(grad)
        optimizer.step()
        optimizer.zero_grad()
        if self.run.processes > 1:
            # It is not wrapped for distributed training, so nothing else keeps the statistics of its copies equal.
            for buffer in discriminator.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self._mean(buffer))

    def _moved_triggers(
        self, all_triggers: Tensor, pixels: Tensor, own: Tensor, wanted: Tensor, draws: StepDraws, progress: Progress
    ) -> Tensor:
        scale, model = self.run.pixel_scale("trap_mid"), self.run.model
        modes = [(part, part.training) for part in model.modules()]
        classes = wanted.unique()  # of all processes, so that their gradients can be added up
        triggers = all_triggers[classes].requires_grad_()
        poisoned = self._blend(triggers[torch.searchsorted(classes, own)], pixels)
        model.eval()
        # Both networks in evaluation mode, as in the released code.
        hidden = self._discriminator.eval()(scale.normalize(poisoned))
        seen = model(pixel_values=scale.normalize(self._view("defenses/trap_mid/trigger-views", poisoned, draws)))
        loss = F.binary_cross_entropy_with_logits(hidden, torch.ones_like(hidden))
        loss = loss + self._cross_entropy(seen.logits, own, None, self._alpha(progress))
        (grad,) = torch.autograd.grad(loss, triggers)
        for part, training in modes:
            part.training = training
        moved = triggers.detach() - self.config.trigger_step * self.run.sum_over_processes(grad).sign()
        all_triggers[classes] = moved.clamp(0, 1)
        return all_triggers

    def _blend(self, triggers: Tensor, pixels: Tensor) -> Tensor:
        return self.config.blend * triggers + (1 - self.config.blend) * pixels

    def _view(self, name: str, pixels: Tensor, draws: StepDraws) -> Tensor:
        if not self.config.augment:
            return pixels
        return AUGMENTATION(pixels, torch.from_numpy(draws.uniform(name, AUGMENTATION.numbers)))

    def _mean(self, value: Tensor) -> Tensor:
        return self.run.sum_over_processes(value) / self.run.processes if self.run.processes > 1 else value

    def _alpha(self, progress: Progress) -> float:
        return self.config.alpha * ramp(self.config.schedule, progress) if self.config.alpha else 0.0

    @staticmethod
    def _cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None, alpha: float) -> Tensor:
        hard, uniform = cross_entropies(logits, labels, weight)
        return (1 - alpha) * hard + alpha * uniform


class Discriminator(nn.Module):
    """Tells clean from poisoned images: the classifier's architecture with one output.

    Args:
        backbone: Base model without its classifier.
        in_features: Width of its features.
    """

    def __init__(self, backbone: nn.Module, in_features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = nn.Linear(in_features, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch,) log-odds that an image is clean, from model inputs."""
        features = scores_of(self.backbone(pixel_values=images, return_dict=True))
        return cast(Tensor, self.score(features.to(self.score.weight.dtype)).squeeze(1))


def poison_classes(draws: StepDraws, classes: int) -> Tensor:
    """Classes of the triggers for all samples that any process sees in this forward pass, (samples,) int64.

    Independent of the samples' own labels; counted over the run, each block of ``classes`` samples gets each class
    once, in an order that (seed, block) decides.
    """
    position = draws.step * draws.per_step + draws.all_first + np.arange(draws.all_count)
    blocks, rest = np.divmod(position, classes)
    rngs = {b: named_rng(draws.seed, "defenses/trap_mid/classes", int(b)) for b in np.unique(blocks)}
    orders = {b: rng.permutation(classes) for b, rng in rngs.items()}
    return torch.tensor([int(orders[b][r]) for b, r in zip(blocks, rest, strict=True)])
