"""Auto: an ensemble of untuned attacks, whose worst case counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.attacks.base import ATTACKS, Attack, AttackConfig, Task
from calor_hf.attacks.gradient import WhiteBoxAttack
from calor_hf.attacks.specs import parse_attack
from calor_hf.core.config import setting
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.generators import Generator
from calor_hf.targets.base import Target

AGREES = 0.9  # score from which the target counts as convinced
_TICKS = 1000  # of a member's progress
ONLY_AGAINST = {"plg-smoothed": "at_at"}
"""Defense that a member is for, by the member's name; on other models it is not worth its cost."""


@dataclass(frozen=True, kw_only=True)
class AutoConfig(AttackConfig):
    """Settings of :class:`Auto`."""

    members: tuple[str, ...] = setting(
        ("plg@adaptive", "plg", "mirror@quick", "bypass", "ppa", "if_gmi", "sfmi@adaptive", "mode_ranking@adaptive",
         "plg@smoothed"),
        "Attacks, as --attacks takes them; if_gmi needs a prior with blocks, sfmi a flow, mode_ranking decoys, and "
        "plg@smoothed at_at.",
    )  # fmt: skip
    effort: int = setting(100, "Per cent of the members' published effort.", ge=1, scales_to=1)
    fast: bool = setting(False, "Skip later members for a class that the target accepts; the report says so.")

    def validate(self) -> None:
        """Refuse an ensemble that is empty, contains itself, or has the same attack twice."""
        members = [parse_attack(spec) for spec in self.members]
        names = [member.name for member in members]
        if not members or any(member.kind == "auto" for member in members) or len(set(names)) < len(names):
            raise ValueError(f"expected each attack once, and not auto itself, got members {', '.join(self.members)}")


