"""DP-SGD: clipped gradients of single images with noise, which bounds what the weights can tell about an image."""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from calor_hf.core.config import MethodConfig, setting
from calor_hf.core.outputs import LOSS_INPUTS, Forward, Progress, Stage
from calor_hf.core.seeding import StepDraws
from calor_hf.defenses.base import DEFENSES, Defense, Strength
from calor_hf.defenses.training_run import TrainingRun

logger = logging.getLogger(__name__)

LEAST_BATCH = 32
"""An empty batch of this expected size has probability e^-32; it is drawn again."""
TOLERANCE = 1e-3
"""Largest difference between gradients of images in a batch and alone, in units of the largest gradient."""


@dataclass(frozen=True, kw_only=True)
class DPSGDConfig(MethodConfig):
    """Settings of :class:`DPSGD`."""

    epsilon: float = setting(8.0, "Privacy budget of the whole training per image, > 0; smaller hides more.", gt=0)
    delta: float = setting(1e-5, "Probability that the budget is exceeded, below 1 / training images.", gt=0, lt=1)
    clip: float = setting(1.0, "Largest norm of the gradient of an image, > 0.", gt=0)


class PoissonBatches(Iterable[list[int]]):
    """Batches that contain each sample with the same probability, independently, from the system's random numbers.

    Args:
        samples: Size of the data set.
        batch_size: Expected size of a batch.
        parts: Batches of an optimizer step, into which its draw is split.
    """

    def __init__(self, samples: int, batch_size: int, parts: int) -> None:
        self.samples, self.parts = samples, parts
        self.rate = min(1.0, batch_size * parts / samples)
        self.steps = max(1, round(1 / self.rate))
        self.random = np.random.Generator(np.random.PCG64(int.from_bytes(os.urandom(16))))

    def __len__(self) -> int:
        """Batches of an epoch, in which a sample is expected about once."""
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        """Draw the batches of an epoch."""
        for _ in range(self.steps):
            chosen = np.empty(0, dtype=np.int64)
            while len(chosen) < self.parts:
                chosen = np.flatnonzero(self.random.random(self.samples) < self.rate)
            yield from (part.tolist() for part in np.array_split(self.random.permutation(chosen), self.parts))


