"""BREP-MI: away from the border of a class, by the target's labels alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from calor_hf.attacks.base import ATTACKS, Attack, AttackConfig, Task
from calor_hf.attacks.batch import Batch
from calor_hf.attacks.queries import Queries, pool_of, rows_of
from calor_hf.core.config import setting
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.generators import Generator
from calor_hf.targets.base import LabelTarget

logger = logging.getLogger(__name__)

CALLBACK_EVERY = 25
MOVE, LAST = 1, 2  # added to twice the step of a query: after the sphere comes the move


@dataclass(frozen=True, kw_only=True)
class BREPConfig(AttackConfig):
    """Settings of :class:`BREP`."""

    iterations: int = setting(
        1000, "Moves since the sphere last grew that end a start; with fixed: moves in all.", ge=1, scales_to=1
    )
    fixed: bool = setting(False, "End after that many moves, sphere growing or not.")
    directions: int = setting(32, "Points on the sphere that the target labels per move.", ge=1)
    radius: float = setting(2.0, "Of the sphere at the start, in the latent space.", gt=0)
    growth: float = setting(1.3, "Factor by which the sphere grows, > 1.", gt=1)
    grow_above: float = setting(0.75, "It grows if the mean of the answers, 1 or -1 each, is above this.", ge=-1, lt=1)
    grow_first: bool = setting(True, "It grows before the move, which that shortens.")
    largest_step: float = setting(3.0, "A move is a third of the radius, but at most this.", gt=0)
    repulsion_only: bool = setting(True, "Points outside push and those inside do nothing; false: they pull.")
    clip: float | None = setting(1.5, "Latents stay within ± this; none: anywhere.")
    accept: bool = setting(True, "Only moves that stay in the class are made.")
    keep: str = setting(
        "growth", "growth: the latents when the sphere last grew; last: where they end.", choices=("growth", "last")
    )
    search: int = setting(100_000, "Samples of the prior at most, in search of starts.", ge=1)
    most_refusals: int = setting(1000, "Refused moves in a row that end a start.", ge=1)
    most_growths: int = setting(100, "Growths of the sphere that end a start.", ge=1)


@dataclass
class Spheres:
    """A sphere for every row, and how its search stands.

    Attributes:
        centers: (rows, latent_dim).
        radii: (rows,).
        kept: (rows, latent_dim) centers when the sphere last grew.
        moves: (rows,) moves, since then or in all.
        refusals: (rows,) refused moves in a row.
        growths: (rows,).
    """

    centers: Tensor
    radii: Tensor
    kept: Tensor
    moves: Tensor
    refusals: Tensor
    growths: Tensor

    @classmethod
    def at(cls, starts: Tensor, radius: float) -> "Spheres":
        """Spheres around ``starts`` (rows, latent_dim)."""
        none = torch.zeros(len(starts), dtype=torch.int64, device=starts.device)
        radii = torch.full_like(starts[:, 0], radius)
        return cls(starts.clone(), radii, starts.clone(), none.clone(), none.clone(), none.clone())


@ATTACKS.register("brep")
class BREP(Attack[BREPConfig]):
    """Move away from the class boundary, by the labels on a growing sphere (Kahla et al., CVPR 2022).

    A start is a sample of the prior that the target takes for the class; the images of a class are independent starts,
    the first ones in a pool that all classes of a run share. A class with fewer starts than images uses them again,
    with other directions; a class that the target never predicts returns its unoptimized prior sample, with score 0.

    The paper lets the sphere grow when more than 75 % of its points lie inside; the authors' code compares the mean of
    answers that are 1 or −1 with 0.75, which requires 87.5 %; so does this implementation.

    Cost: up to 33 labels per move.

    Source:
        Kahla et al., "Label-Only Model Inversion Attacks via Boundary Repulsion", CVPR 2022, arXiv:2203.01925;
        m-kahla/Label-Only-Model-Inversion-Attacks-via-Boundary-Repulsion. Preset ``calor``: MIBench, whose points
        inside pull, whose moves are all made, 1000 of them, without bounds, and whose sphere grows from 75 % on.
    """

    config_class = BREPConfig
    access = "labels"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "calor": {
            "fixed": True,
            "grow_above": 0.5,
            "grow_first": False,
            "repulsion_only": False,
            "clip": None,
            "accept": False,
            "keep": "last",
        }
    }

    def rows(self, images_per_class: int) -> int:
        """Number of images per class that are in memory at once."""
        return images_per_class * self.config.directions

    @torch.no_grad()
    def explore(
        self, target: LabelTarget, generator: Generator[Any], labels: Sequence[int], task: Task
    ) -> tuple[dict[int, Tensor], Cost]:
        """(hits, latent_dim) starts of each class; empty if the target never predicts the class."""
        queries = Queries(target, generator, task.seed)
        # Without classes, an image of the generator can be a hit of any class; with classes, each class has its own.
        groups = [list(labels)] if generator.num_classes is None else [[label] for label in labels]
        found: dict[int, list[Tensor]] = {label: [] for label in labels}
        for group in groups:
            missing = set(group)
            for latents, rows in pool_of(generator, self.config.search, task.seed, task.like):
                latents = self._bounded(latents)
                wanted = torch.full((len(latents),), group[0], device=latents.device)
                for place, label in enumerate(
                    queries(latents, wanted, rows, group[0] if len(groups) > 1 else 0).tolist()
                ):
                    if label in missing:
                        found[label].append(latents[place])
                        if len(found[label]) == task.images_per_class:
                            missing.discard(label)
                if not missing:
                    break
        starts = {label: torch.stack(hits) if hits else task.like.new_empty(0, 0) for label, hits in found.items()}
        never = [label for label in labels if not found[label]]
        if never:
            logger.warning(
                "the target answers %d of %d classes for none of %d samples of the prior, such as class %d: their "
                "images are samples as they were drawn",
                len(never), len(labels), self.config.search, never[0],
            )  # fmt: skip
        return starts, queries.cost

    @torch.no_grad()
    def attack(
        self, target: LabelTarget, generator: Generator[Any], labels: Sequence[int], task: Task
    ) -> Reconstruction:
        """Reconstruct some classes at once."""
        queries = Queries(target, generator, task.seed)
        each = task.images_per_class
        batch = Batch.of(labels, each, task.seed, task.like)
        starts, active = self._starts(generator, labels, task)
        spheres, rows = Spheres.at(starts, self.config.radius), rows_of(labels, each)
        tries, told = 0, 0
        alive = active.nonzero().squeeze(1)
        while len(alive) > 0:
            directions = batch.normal("attacks/brep/directions", self.config.directions * starts.shape[1])[alive]
            directions = directions.view(len(alive), self.config.directions, -1)
            self._move(spheres, alive, directions, batch.labels, [rows[i] for i in alive.tolist()], queries, tries)
            tries += 1
            alive = alive[self._unfinished(spheres, alive)]
            if task.callback is not None and tries % CALLBACK_EVERY == 0 and len(alive) > 0:
                # Moves are counted anew when a sphere grows, and progress must not go back.
                told = max(told, min(int(spheres.moves[alive].min()), self.config.iterations - 1))
                task.callback(labels, told, self.config.iterations, float(active.double().mean()))
        latents = spheres.kept if self.config.keep == "growth" else spheres.centers
        answers = queries(latents, batch.labels, rows, 2 * tries + LAST)
        scores = (answers == batch.labels).to(latents.dtype)
        if task.callback is not None:
            task.callback(labels, self.config.iterations, self.config.iterations, float(scores.mean()))
        return queries.reconstruction(latents, batch.labels, scores)

    def _starts(self, generator: Generator[Any], labels: Sequence[int], task: Task) -> tuple[Tensor, Tensor]:
        chosen, active = [], []
        for label in labels:
            hits = task.explored[label]
            active += [len(hits) > 0] * task.images_per_class
            if len(hits) == 0:
                hits = self._bounded(next(pool_of(generator, task.images_per_class, task.seed, task.like))[0])
            chosen.append(hits[torch.arange(task.images_per_class, device=hits.device) % len(hits)])
        return torch.cat(chosen), torch.tensor(active, device=task.like.device)

    def _move(
        self, spheres: Spheres, alive: Tensor, directions: Tensor, labels: Tensor, rows: list[Any], queries: Queries,
        tries: int,
    ) -> None:  # fmt: skip
        """Try one move of the rows ``alive``: query the sphere, move, and query the new center."""
        count, config = directions.shape[1], self.config
        centers, radii, labels = spheres.centers[alive], spheres.radii[alive], labels[alive]
        # Normal vectors, scaled to length 1, are uniform on the sphere.
        offsets = radii[:, None, None] * directions / directions.norm(dim=2, keepdim=True)
        points = (centers[:, None] + offsets).flatten(0, 1)
        everyone = labels.repeat_interleave(count)
        names = [(*row, place) for row in rows for place in range(count)]
        answers = queries(points, everyone, names, 2 * tries) == everyone
        moved, larger, grew = self.step(centers, radii, offsets, 2.0 * answers.view(-1, count).to(centers.dtype) - 1)
        stays = torch.ones_like(grew)
        if config.accept:
            stays = queries(moved, labels, rows, 2 * tries + MOVE) == labels
        spheres.centers[alive] = torch.where(stays[:, None], moved, centers)
        spheres.radii[alive] = larger
        kept = (grew & stays)[:, None]
        # As in the authors' code, the center after the move that made the sphere grow is kept.
        spheres.kept[alive] = torch.where(kept, moved, spheres.kept[alive])
        # A move that makes the sphere grow begins the count anew, and is not counted itself.
        moves = spheres.moves[alive] + (stays & ~grew)
        spheres.moves[alive] = spheres.moves[alive] + 1 if config.fixed else torch.where(grew, 0, moves)
        spheres.refusals[alive] = torch.where(stays, 0, spheres.refusals[alive] + 1)
        spheres.growths[alive] += grew

    def step(self, centers: Tensor, radii: Tensor, offsets: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the next centers.

        Args:
            centers: (rows, latent_dim).
            radii: (rows,).
            offsets: (rows, directions, latent_dim) from the centers to the points asked for, of the radii's length.
            answers: (rows, directions) 1 if the target takes the point for the class, otherwise −1.

        Returns:
            The centers' goals, the spheres' new radii, and which of them grew.
        """
        config = self.config
        length = (radii / 3).clamp_max(config.largest_step)
        grew = answers.mean(dim=1) > config.grow_above
        larger = torch.where(grew, config.growth * radii, radii)
        # The paper's repulsion: 0 for a point inside, −1 for one outside, so that points outside alone push.
        weights = (answers - 1) / 2 if config.repulsion_only else answers
        # In the authors' code a growing sphere shortens the same move.
        push = (weights[:, :, None] * offsets).mean(dim=1) / (larger if config.grow_first else radii)[:, None]
        return self._bounded(centers + length[:, None] * push), larger, grew

    def _unfinished(self, spheres: Spheres, alive: Tensor) -> Tensor:
        config = self.config
        going = spheres.moves[alive] < config.iterations
        if not config.fixed:
            going &= spheres.growths[alive] < config.most_growths
        # The authors' code repeats refused moves, and lets a sphere grow, without an end.
        return going & (spheres.refusals[alive] < config.most_refusals)

    def _bounded(self, latents: Tensor) -> Tensor:
        clip = self.config.clip
        return latents if clip is None else latents.clamp(-clip, clip)
