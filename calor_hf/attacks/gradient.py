"""The white-box loop: sample → initial selection → optimize → final selection; attacks fill its hooks."""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, final

import torch
from torch import Tensor, nn

from calor_hf.attacks.base import Attack, AttackConfig, Task, working_dtype
from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.attacks.smoothing import SMOOTHINGS, copier, smoothed
from calor_hf.attacks.starts import chosen_starts, random_starts
from calor_hf.core.config import setting
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.generators import Generator
from calor_hf.heads.low_rank_head import LowRankHead
from calor_hf.targets.base import Target
from calor_hf.targets.identity_losses import IDENTITY_LOSSES, aimed_cross_entropy

CALLBACK_EVERY = 25
Projection = Callable[[Tensor], None]
"""Projects variables onto the search space, in place."""


@dataclass(frozen=True, kw_only=True)
class WhiteBoxConfig(AttackConfig):
    """Settings of every white-box attack."""

    steps: int = setting(help="Optimization steps.", ge=1, scales_to=1)
    objective: str = setting("ce", "Identity loss: ce, poincare, max_margin or logit.", choices=tuple(IDENTITY_LOSSES))
    gradient: str = setting(
        "plain", "plain, or straight_through: past a Tanh in the head.", choices=("plain", "straight_through")
    )
    initial_candidates: int = setting(
        0, "Samples of the prior to choose each class's starts from; 0 means random starts.", ge=0
    )
    restarts: int = setting(1, "Starts for each image kept; the target's score chooses.", ge=1)
    smoothing: str = setting(
        "none", "Gradients are averaged over copies with noise or random views; or none.", choices=SMOOTHINGS
    )
    noise: str = setting(
        "drawn",
        "Noise of a stochastic defense such as MID: drawn, or mean: without it, as anyone with the weights can.",
        choices=("drawn", "mean"),
    )
    samples: int = setting(1, "Copies of each image a step; without smoothing the target's own noise differs.", ge=1)
    smoothing_sigma: float = setting(
        0.06, "Standard deviation of smoothing=noise, as a share of the range of values.", gt=0
    )
    temperature: float = setting(1.0, "The objective sees the logits divided by this.", gt=0)
    aim: float = setting(
        1.0,
        "Confidence that objective=ce aims at, such as a defended model's e^(-1/b); 1: as much as possible.",
        gt=0,
        le=1,
    )

    def validate(self) -> None:
        """Refuse an aim for losses without one."""
        if self.aim < 1 and self.objective != "ce":
            raise ValueError(f"aim must be 1 with objective {self.objective}, got {self.aim}")


@dataclass(frozen=True, kw_only=True)
class GradientAttackConfig(WhiteBoxConfig):
    """Settings of every white-box attack that optimizes."""

    step_share: float = setting(
        1.0,
        "Share of the source's steps that a budget leaves; below 1 the rate starts higher if the steps are short.",
        gt=0,
        scales_to=0.0,
    )
    lr: float = setting(help="Learning rate.", gt=0)
    identity_weight: float = setting(1.0, "Weight of the identity loss, > 0.", gt=0)
    keep: str = setting(
        "last", "last, or best: each image's lowest identity loss on the way.", choices=("last", "best")
    )


W = TypeVar("W", bound=WhiteBoxConfig)
C = TypeVar("C", bound=GradientAttackConfig)


