"""Starts of a white-box attack: random, or the samples of the prior to which the target gives the highest scores."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from calor_hf.attacks.batch import AttackedTarget, Batch
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator

AT_ONCE = 256
LEAST_POOL = 100
"""Number of initial candidates that a smaller budget leaves."""

Views = Callable[[Tensor], Sequence[Tensor]]


@torch.no_grad()
def random_starts(generator: Generator[Any], batch: Batch) -> Tensor:
    """(rows, latent_dim) one sample of the prior for every row, by (class, restart)."""
    # By class and restart, so that a start does not depend on the classes attacked along with it.
    rngs = [named_rng(batch.seed, "attacks/starts", label, restart) for label, restart in batch.row_keys]
    return torch.cat([generator.sample_latents(1, rng) for rng in rngs]).to(batch.like)


@torch.no_grad()
def chosen_starts(
    seen: AttackedTarget, generator: Generator[Any], batch: Batch, count: int, classes: Sequence[int], views: Views
) -> tuple[Tensor, int]:
    """The samples of one pool that the target gives the highest probability of each class.

    The pool is the same for every class of every call. A generator without classes makes its images once, and the
    target looks at them once for all classes of the run; what was chosen is in the batch's notes.

    Args:
        seen: The target.
        generator: The prior.
        batch: Rows to find starts for.
        count: Samples in the pool.
        classes: All classes of the run.
        views: Views of the images that the target is shown; its probabilities are averaged.

    Returns:
        (rows, latent_dim) latents, and the number of images made.

    Raises:
        ValueError: fewer samples than starts of a class.
    """
    if count < batch.group:
        raise ValueError(f"initial_candidates must be at least the {batch.group} starts of a class, got {count}")
    pool = generator.sample_latents(count, named_rng(batch.seed, "attacks/starts/pool")).to(batch.like)
    wanted = batch.labels[:: batch.group].tolist()
    chosen: dict[int, Tensor] = dict(batch.notes.get("starts", {}))
    made = 0
    missing = [label for label in wanted if label not in chosen or len(chosen[label]) < batch.group]
    if missing:
        together = list(dict.fromkeys([*missing, *classes]))
        for some in [together] if generator.num_classes is None else [[label] for label in missing]:
            chosen.update(zip(some, _best(seen, generator, pool, some, batch, views), strict=True))
            made += count
        batch.notes["starts"] = chosen
    return pool[torch.cat([chosen[label][: batch.group] for label in wanted])], made  # the best come first


def _best(
    seen: AttackedTarget, generator: Generator[Any], pool: Tensor, classes: list[int], batch: Batch, views: Views
) -> list[Tensor]:
    """Indices of the best samples of each of ``classes``, whose images are the same."""
    found: list[Tensor] = []
    mine = batch.labels.new_tensor(classes)
    for start, some in enumerate(pool.split(AT_ONCE)):
        labels = mine[:1].expand(len(some))
        # The noise of a stochastic target's head is a sample's and a class's own.
        owners = mine if seen.stochastic else mine[:1]
        rows = [Batch(o.expand(len(some)), len(some), batch.seed, batch.like, ("starts", start)) for o in owners]
        scores: list[Tensor] = []
        for view in views(generator(some, labels)):
            features = seen.features(view)
            seen_by = []
            for row in rows:
                seen.batch = row
                seen_by.append(seen.head(features).softmax(dim=1))
            if len(seen_by) > 1:  # each class with its own noise
                scores.append(torch.stack([p[:, c] for p, c in zip(seen_by, mine, strict=True)], dim=1))
            else:
                scores.append(seen_by[0][:, mine])
        found.append(torch.stack(scores).mean(dim=0))
    return [own.topk(batch.group).indices for own in torch.cat(found).T.contiguous()]