@DEFENSES.register("dp_sgd")
class DPSGD(Defense[DPSGDConfig]):
    """Differentially private SGD by Opacus: gradients clipped per image, with noise (Abadi et al., CCS 2016).

    With g_i the gradient of image i, a step follows (Σ_i g_i · min(1, ``clip`` / ‖g_i‖) + ``clip`` · σ · z) / B,
    where z is standard normal and B is the expected batch. Each image is in a batch with probability B / n,
    independently of the others. σ is chosen so that the planned steps spend ``epsilon`` at ``delta``, by Rényi
    accounting.

    What (ε, δ) bounds: an attacker who knows all other images and everything about the training cannot tell from the
    weights whether *one image* was used, up to a factor of e^ε of probability. **The unit is the image, not the
    person:** for a person with m images ε is m times as large (and δ larger still), which at 20 images and ε = 8
    promises nothing. Model inversion shows what the images of a person have in common, so audit the model as any
    other. Not in ε: the choice of settings and checkpoints by their accuracy on images of the same people, statistics
    for normalizing computed from them, and the base model's own training images.

    Sampling and noise come from the operating system, not from ``seed``: who knows the noise can subtract it. So a
    run cannot be repeated exactly. The numbers are float32 without protection against attacks on floating-point noise.

    It needs many images, or a model that was pre-trained on public ones. The small ResNet from random weights, on 400
    images of 20 drawn people (batches of 100, 30 epochs, one training each), reached a test accuracy of 14.5 % with
    ε = 8 and 58 % with ε = 1000, which bounds nothing; 99.5 % without a defense.

    Batch norm mixes the images of a batch, so it keeps the base model's statistics and weights. Networks that fold
    images into the batch (Swin) have no gradients of single images; the first step checks that, and ``--head-only``
    trains the head alone. One process; neither fp16 nor bf16, no gradient checkpointing, batches of 32 or more.

    Source:
        Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133; Opacus 1.5 or newer. Losses
        that mix the gradients of images, such as those of other defenses, are not bounded by this.
    """

    config_class = DPSGDConfig
    needs_trainer = True
    extra = "dp"

    @property
    def step_cost(self) -> float:
        """About three steps: gradients of single images are computed again from inputs and outputs of layers."""
        return 3.0

    @classmethod
    def strength(cls, in_features: int, num_labels: int) -> Strength:
        """The privacy budget."""
        return Strength("epsilon", 1000.0, 1.0, log=True)

    def stages(self, args: Any) -> list[Stage]:
        """Fix batch norm, and refuse what training cannot do.

        Raises:
            ModuleNotFoundError: Opacus is not installed.
            ValueError: arguments under which gradients are not those of single images, or batches may be empty.
        """
        _opacus()
        for name in ("fp16", "bf16", "activation_checkpointing", "gradient_checkpointing"):
            if getattr(args, name, False):
                raise ValueError(f"dp_sgd computes gradients of single images in float32, got {name}; leave it out")
        if getattr(args, "per_device_train_batch_size", LEAST_BATCH) < LEAST_BATCH:
            raise ValueError(
                f"dp_sgd needs batches of {LEAST_BATCH} or more, as they are drawn at random and must not be empty, "
                f"got per_device_train_batch_size={args.per_device_train_batch_size}; large batches need less noise"
            )
        (fit,) = super().stages(args)
        return [Stage(fit.name, epochs=fit.epochs, steps=fit.steps, fixed_batch_norm=True)]

    def batches(self, samples: int, batch_size: int, parts: int) -> PoissonBatches:
        """Random batches of random sizes.

        Raises:
            ValueError: ``delta`` is too large for so many images.
        """
        if self.config.delta * samples >= 1:
            raise ValueError(
                f"delta must be below 1 / training images = {1 / samples:.2g}, got {self.config.delta:g}: publishing "
                "one image as it is would satisfy it; pass a smaller delta"
            )
        self._batches = PoissonBatches(samples, batch_size, parts)
        return self._batches

    def begin(self, run: TrainingRun) -> None:
        """Freeze the weights of batch norm, and prepare.

        Raises:
            ValueError: several processes.
        """
        super().begin(run)
        if run.processes > 1:
            raise ValueError(f"dp_sgd runs in one process, got {run.processes}; start it without accelerate launch")
        for module in run.model.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        self._spent: dict[str, float] = {}
        self._noise = torch.Generator(run.model.device)
        self._noise.manual_seed(int.from_bytes(os.urandom(7)))
        self._hooks: Any = None

    def on_batch(self, inputs: dict[str, Any], draws: StepDraws, progress: Progress) -> dict[str, Any]:
        """Watch the coming pass; in the first one, set the noise and check the gradients.

        Raises:
            ValueError: labels are soft, or the network mixes images.
        """
        if inputs["labels"].ndim != 1:
            raise ValueError("dp_sgd needs one whole-number label per image; switch mixup and cutmix off")
        if self._hooks is None:
            self._plan(progress.total_steps)
            weights = [weight for weight in self.run.model.parameters() if weight.requires_grad]
            self._engine = _opacus().optimizers.DPOptimizer(
                torch.optim.SGD(weights), noise_multiplier=self._spent["noise"], max_grad_norm=self.config.clip,
                expected_batch_size=None, loss_reduction="sum", generator=self._noise,
            )  # fmt: skip
            self._check_gradients(inputs)
        self._hooks = _opacus().grad_sample.GradSampleHooks(self.run.model, strict=False)
        return _with_slopes(inputs)

    def loss(self, out: Forward, progress: Progress) -> dict[str, Tensor]:
        """``cross_entropy`` in nats: the sum over the images that count, divided by the size of the batch.

        Class weights are divided by their mean over the classes. A mean over the images that count, or by their
        weights, would make the gradient of an image depend on the others.
        """
        weights = None if out.class_weights is None else out.class_weights / out.class_weights.mean()
        losses = F.cross_entropy(out.logits, out.labels, weight=weights, reduction="none")
        return {"cross_entropy": losses.sum() / len(losses)}

    def on_gradients(self, parts: int, last: bool) -> None:
        """Clip the gradients of the images of a batch and add them up; with ``last``, add noise to the sum."""
        for weight in self._engine.params:
            weight.grad_sample *= parts  # the loss was divided by it
        self._engine.clip_and_accumulate()
        self._hooks.cleanup()
        for weight in self._engine.params:
            weight.grad = None
        if last:
            self._engine.add_noise()
            for weight in self._engine.params:
                weight.grad /= self._batches.rate * self._batches.samples
                weight.summed_grad = None
            self._spent["steps"] += 1

    def state_dict(self) -> dict[str, Any]:
        """Noise, sampling rate and steps so far, from which ε follows."""
        return dict(self._spent)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the noise of the run that was begun."""
        self._spent = dict(state)

    def _plan(self, steps: int) -> None:
        """Find the noise for ``steps`` steps, or check that of a resumed run."""
        rate = self._batches.rate
        if not self._spent:
            self._spent = {"noise": self._noise_for(steps, rate), "rate": rate, "steps": 0}
        accountant = _opacus().accountants.RDPAccountant()
        accountant.history = [(self._spent["noise"], max(rate, self._spent["rate"]), steps)]
        with warnings.catch_warnings(action="ignore"):
            epsilon = accountant.get_epsilon(self.config.delta)
        if epsilon > self.config.epsilon * 1.001:
            raise ValueError(
                f"{steps} steps with the noise that this run began with spend epsilon={epsilon:.4g}, not "
                f"{self.config.epsilon:g}; resume it with the epochs and batches that it was begun with, or train again"
            )
        logger.info(
            "dp_sgd: noise of %.4g times the clipping norm %g; %d steps with sampling rate %.4g spend epsilon = %.4g "
            "at delta = %g, per image and not per person", self._spent["noise"], self.config.clip, steps, rate, epsilon,
            self.config.delta,
        )  # fmt: skip

    def _noise_for(self, steps: int, rate: float) -> float:
        with warnings.catch_warnings(action="ignore"):  # on its way it tries noise of which its bound is loose
            noise: float = _opacus().accountants.utils.get_noise_multiplier(
                target_epsilon=self.config.epsilon, target_delta=self.config.delta, sample_rate=rate, steps=steps,
                accountant="rdp", epsilon_tolerance=self.config.epsilon / 1000,
            )  # fmt: skip
        return noise

    def _check_gradients(self, inputs: dict[str, Any]) -> None:
        """Compare the gradients of two images in a batch with those of each alone.

        Raises:
            ValueError: they differ, or cannot be computed.
        """
        model = self.run.model
        both = {name: value[:2] for name, value in inputs.items()}
        alone = [{name: value[i : i + 1] for name, value in both.items()} for i in range(2)]
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            in_training = self._gradients(both)
            training = [module for module in model.modules() if module.training]
            without_weights = [module for module in training if not list(module.parameters())]
            for module in without_weights:
                module.eval()  # dropout differs from pass to pass
            together, one, other = (self._gradients(few) for few in (both, *alone))
            for module in without_weights:
                module.train()
        expected = {name: torch.cat([one[name], other[name]]) for name in one.keys() & other.keys()}
        largest = max((float(gradient.abs().max()) for gradient in one.values()), default=0.0)
        for name in (name for name, weight in model.named_parameters() if weight.requires_grad):
            known = name in in_training and name in together and name in expected
            if (
                not known
                or len(together[name]) != 2
                or float((together[name] - expected[name]).abs().max()) > TOLERANCE * largest
            ):
                raise ValueError(
                    f"the gradient of {name} is not available for each image: the network folds images into the batch "
                    "(Swin), has dropout in a layer with weights of its own (ViT's embeddings: set "
                    "hidden_dropout_prob=0), or Opacus does not know a layer; train the head alone (--head-only), or "
                    "choose another base model"
                )

    def _gradients(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Gradients (images, ...) of the weights that have one for each image, by name."""
        model, hooks = self.run.model, None
        try:
            hooks = _opacus().grad_sample.GradSampleHooks(model, strict=False)
            model(**_with_slopes(inputs)).loss.backward()
            found = {name: weight.grad_sample for name, weight in model.named_parameters() if weight.requires_grad}
            return {name: gradient for name, gradient in found.items() if gradient is not None}
        except (NotImplementedError, RuntimeError, ValueError) as error:
            logger.debug("dp_sgd: %s", error)
            return {}
        finally:
            if hooks is not None:
                hooks.cleanup()
            for weight in self._engine.params:
                weight.grad = None


def _with_slopes(inputs: dict[str, Any]) -> dict[str, Any]:
    # torch warns of backward hooks on layers whose input needs no gradient.
    return {
        name: value.detach().requires_grad_() if name not in LOSS_INPUTS and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _opacus() -> Any:
    try:
        import opacus.accountants.utils
        import opacus.grad_sample
        import opacus.optimizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('dp_sgd needs opacus: pip install "calor-hf[dp]"') from error
    return opacus