class WhiteBoxAttack(Attack[W]):
    """White-box attack: starts, a search of its own, and the selection of its results.

    Nothing couples the classes, so classes can be attacked in any grouping; it holds no state between calls.
    """

    def view(self, generator: Generator[Any]) -> Generator[Any]:
        """Return the generator as the attack uses it, such as with another truncation; weights are shared."""
        return generator

    def start_views(self, images: Tensor) -> Sequence[Tensor]:
        """Return views of the candidates for starts; the target's probabilities are averaged over them."""
        return [images]

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """(rows,) loss that falls as the target takes an image for its class."""
        return self.identity_loss(target(images), batch.labels)

    @abstractmethod
    def search(
        self, seen: AttackedTarget, generator: Generator[Any], latents: Tensor, batch: Batch, task: Task
    ) -> tuple[Tensor, int]:
        """Search from the starting latents, (rows, latent_dim); return the variables found, and the images made."""

    @abstractmethod
    def result(self, generator: Generator[Any], variables: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the final latents and images, of which selection keeps the best; ``batch`` has the final rows."""

    def final_scores(self, seen: AttackedTarget, images: Tensor, batch: Batch, scores: Tensor) -> Tensor:
        """(rows,) ranking of final selection, highest first; ``scores``: the target's probability of the label."""
        return scores

    def group(self, images_per_class: int) -> int:
        """Rows that a class has while it is optimized."""
        return images_per_class * self.config.restarts

    def adaptive_to(self, target: Target) -> bool:
        """Whether the attack goes around a part of the defense.

        Gradients go past a Tanh, the aim is a defense's confidence, its noise is averaged or left out, or the gradients
        of AT-AT's features, which are not robust, are averaged.
        """
        config, smooths = self.config, self.config.smoothing != "none" and self.config.samples > 1
        return (
            (config.gradient == "straight_through" and _squashes(target.module))
            or (config.aim < 1 and target.describe("").defense != "none")
            or ((config.samples > 1 or config.noise == "mean") and target.stochastic)
            or (smooths and target.describe("").defense == "at_at")
        )

    # For hooks

    @final
    def identity_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(rows,) the chosen identity loss."""
        logits = logits / self.config.temperature
        if self.config.aim < 1:
            return aimed_cross_entropy(logits, labels, self.config.aim)
        return IDENTITY_LOSSES[self.config.objective](logits, labels)

    def rows(self, images_per_class: int) -> int:
        """Number of images per class that are in memory at once."""
        return max(self.group(images_per_class), images_per_class * self.config.restarts)

    @final
    def attack(self, target: Target, generator: Generator[Any], labels: Sequence[int], task: Task) -> Reconstruction:
        """Reconstruct some classes at once."""
        begin = time.perf_counter()
        like = torch.empty(0, device=target.device, dtype=working_dtype(target, generator))
        config, generator = self.config, self.view(generator)
        seen = AttackedTarget(target, config.gradient == "straight_through", without_noise=config.noise == "mean")
        batch = Batch.of(labels, self.group(task.images_per_class), task.seed, like, ("optimize",), task.notes)
        count, made = self.config.initial_candidates, 0
        if count == 0:
            latents = random_starts(generator, batch)
        else:
            latents, made = chosen_starts(seen, generator, batch, count, task.classes, self.start_views)
        seen.batch = batch
        variables, searched = self.search(seen, generator, latents, batch, task)

        candidates = task.images_per_class * self.config.restarts
        # A phase of its own: what the final pass draws does not depend on the number of steps.
        final = Batch.of(labels, candidates, task.seed, like, ("finish",), task.notes)
        seen.batch = final
        with torch.no_grad():
            latents, images = self.result(generator, variables, final)
            logits = seen(images)
            if not logits.isfinite().all():
                raise _not_finite(labels)
            scores = logits.softmax(dim=1).gather(1, final.labels[:, None]).squeeze(1)
            evaluated = self.final_scores(seen, images, final, scores) if self.config.restarts > 1 else scores
            kept = _best_of_each(evaluated, len(labels), task.images_per_class)
        cost = Cost(
            generator_passes=made + searched + len(final.labels),
            target_passes=seen.passes,
            target_gradients=seen.gradients,
            seconds=time.perf_counter() - begin,
        )
        # Clipped here and not in the steps, where it would cut the gradient of pixels out of range.
        return Reconstruction(
            images[kept].clamp(0, 1).cpu(), final.labels[kept].cpu(), latents[kept].cpu(), scores[kept].cpu(), cost
        )

    def _identity(self, seen: AttackedTarget, images: Tensor, batch: Batch) -> Tensor:
        config, seen.logits = self.config, None  # an objective past the head leaves none, not those of the starts
        if config.smoothing == "none" and config.samples == 1:
            return self.identity(seen, images, batch)
        copy = copier(config.smoothing, config.smoothing_sigma, batch)
        return smoothed(lambda some: self.identity(seen, some, batch), images, copy, config.samples)


class GradientAttack(WhiteBoxAttack[C]):
    """White-box attack by an optimizer: subclasses give variables, objective and optimizer; the loop is here.

    The variables of a class are rows of one tensor and nothing couples the classes, so classes can be attacked in any
    grouping. An attack may have several stages, each with variables and an optimizer of its own; it holds no state
    between calls.
    """

    latent_deviation: ClassVar[float | None] = None
    """Standard deviation of the latents that the source's rate is for; the rate follows that of others. None means
    that the rate is for whatever latents."""

    @classmethod
    def configure(cls, preset: str = "original", budget: str | float = "paper", **settings: Any) -> Any:
        """As for every attack; steps that are given are taken at the source's rate."""
        return super().configure(preset, budget, **({"step_share": 1.0} if "steps" in settings else {}) | settings)

    # Hooks, in the order of the loop

    def start(self, generator: Generator[Any], latents: Tensor, batch: Batch) -> Tensor:
        """Return the variables to optimize, (classes · k, ...), from the starting latents (rows, latent_dim)."""
        return latents

    def stages(self, generator: Generator[Any]) -> Sequence[int]:
        """Optimization steps of each stage."""
        return [self.config.steps]

    def advance(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Tensor:
        """Variables that ``stage`` starts from, out of those that the stage before ended with."""
        return variables

    def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
        """Return the optimizer of a stage's variables, by default Adam; its steps must not couple elements."""
        return torch.optim.Adam([variables], lr=self.config.lr)

    def rate(self, step: int, steps: int) -> float:
        """Factor of the learning rate at a stage's ``step`` from 0 on, of ``steps``."""
        return 1.0

    def projection(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Projection | None:
        """Return the projection onto the search space after each step, given the variables at the start of a stage."""
        return None

    def latents(self, variables: Tensor, batch: Batch) -> Tensor:
        """(rows, latent_dim) that the generator is given."""
        return variables

    def synthesize(self, generator: Generator[Any], variables: Tensor, batch: Batch, stage: int) -> Tensor:
        """(rows, 3, height, width) images of the variables."""
        images: Tensor = generator(self.latents(variables, batch), batch.labels)
        return images

    def prior(self, generator: Generator[Any], images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Named terms, each (rows,), that keep images natural."""
        return {}

    def result(self, generator: Generator[Any], variables: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the final latents and images, of which selection keeps the best; ``batch`` has the final rows."""
        latents = self.latents(variables, batch)
        return latents, generator(latents, batch.labels)

    # The loop

    @final
    def search(
        self, seen: AttackedTarget, generator: Generator[Any], latents: Tensor, batch: Batch, task: Task
    ) -> tuple[Tensor, int]:
        """Optimize the variables of each stage."""
        variables = self.start(generator, latents, batch)
        plan = self.stages(generator)
        for stage in range(len(plan)):
            if stage > 0:
                with torch.no_grad():
                    variables = self.advance(generator, variables, batch, stage)
            # A new leaf for each stage: its graph begins here, and no moments of other variables are carried over.
            variables = variables.detach().requires_grad_(True)
            variables = self._optimize(seen, generator, variables, batch, plan, stage, task)
        return variables, sum(plan) * len(batch.labels)

    def _optimize(
        self, seen: AttackedTarget, generator: Generator[Any], variables: Tensor, batch: Batch, plan: Sequence[int],
        stage: int, task: Task,
    ) -> Tensor:  # fmt: skip
        labels, steps, before = batch.labels[:: batch.group].tolist(), plan[stage], sum(plan[:stage])
        optimizer = self.optimizer(variables)
        deviation = generator.latent_deviation
        # A published rate fits the spread of its latents: what moves a style by a deviation hardly moves N(0, 1).
        unit = 1.0 if self.latent_deviation is None else deviation / self.latent_deviation
        rates = [unit * group["lr"] for group in optimizer.param_groups]
        reach = max(rates) * sum(plan) / deviation
        with torch.no_grad():
            project = self.projection(generator, variables, batch, stage)
        seen.batch = batch
        finite = torch.ones((), dtype=torch.bool, device=variables.device)
        best = torch.full((len(variables),), torch.inf, device=variables.device, dtype=variables.dtype)
        kept = variables.detach().clone()
        for step in range(steps):
            images = self.synthesize(generator, variables, batch, stage)
            identity = self._identity(seen, images, batch)
            terms = {"identity": self.config.identity_weight * identity, **self.prior(generator, images, batch)}
            # A sum over images leaves each image its own step; a mean would shrink it with the size of the batch.
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                # Nothing here waits for the device: flags are read now and then.
                finite &= loss.isfinite()
                if self.config.keep == "best":
                    own = identity.detach().view(len(variables), -1).mean(dim=1)
                    shape = [-1] + [1] * (variables.ndim - 1)
                    # Before the step, as the loss is that of the variables that the images were made from.
                    kept = torch.where((own < best).view(shape), variables, kept)
                    best = torch.minimum(own, best)
                for settings, lr in zip(optimizer.param_groups, rates, strict=True):
                    settings["lr"] = lr * self.rate(step, steps) * pace(self.config.step_share, reach, step / steps)
                optimizer.step()
                if project is not None:
                    project(variables)
            done = before + step + 1
            if done % CALLBACK_EVERY == 0 or step + 1 == steps:
                if not finite:
                    raise _not_finite(labels)
                told = done % CALLBACK_EVERY == 0 or done == sum(plan)
                if told and task.callback is not None:
                    agrees = torch.nan if seen.logits is None else seen.logits.argmax(dim=1) == batch.labels
                    success = torch.as_tensor(agrees).double().mean()
                    task.callback(labels, done, sum(plan), float(success))
        return kept if self.config.keep == "best" else variables.detach()


def pace(share: float, reach: float, done: float) -> float:
    """Factor of the learning rate after a share ``done`` of the steps, in an attack with ``share`` of its source's.

    Steps of Adam move a number by the rate at most. If that is less than a standard deviation in all, the rate starts
    higher, by share^-½ at most, and falls to the source's. Measured in docs/results/effort.md.

    Args:
        share: Share of the source's steps that are taken; from 1 on the factor is 1.
        reach: Rate times steps, in standard deviations of the latents.
        done: Share of the steps that are done, in [0, 1).
    """
    start = max(1.0, min(1 / reach, min(share, 1.0) ** -0.5))
    return float(start ** (1 - done))


def _best_of_each(scores: Tensor, classes: int, count: int) -> Tensor:
    """(classes · count,) indices of the highest scores of each class, in the order they stood in."""
    per_class = scores.view(classes, -1)
    best = per_class.topk(count, dim=1).indices.sort(dim=1).values
    return (best + torch.arange(classes, device=scores.device)[:, None] * per_class.shape[1]).flatten()


def _not_finite(labels: Sequence[int]) -> FloatingPointError:
    names = ", ".join(map(str, labels[:5])) + (" …" if len(labels) > 5 else "")
    return FloatingPointError(
        f"the target's scores or the objective became NaN or infinite while attacking class {names}; check the target, "
        "or try another objective or a lower lr"
    )


def _squashes(network: nn.Module) -> bool:
    """Whether a network has a Tanh or a sigmoid whose saturation can hide gradients."""
    heads = [module for module in network.modules() if isinstance(module, LowRankHead)]
    squashing = any(head.activation in ("tanh", "sigmoid") for head in heads)
    return squashing or any(isinstance(module, nn.Tanh | nn.Sigmoid) for module in network.modules())