@ATTACKS.register("auto")
class Auto(Attack[AutoConfig]):
    """Run every member attack on every class and keep all images: the worst case over several attacks.

    No member stops because another one succeeded: adversarial images fool the target too, and only an evaluation model,
    which no attack sees, can tell. A class counts as leaked if an evaluation model recognizes one image of any member;
    compare with as many reconstructions of other classes.

    Members that start from the same samples of the prior share one pass of the target over them. White-box members
    leave out the noise of a stochastic head, as anyone with the weights can (``noise=mean``), unless their settings say
    ``noise=drawn``.

    Source:
        In the spirit of Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", ICML 2020, arXiv:2003.01690. Members were chosen by what each adds: docs/results.
    """

    config_class = AutoConfig

    def __init__(self, config: AutoConfig) -> None:
        super().__init__(config)
        self._made = [parse_attack(spec, budget=config.effort / 100) for spec in config.members]
        self.members: dict[str, Attack[Any]] = {
            member.name: member.attack if "noise=" in spec else without_noise(member.attack)
            for spec, member in zip(config.members, self._made, strict=True)
        }

    def parts(self, target: Target, generator: Generator[Any]) -> tuple[str, ...]:
        """Names of the members that fit the target and run on the generator."""
        return tuple(self._fitting(target, generator))

    def _fitting(self, target: Target, generator: Generator[Any]) -> dict[str, Attack[Any]]:
        return {name: member for name, member in self._fit(target).items() if member.runs_on(generator)}

    def _fit(self, target: Target) -> dict[str, Attack[Any]]:
        defense = target.describe("").defense
        return {
            name: member
            for name, member in self.members.items()
            if member.fits(target) and ONLY_AGAINST.get(name, defense) == defense
        }

    def adaptive_to(self, target: Target) -> bool:
        """Whether one of the members is adaptive to the target."""
        return any(member.adaptive_to(target) for member in self._fit(target).values())

    def effort(self, source: Attack[AutoConfig], scaled: Attack[AutoConfig]) -> tuple[float, tuple[str, ...]]:
        """Compare each member with its own source."""
        _, changed = super().effort(source, scaled)
        members = [f"{member.name}.{setting}" for member in self._made for setting in member.changed]
        return min(member.effort for member in self._made), (*changed, *members)

    def rows(self, images_per_class: int) -> int:
        """Number of images per class that are in memory at once."""
        return max(member.rows(images_per_class) for member in self.members.values())

    def check(self, target: Target, generator: Generator[Any]) -> None:
        """Refuse a target that a member refuses, or that fits none of them."""
        if not self._fit(target):
            raise ValueError(
                f"{', '.join(self.members)} attack a defense that the target has not (mode_ranking decoys, "
                "plg@smoothed at_at); pass other members"
            )
        # A member that was asked for is refused where one of the default is left out.
        default = self.config.members == AutoConfig().members
        for name, member in (self._fitting(target, generator) if default else self.members).items():
            try:
                member.check(member.view_of(target), generator)
            except ValueError as error:
                raise ValueError(f"member {name}: {error}") from error

    def prepare(
        self, target: Target, generator: Generator[Any], public_images: Dataset[Tensor] | None, folder: Path, seed: int
    ) -> Cost:
        """Prepare each member, in a folder of its own."""
        cost = Cost()
        for name, member in self._fitting(target, generator).items():
            cost = cost + member.prepare_for(target, generator, public_images, folder / name, seed)
        return cost

    def explore(self, target: Target, generator: Generator[Any], labels: Sequence[int], task: Task) -> tuple[Any, Cost]:
        """Results of each member, by its name."""
        found, cost = {}, Cost()
        for name, member in self._fitting(target, generator).items():
            found[name], spent = member.explore(member.view_of(target), generator, labels, task)
            cost = cost + spent
        return found, cost

    def attack(self, target: Target, generator: Generator[Any], labels: Sequence[int], task: Task) -> Reconstruction:
        """Reconstruct some classes: ``images_per_class`` images of each by every member in turn."""
        blocks: list[Reconstruction] = []
        members = self._fitting(target, generator)
        for place, (name, member) in enumerate(members.items()):
            mine = self._task(name, member, (place, len(members)), task)
            # The last block is enough: a spared class has the images that convinced the target in it, by `filled`.
            rest = [label for label in labels if not (self.config.fast and blocks and convinced(blocks[-1], label))]
            found = member.attack(member.view_of(target), generator, rest, mine) if rest else None
            _note(task.notes, name, member, mine.notes)
            if len(rest) < len(labels):
                found = filled(found, blocks[-1], labels)
            assert found is not None  # as all labels are the rest, or there is a block before
            blocks.append(found)
        return side_by_side(blocks, task.images_per_class)

    def _task(self, name: str, member: Attack[Any], place: tuple[int, int], task: Task) -> Task:
        before, members = place

        def callback(labels: Sequence[int], step: int, steps: int, success: float) -> None:
            if task.callback is not None:
                task.callback(labels, before * _TICKS + step * _TICKS // steps, members * _TICKS, success)

        notes = dict(task.notes.get(name, {}))
        pool = shared_pool(member)
        if pool and pool in task.notes:
            # The same samples and views give the same starts, so the target looks at them once for all members.
            notes["starts"] = task.notes[pool]
        return replace(task, explored=task.explored[name], notes=notes, callback=callback)


def without_noise(attack: Attack[Any]) -> Attack[Any]:
    """Return a white-box attack without the noise of a stochastic head; other attacks stay unchanged."""
    if not isinstance(attack, WhiteBoxAttack):
        return attack
    return type(attack)(replace(attack.config, noise="mean"))


def shared_pool(member: Attack[Any]) -> str:
    """Key of the samples that a member starts from; empty if it does not choose its starts."""
    if not isinstance(member, WhiteBoxAttack) or member.config.initial_candidates == 0:
        return ""
    views = type(member).start_views
    pool, prior = member.config.initial_candidates, type(member).view
    return f"{pool} of {prior.__qualname__}, {member.config.noise}, {views.__module__}.{views.__qualname__}"


def _note(notes: dict[str, Any], name: str, member: Attack[Any], mine: dict[str, Any]) -> None:
    """Keep a member's results for its next chunk, and its starts for other members."""
    pool = shared_pool(member)
    if pool and "starts" in mine:
        notes[pool] = mine["starts"]
    notes[name] = mine


def convinced(found: Reconstruction, label: int) -> bool:
    """Whether the target takes all images of a class for it, with a score of :data:`AGREES`."""
    return bool((found.scores[found.labels == label] >= AGREES).all())


def filled(found: Reconstruction | None, before: Reconstruction, labels: Sequence[int]) -> Reconstruction:
    """``found`` with the images of ``before`` if a class was spared, classes in the order of ``labels``."""
    there = set() if found is None else set(found.labels.tolist())
    sources = [(found if found is not None and label in there else before, label) for label in labels]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(source, name)[source.labels == label] for source, label in sources])

    cost = Cost() if found is None else found.cost
    return Reconstruction(joined("images"), joined("labels"), joined("latents"), joined("scores"), cost)


def side_by_side(blocks: Sequence[Reconstruction], each: int) -> Reconstruction:
    """Reconstructions of the same classes, ``each`` images of a class a block, with all images of a class together."""

    def joined(name: str) -> Tensor:
        # From member by member to class by class: metrics expect the images of a class side by side.
        columns = [getattr(block, name).unflatten(0, (-1, each)) for block in blocks]
        return torch.cat(columns, dim=1).flatten(0, 1)

    cost = sum((block.cost for block in blocks), Cost())
    return Reconstruction(joined("images"), joined("labels"), joined("latents"), joined("scores"), cost)
