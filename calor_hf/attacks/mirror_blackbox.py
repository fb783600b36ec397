"""Mirror without gradients: a genetic algorithm on the scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calor_hf.attacks._p_space import P_SPACES, Box, bounds, from_p, has_p_space, to_p, truncating
from calor_hf.attacks.base import ATTACKS, Attack, AttackConfig, Task
from calor_hf.attacks.queries import BLOCK, Queries, pool_of
from calor_hf.core.config import setting
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.targets.base import ScoreTarget

CALLBACK_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class MirrorBlackboxConfig(AttackConfig):
    """Settings of :class:`MirrorBlackbox`."""

    generations: int = setting(100, "Generations at most.", ge=1, scales_to=1)
    population: int = setting(1000, "Latents of a class in a generation.", ge=2)
    candidates: int = setting(100_000, "Samples of the prior, for all classes, that the first generation is of.")
    mutation: float = setting(0.1, "Probability that a number of a child changes.", ge=0, le=1)
    mutation_size: float = setting(0.1, "Largest change, in standard deviations.", ge=0)
    enough: float = setting(0.95, "Score of the best that ends the search of its class.")
    p_space: str = setting(
        "auto", "Mutate and bound in P space: on, off, or auto: with a StyleGAN alone.", choices=P_SPACES
    )
    truncation: float | None = setting(
        0.7, "Truncation of a StyleGAN's first 8 layers in every pass, of whole styles; none: of samples.", ge=0, le=1
    )
    bound_samples: int = setting(100_000, "Samples of the prior that the bounds come from.", ge=2)
    bound_width: float = setting(1.0, "Standard deviations that latents may lie off the mean.", gt=0)

    def validate(self) -> None:
        """Refuse a first generation of fewer samples than it has latents."""
        if self.candidates < self.population:
            raise ValueError(f"candidates must be at least the population {self.population}, got {self.candidates}")


@ATTACKS.register("mirror_blackbox")
class MirrorBlackbox(Attack[MirrorBlackboxConfig]):
    """Genetic search over latents by the target's scores (An et al., NDSS 2022).

    The images of a class are the best of its last generation, so more of them cost nothing.

    Cost of a class: ``population`` − 1 queries per generation; and ``candidates`` for all classes together, or for each
    with a generator that knows classes.

    Source:
        An et al., "MIRROR: Model Inversion for Deep Learning Network with High Fidelity", NDSS 2022. Preset ``calor``:
        MIBench, which starts from 5000 samples, without its faults in mutation.
    """

    config_class = MirrorBlackboxConfig
    access = "scores"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "calor": {"candidates": 5000, "bound_samples": 5000, "truncation": None}
    }

    def rows(self, images_per_class: int) -> int:
        """Number of images per class that are in memory at once."""
        return min(self.config.population, BLOCK)

    def explore(
        self, target: ScoreTarget, generator: Generator[Any], labels: Sequence[int], task: Task
    ) -> tuple[dict[int, tuple[Tensor, Tensor]], Cost]:
        """The first generation of each class: latents (population, latent_dim) and scores (population,).

        Raises:
            ValueError: more images of a class than the population has.
        """
        config, generator = self.config, truncating(generator, self.config.truncation)
        queries = Queries(target, generator, task.seed)
        if task.images_per_class > config.population:
            raise ValueError(
                f"the images of a class are taken from its population of {config.population}, got images_per_class "
                f"{task.images_per_class}; raise population"
            )
        # Without classes, a sample can start any class; with classes, each class has images of its own.
        groups = [list(labels)] if generator.num_classes is None else [[label] for label in labels]
        pool = list(pool_of(generator, config.candidates, task.seed, task.like.cpu()))
        everything = torch.cat([latents for latents, _ in pool])
        found = {}
        for group in groups:
            scores = []
            for latents, rows in pool:
                wanted = torch.full((len(latents),), group[0], device=task.like.device)
                answers = queries(latents.to(task.like), wanted, rows, group[0] if len(groups) > 1 else 0)
                scores.append(answers[:, group].cpu())
            for place, label in enumerate(group):
                best = torch.cat([part[:, place] for part in scores]).topk(config.population)
                found[label] = (everything[best.indices].to(task.like), best.values.to(task.like.device))
        return found, queries.cost

    @torch.no_grad()
    def attack(
        self, target: ScoreTarget, generator: Generator[Any], labels: Sequence[int], task: Task
    ) -> Reconstruction:
        """Reconstruct some classes at once."""
        config, generator = self.config, truncating(generator, self.config.truncation)
        queries = Queries(target, generator, task.seed)
        curved = has_p_space(generator, config.p_space)
        if "box" not in task.notes:
            task.notes["box"] = bounds(
                generator, config.bound_samples, task.seed, task.like, curved, config.bound_width
            )
        box: Box = task.notes["box"]
        population = {label: task.explored[label] for label in labels}
        for generation in range(config.generations):
            going = [label for label in labels if float(population[label][1].max()) < config.enough]
            if not going:
                break
            children = []
            for label in going:
                latents, scores = population[label]
                rng = named_rng(task.seed, "attacks/mirror_blackbox/children", label, generation)
                children.append(self.children(latents, scores, box, curved, rng))
            count = config.population - 1
            wanted = torch.tensor(going, device=task.like.device).repeat_interleave(count)
            rows = [(label, place) for label in going for place in range(count)]
            answers = queries(torch.cat(children), wanted, rows, generation).gather(1, wanted[:, None]).view(-1, count)
            for label, young, new in zip(going, children, answers, strict=True):
                latents, scores = population[label]
                population[label] = with_elite(latents, scores, young, new)
            if (
                task.callback is not None
                and (generation + 1) % CALLBACK_EVERY == 0
                and generation + 1 < config.generations
            ):
                task.callback(labels, generation + 1, config.generations, _success(population, task.images_per_class))
        if task.callback is not None:
            share = _success(population, task.images_per_class)
            task.callback(labels, config.generations, config.generations, share)
        latents, scores = _best(population, task.images_per_class)
        kept = torch.tensor(list(labels), device=task.like.device).repeat_interleave(task.images_per_class)
        return queries.reconstruction(latents, kept, scores)

    def children(self, latents: Tensor, scores: Tensor, box: Box, curved: bool, rng: np.random.Generator) -> Tensor:
        """(population − 1, latent_dim) next generation, except the elite.

        Args:
            latents: (population, latent_dim).
            scores: (population,) in [0, 1].
            box: Where they stay.
            curved: Whether they are mutated in P space.
            rng: Stream of this class and generation.
        """
        count, width = len(latents) - 1, latents.shape[1]

        def uniform(*shape: int) -> Tensor:
            return torch.from_numpy(rng.random(shape)).to(latents)

        first, second = parents(scores, uniform(2, count))
        children = cross(latents[first], latents[second], scores[first], scores[second], uniform(count, width))
        chosen = uniform(count, width) < self.config.mutation
        # As in the authors' code, all children share one vector of changes, of which each takes other numbers. MIBench
        # adds a whole standard normal number whatever the deviation, and goes back from P space with slope 0.5 for 0.2.
        change = self.config.mutation_size * box.std * (2 * uniform(width) - 1)
        points = (to_p(children) if curved else children) + chosen * change
        return box.clip(from_p(points) if curved else points)


def parents(scores: Tensor, numbers: Tensor) -> Tensor:
    """Indices into ``scores`` (population,), each drawn in proportion to its score, from uniform numbers in [0, 1).

    If every score is 0, all are equally likely.
    """
    weights = scores.double() if float(scores.sum()) > 0 else torch.ones_like(scores).double()
    edges = weights.cumsum(dim=0)
    # right=True, so that a parent of score 0 is never drawn.
    drawn = torch.searchsorted(edges, numbers.double() * edges[-1], right=True)
    return drawn.clamp_max(len(scores) - 1)


def cross(first: Tensor, second: Tensor, first_scores: Tensor, second_scores: Tensor, numbers: Tensor) -> Tensor:
    """Children that take each number from the first parent with probability p₁ / (p₁ + p₂).

    Args:
        first: (children, latent_dim).
        second: (children, latent_dim).
        first_scores: (children,) p₁.
        second_scores: (children,) p₂; if both are 0, each parent gives half.
        numbers: (children, latent_dim) uniform in [0, 1).
    """
    # The authors divide logarithms of scores, f₁ / (f₁ + f₂): as those are negative, the worse parent is favored.
    total = first_scores + second_scores
    share = torch.where(total > 0, first_scores / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)
    return torch.where(numbers < share[:, None], first, second)


def with_elite(latents: Tensor, scores: Tensor, young: Tensor, young_scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best of a generation, and its children."""
    # The elite keeps its score, and is not queried again.
    best = scores.argmax()[None]
    return torch.cat([latents[best], young]), torch.cat([scores[best], young_scores])


def _best(population: dict[int, tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    chosen = [scores.topk(count).indices for _, scores in population.values()]
    pairs = list(zip(population.values(), chosen, strict=True))
    return torch.cat([latents[some] for (latents, _), some in pairs]), torch.cat([s[some] for (_, s), some in pairs])


def _success(population: dict[int, tuple[Tensor, Tensor]], count: int) -> float:
    """Share of the best images that are certainly first: a score above one half; views give the class's score alone."""
    return float((_best(population, count)[1] > 0.5).double().mean())
