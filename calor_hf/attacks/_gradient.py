"""The white-box loop: sample → initial selection → optimise → final selection. An attack says the rest."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from calor_hf.attacks._base import Attack, AttackConfig, Task, working_dtype
from calor_hf.attacks._batch import AttackedTarget, Batch
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.core.seeding import sample_rng
from calor_hf.core.target import Target
from calor_hf.generators import Generator
from calor_hf.layers.identity_losses import IDENTITY_LOSSES

OPTIMISE, FINISH, POOL = 0, 1, 2  # stages of a batch's random numbers
WATCH_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class GradientAttackConfig(AttackConfig):
    """Settings that every white-box attack has."""

    steps: int = field(metadata={"help": "Optimisation steps."})
    lr: float = field(metadata={"help": "Learning rate."})
    objective: str = field(default="ce", metadata={"help": "Identity loss: ce, poincare, max_margin or logit."})
    gradient: str = field(default="plain", metadata={"help": "plain, or straight_through: past a Tanh in the head."})
    initial_candidates: int = field(
        default=0, metadata={"help": "Samples of the prior that each class takes its starts from; 0: random starts."}
    )
    restarts: int = field(default=1, metadata={"help": "Starts for each image kept; the target's score chooses."})
    keep: str = field(default="last", metadata={"help": "last, or best: each image's lowest identity loss on the way."})

    def validate(self) -> None:
        """Refuse unknown names and impossible numbers."""
        choices = {
            "objective": tuple(IDENTITY_LOSSES),
            "gradient": ("plain", "straight_through"),
            "keep": ("last", "best"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; pass one of {', '.join(known)}")
        if self.steps < 1 or self.lr <= 0 or self.restarts < 1 or self.initial_candidates < 0:
            raise ValueError(
                "expected steps >= 1, lr > 0, restarts >= 1 and initial_candidates >= 0, got "
                f"{self.steps}, {self.lr}, {self.restarts} and {self.initial_candidates}"
            )

    def scaled(self, factor: float) -> "GradientAttackConfig":
        """``factor`` times the steps, at least one."""
        return replace(self, steps=max(1, round(self.steps * factor)))


C = TypeVar("C", bound=GradientAttackConfig)


class GradientAttack(Attack[C]):
    """A white-box attack: what it optimises, its objective and its optimiser; the loop is here.

    The variables of a class are rows of one tensor and nothing couples the classes, so classes can be attacked in any
    grouping. Losses are summed over images, which leaves each image its own step size.
    """

    # Hooks, in the order of the loop

    def start(self, generator: Generator[Any], latents: Tensor, batch: Batch) -> Tensor:
        """What is optimised, (classes · k, ...), from the rows' starting latents (rows, latent_dim)."""
        return latents

    def optimizer(self, variables: Tensor) -> torch.optim.Optimizer:
        """Optimiser of the variables; its steps must not couple elements. Default: Adam."""
        return torch.optim.Adam([variables], lr=self.config.lr)

    def latents(self, variables: Tensor, batch: Batch) -> Tensor:
        """(rows, latent_dim) that the generator is given."""
        return variables

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """(rows,) how far each image is from being taken for its class."""
        return self.identity_loss(target(images), batch.labels)

    def prior(self, generator: Generator[Any], images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Named terms, each (rows,), that keep images natural."""
        return {}

    @property
    def identity_weight(self) -> float:
        """Weight of :meth:`identity` in the objective."""
        return 1.0

    def project(self, variables: Tensor) -> None:
        """Bring the variables back into the search space, in place, after a step."""

    def finish(self, variables: Tensor, batch: Batch) -> Tensor:
        """(rows, latent_dim) of the final images, of which selection keeps the best; ``batch`` has the final rows."""
        return variables

    def group(self, images_per_class: int) -> int:
        """Rows that a class has while it is optimised."""
        return images_per_class * self.config.restarts

    # For hooks

    @final
    def identity_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(rows,) the chosen identity loss."""
        return IDENTITY_LOSSES[self.config.objective](logits, labels)

    # The loop

    def rows(self, images_per_class: int) -> int:
        """Images that a class takes in memory at once."""
        return max(self.group(images_per_class), images_per_class * self.config.restarts)

    @final
    def attack(self, target: Target, generator: Generator[Any], labels: Sequence[int], task: Task) -> Reconstruction:
        """Reconstructions of some classes at once."""
        begin = time.perf_counter()
        like = torch.empty(0, device=target.device, dtype=working_dtype(target, generator))
        seen = AttackedTarget(target, self.config.gradient == "straight_through")
        batch = Batch.of(labels, self.group(task.images_per_class), task.seed, like)
        first = self._first_latents(seen, generator, batch)
        pool_passes = seen.passes
        variables = self.start(generator, first, batch).detach().requires_grad_(True)
        variables = self._optimise(seen, generator, variables, batch, labels, task)

        final = Batch.of(labels, task.images_per_class * self.config.restarts, task.seed, like, FINISH)
        seen.batch = final
        with torch.no_grad():
            latents = self.finish(variables, final)
            images = generator(latents, final.labels)
            logits = seen(images)
            if not logits.isfinite().all():
                raise _not_finite(labels)
            scores = logits.softmax(dim=1).gather(1, final.labels[:, None]).squeeze(1)
            kept = _best_of_each(scores, len(labels), task.images_per_class)
        cost = Cost(
            generator_passes=pool_passes + self.config.steps * len(batch.labels) + len(final.labels),
            target_passes=seen.passes,
            target_gradients=seen.gradients,
            seconds=time.perf_counter() - begin,
        )
        return Reconstruction(
            images[kept].clamp(0, 1).cpu(), final.labels[kept].cpu(), latents[kept].cpu(), scores[kept].cpu(), cost
        )

    def _optimise(
        self, seen: AttackedTarget, generator: Generator[Any], variables: Tensor, batch: Batch, labels: Sequence[int],
        task: Task,
    ) -> Tensor:  # fmt: skip
        optimizer = self.optimizer(variables)
        seen.batch = batch
        finite = torch.ones((), dtype=torch.bool, device=variables.device)
        best = torch.full((len(variables),), torch.inf, device=variables.device, dtype=variables.dtype)
        kept = variables.detach().clone()
        for step in range(self.config.steps):
            images = generator(self.latents(variables, batch), batch.labels)
            identity = self.identity(seen, images, batch)
            terms = {"identity": self.identity_weight * identity, **self.prior(generator, images, batch)}
            loss = torch.stack(list(terms.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                # Nothing here waits for the device: flags are read now and then.
                finite &= loss.isfinite()
                if self.config.keep == "best":
                    own = identity.detach().view(len(variables), -1).mean(dim=1)
                    shape = [-1] + [1] * (variables.ndim - 1)
                    kept = torch.where((own < best).view(shape), variables, kept)
                    best = torch.minimum(own, best)
                optimizer.step()
                self.project(variables)
            last = step + 1 == self.config.steps
            if (step + 1) % WATCH_EVERY == 0 or last:
                if not finite:
                    raise _not_finite(labels)
                if task.watch is not None and seen.logits is not None:
                    success = (seen.logits.argmax(dim=1) == batch.labels).double().mean()
                    task.watch(labels, step + 1, self.config.steps, float(success))
        return kept if self.config.keep == "best" else variables.detach()

    @torch.no_grad()
    def _first_latents(self, seen: AttackedTarget, generator: Generator[Any], batch: Batch) -> Tensor:
        if self.config.initial_candidates == 0:
            rngs = [sample_rng(batch.seed, POOL, label, restart) for label, restart in batch.row_keys]
            return torch.cat([generator.sample_latents(1, rng) for rng in rngs]).to(batch.like)
        # The same candidates for every class, whichever classes are attacked together.
        count = self.config.initial_candidates
        if count < batch.group:
            raise ValueError(f"initial_candidates must be at least the {batch.group} starts of a class, got {count}")
        pool = generator.sample_latents(count, sample_rng(batch.seed, POOL)).to(batch.like)
        classes = batch.labels[:: batch.group]
        chosen = [self._best_starts(seen, generator, pool, label, batch) for label in classes]
        return torch.cat(chosen)

    def _best_starts(
        self, seen: AttackedTarget, generator: Generator[Any], pool: Tensor, label: Tensor, batch: Batch
    ) -> Tensor:
        scores = []
        for start, some in enumerate(pool.split(256)):
            mine = label.expand(len(some))
            seen.batch = Batch(mine, len(some), batch.seed, batch.like, POOL + start)
            scores.append(seen(generator(some, mine)).softmax(dim=1)[:, label])
        return pool[torch.cat(scores).topk(batch.group).indices]


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
