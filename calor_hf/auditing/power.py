"""Power of an audit: whether it could have found anything with its prior and its evaluation networks."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calor_hf.attacks.batch import Batch
from calor_hf.attacks.gradient import GradientAttack, GradientAttackConfig
from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.core.config import setting
from calor_hf.core.progress import ClassProgress
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import EMBEDDING, HEADLINE, MATCH, PowerCheck
from calor_hf.core.report_text import percent
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.metrics import Measure, mean_over_identities, mean_over_images, paired_difference
from calor_hf.metrics.agreement import nearest_mean_correct
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.fid import frechet_distance
from calor_hf.metrics.identity_match import matched
from calor_hf.metrics.image_similarity import resized_like
from calor_hf.metrics.kid import kernel_distances
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

IMAGES = 80  # private images that are looked at, at most
AT_ONCE = 128  # samples of the pool
SAMPLES = 200  # samples of the prior that are compared with private and public images
GRAY = 0.02  # mean range of an image's channels, below which a set of images is called gray
Look = Callable[[Tensor], Tensor]
"""(batch, d) vectors of (batch, 3, height, width) images, differentiable."""


@dataclass(frozen=True, kw_only=True)
class TowardTruthConfig(GradientAttackConfig):
    """Settings of :class:`TowardTruth`."""

    steps: int = 150
    lr: float = 0.1
    keep: str = "best"
    pool: int = setting(500, "Samples of the prior, of which the nearest to each image is optimized.", ge=1)


PROJECTION, GUIDANCE = TowardTruthConfig(), TowardTruthConfig(steps=50)


class TowardTruth(GradientAttack[TowardTruthConfig]):
    """The attack loop with the truth as its guide, which no attacker has: it tests prior and loop, not the target.

    It is not an attack, so it is not registered.

    Args:
        config: The settings.
        look: Features by which images are compared.
        truth: (rows, d) that the images of each row should look like; rows as those of all ``classes``.
        classes: All classes of the run.
    """

    config_class = TowardTruthConfig

    def __init__(self, config: TowardTruthConfig, look: Look, truth: Tensor, classes: Sequence[int]) -> None:
        super().__init__(config)
        self.look, self.truth, self.each = look, truth, len(truth) // len(classes)
        self.shared = bool((truth.unflatten(0, (-1, self.each)) == truth[:: self.each, None]).all())
        self.first = {label: place * self.each for place, label in enumerate(classes)}

    @torch.no_grad()
    def start(self, generator: Generator[Any], latents: Tensor, batch: Batch) -> Tensor:
        """Return, for each row, the nearest sample of one pool; the next nearest for each further row of one truth."""
        pool = generator.sample_latents(self.config.pool, named_rng(batch.seed, "auditing/power/pool")).to(latents)
        wanted, found = self._wanted(batch), latents.clone()
        # The images of a generator without classes serve all rows.
        labels = batch.labels[:1] if generator.num_classes is None else batch.labels.unique()
        for label in labels:
            rows = batch.labels == label if len(labels) > 1 else slice(None)
            parts = [self.look(generator(some, label.expand(len(some)))) for some in pool.split(AT_ONCE)]
            apart = torch.cdist(wanted[rows], torch.cat(parts), compute_mode="donot_use_mm_for_euclid_dist")
            nearest = apart.topk(min(self.each, len(pool)), largest=False).indices
            ranks = [place % nearest.shape[1] if self.shared else 0 for _, place in batch.row_keys]
            found[rows] = pool[nearest.gather(1, torch.tensor(ranks, device=nearest.device)[rows, None]).squeeze(1)]
        return found

    def identity(self, target: Target, images: Tensor, batch: Batch) -> Tensor:
        """Squared distance to the truth; the target is not asked."""
        return (self.look(images) - self._wanted(batch).to(images)).square().mean(dim=1)

    def _wanted(self, batch: Batch) -> Tensor:
        return self.truth[[self.first[label] + place for label, place in batch.row_keys]].to(batch.like)


class Power:
    """Measurements of an audit's power, on the identities and by the networks of its evaluator.

    Args:
        evaluator: The audit's evaluator.
        images_per_class: Images of each identity in the audit; half as many are measured, and at most :data:`IMAGES`
            in all, so that the measurement stays cheap.
        chunk_size: Images at a time, which the results do not depend on.
    """

    def __init__(self, evaluator: Evaluator, images_per_class: int, chunk_size: int) -> None:
        self.evaluator, self.chunk_size = evaluator, chunk_size
        private, self.classes = evaluator.private, sorted(evaluator.labels[:IMAGES])
        self.each = max(1, min(images_per_class // 2, IMAGES // len(self.classes)))
        self.labels = torch.tensor(self.classes).repeat_interleave(self.each)
        rows = [(private.labels == label).nonzero().flatten() for label in self.classes]
        self.images = torch.cat([private.images[own[torch.arange(self.each) % len(own)]] for own in rows]).float() / 255

    def checks(self) -> list[PowerCheck]:
        """Measure, cheapest first: ``resolution``, ``prior`` and ``guided``; nothing without a network that judges."""
        return [self.resolution(), self.prior(), self.guided()] if self._judge() else []

    def resolution(self) -> PowerCheck:
        """Private images brought to the size of the prior and back."""
        note = f"{self.evaluator.prior.image_size} pixels, brought back to {self.images.shape[-1]}"
        return self._check("resolution", None, resized_like(self._as_drawn(), self.images), self.labels, note)

    def prior(self) -> PowerCheck:
        """Private images projected onto the prior by their pixels alone."""
        truth = self._as_drawn()
        found = self._toward(PROJECTION, lambda images: images.flatten(1), truth.flatten(1))
        off = (found.images.float() - truth).square().mean().sqrt()
        note = "; ".join([f"projected by pixels alone, {percent(float(off), 0)} of the range off", *self._distances()])
        return replace(self._check("prior", found.latents, found.images, self.labels, note), faults=self.faults())

    def guided(self) -> PowerCheck:
        """The attack loop, guided by mean private features of a network that does not judge."""
        role = self._guide()
        network, view = self.evaluator.networks[role], self.evaluator.private_views[role]
        center, labels = view.private_features.mean(dim=0), self.evaluator.private.labels
        means = {label: view.private_features[labels == label].mean(dim=0) - center for label in self.classes}
        like = next(iter(network.module.parameters()), center)

        def look(images: Tensor) -> Tensor:
            features = network.features(images.to(like)).flatten(1) - center.to(like)
            return F.normalize(features, dim=1).to(images)

        truth = F.normalize(torch.stack([means[label] for label in self.labels.tolist()]), dim=1)
        with frozen(network.module):
            found = self._toward(GUIDANCE, look, truth)
        note = f"guided by the mean private features of the network with the role {role}"
        return self._check("guided", found.latents, found.images, self.labels, note)

    def control(
        self, found: Sequence[tuple[NamedAttack, Reconstruction]],
        from_control: Sequence[tuple[NamedAttack, Reconstruction]], digest: str, prior: Generator[Any] | None = None,
    ) -> PowerCheck:  # fmt: skip
        """Compare with the same attacks on an undefended model, paired by identity.

        Args:
            found: Reconstructions from the target.
            from_control: Those of the undefended model; the attack with the most recognized images counts.
            digest: SHA-256 of the undefended model.
            prior: That of the attacks on it, if it is another one; its samples are the chance level.
        """
        checks, own = [], self if prior is None else self._over(prior)
        over = "" if prior is None else ", over a prior of its own"
        for (attack, defended), (_, one) in zip(found, from_control, strict=True):
            check = own._check("control", one.latents, one.images, one.labels, f"the attack {attack.name}{over}")
            measure, right = self._seen(defended.latents, defended.images)
            target = _measures(measure, right(defended.labels), defended.labels)[0]
            mean, low, high = paired_difference(target.by_identity, check.images.by_identity)
            difference = Measure(
                f"{measure} difference", mean, "share", "neither", len(one.labels), len(target.by_identity), low, high,
                note="control minus target, paired by identity",
            )  # fmt: skip
            checks.append(replace(check, difference=difference, digest=digest))
        return max(checks, key=lambda check: check.images.value)

    def _over(self, prior: Generator[Any]) -> "Power":
        evaluator = copy.copy(self.evaluator)
        evaluator.prior = prior
        other = copy.copy(self)
        other.evaluator = evaluator
        other.__dict__.pop("_drawn", None)  # samples of the first prior
        return other

    def faults(self) -> list[str]:
        """Sentences about a prior that cannot draw the private images, as far as training, color and size tell."""
        prior, found, private_side = self.evaluator.prior, list[str](), self.images.shape[-1]
        done, planned = prior.trained_steps or (0, 0)
        if done < planned:
            found.append(f"The training of the prior is unfinished: it had {done} of {planned} steps.")
        _, samples = self._drawn
        gray, private_gray = ((one.amax(dim=1) - one.amin(dim=1)).mean() < GRAY for one in (samples, self.images))
        if gray != private_gray:
            kinds = ("gray", "in color") if gray else ("in color", "gray")
            found.append(f"The prior draws images {kinds[0]}, and the private images are {kinds[1]}.")
        if prior.image_size < private_side:
            found.append(f"The prior draws {prior.image_size} pixels, fewer than the target's {private_side}.")
        return found

    def _as_drawn(self) -> Tensor:
        """Private images at the size of the prior."""
        side = self.evaluator.prior.image_size
        return resized_like(self.images, torch.empty(side, side))

    def _toward(self, config: TowardTruthConfig, look: Look, truth: Tensor) -> Reconstruction:
        with ClassProgress("power", len(self.classes)) as progress:
            return TowardTruth(config, look, truth, self.classes).run(
                self.evaluator.target, self.evaluator.prior, self.classes, images_per_class=self.each,
                seed=self.evaluator.seed, chunk_size=self.chunk_size, callback=progress,
            )  # fmt: skip

    def _judge(self) -> str:
        """Role of the network that judges images without a known truth; an empty string if no network can."""
        views = self.evaluator.private_views
        if "embedding" in views and len(self.evaluator.labels) > 1:
            return "embedding"
        return "evaluation_model" if views["evaluation_model"].private_logits is not None else ""

    def _guide(self) -> str:
        """Role of a network that neither judges nor is attacked; that of the target if there is no other.

        An evaluation model that learned the private images guides to adversarial images, so it is not taken.
        """
        networks, judge = self.evaluator.networks, self._judge()
        taken = [networks[role].module for role in ("target", judge)]
        others = [role for role in ("second_evaluation_model", "embedding") if role in networks]
        return next((role for role in others if all(networks[role].module is not one for one in taken)), "target")

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor]:
        """Latents and images of the prior, one for each measured image."""
        return self._samples(self.labels)

    def _samples(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.evaluator.samples({"": (labels, "power")})[""]

    def _distances(self) -> list[str]:
        """Distances of samples of the prior to private and public images, if a network for image quality is given."""
        networks, public = self.evaluator.networks, self.evaluator.public_images
        if "extractor" not in networks:
            return []
        samples, _ = networks["extractor"].outputs(
            self._samples(self.labels[torch.arange(SAMPLES) % len(self.labels)])[1]
        )
        sets = {"private": self.evaluator.private_views["extractor"].private_features}
        if public is not None:
            some = [public[row] for row in range(min(SAMPLES, len(public)))]  # type: ignore[arg-type]
            sets["public"], _ = networks["extractor"].outputs(torch.stack(some))
        return [
            f"distance of samples to {name} images: Fréchet {frechet_distance(samples, features):.4g}, kernel "
            f"{float(kernel_distances(samples, features).mean()):.3g}"
            for name, features in sets.items()
        ]

    def _seen(self, latents: Tensor | None, images: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
        """Name of the most trusted measure for some images, and a function from labels to (n,) whether it is right."""
        evaluator, private = self.evaluator, self.evaluator.private
        identity, truth = None if latents is None else evaluator.prior.identity(latents), private.true_identity
        if identity is not None and truth is not None:
            return MATCH, lambda labels: matched(identity, labels, truth)
        role = self._judge()
        features, logits = evaluator.networks[role].outputs(images)
        if role == "embedding":
            known = evaluator.private_views[role].private_features
            return EMBEDDING, lambda labels: nearest_mean_correct(features, labels, known, private.labels)[0]
        assert logits is not None  # as of `_judge`
        return HEADLINE, lambda labels: topk_correct(logits, labels)

    def _check(self, name: Any, latents: Tensor | None, images: Tensor, labels: Tensor, note: str) -> PowerCheck:
        measure, right = self._seen(latents, images)
        drawn_latents, drawn = self._drawn if labels is self.labels else self._samples(labels)
        people = labels.unique()
        shifted = people.roll(1)[torch.searchsorted(people, labels)]
        by_chance = [self._seen(None if latents is None else drawn_latents, drawn)[1](labels)]
        by_chance += [right(shifted)] if len(people) > 1 else []
        levels = [_measures(measure, one, labels) for one in by_chance]
        chance, chance_identities = (max(one.value for one in some) for some in zip(*levels, strict=True))
        return PowerCheck(name, *_measures(measure, right(labels), labels), chance, chance_identities, note)


def _measures(name: str, right: Tensor, labels: Tensor) -> tuple[Measure, Measure]:
    """Share of images that are recognized, and of identities with at least one."""
    people = {int(label): float(right[labels == label].max()) for label in labels.unique()}
    return (
        mean_over_images(name, "share", "leakage", right, labels, slots=False),
        mean_over_identities(name, "share", "leakage", people, len(labels)),
    )
