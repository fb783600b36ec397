"""Evaluation of reconstructions: metrics on what networks compute from them and from the private images."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing.networks import ROLES, Network
from calor_hf.auditing.parts import of_parts
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import AttackResult, NetworkInfo
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.metrics import METRICS, Evidence, Measure, Metric, View
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.decoder_inversion import released
from calor_hf.metrics.membership import membership
from calor_hf.metrics.utility import utility
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

logger = logging.getLogger(__name__)

PRIOR, OTHERS = "samples of the prior", "reconstructions of other people"
PUBLIC = 1000  # public images that a metric may learn from, at most


class Evaluator:
    """Computes the numbers of a report. Private images are not looked at before the first of them is asked for.

    Args:
        target: The attacked model.
        prior: The generator of the attacks.
        private: Private images of the attacked classes.
        networks: By role: those of :data:`~calor_hf.auditing.networks.ROLES` that are available, and ``target``.
        metrics: Names; None means all that the networks and images allow, except slow ones.
        public_images: Public images that metrics may learn from; None means samples of the prior.
        seed: Seed of every draw.

    Raises:
        ValueError: a metric in ``metrics`` lacks a network or held-out images.
    """

    def __init__(
        self, target: Target, prior: Generator[Any], private: PrivateImages, networks: dict[str, Network],
        metrics: Sequence[str] | None = None, public_images: Dataset[Tensor] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.target, self.prior, self.private, self.networks = target, prior, private, networks
        self.public_images, self.seed = public_images, seed
        self.metrics = {name: METRICS.get(name)() for name in metrics or METRICS.names()}
        if metrics is None:
            self.metrics = {name: metric for name, metric in self.metrics.items() if not metric.slow}
            return
        lacking = [role for role in ROLES if role not in networks]
        lacking += [name for name in ("held_images", "held_labels") if getattr(private, name) is None]
        for name, metric in self.metrics.items():
            for need in metric.needs:
                if need in lacking:
                    raise ValueError(
                        f"metric '{name}' needs {need}, and the audit has none; pass one, or leave the metric out"
                    )

    @cached_property
    def private_views(self) -> dict[str, View]:
        """What each network computes from the private images, by role; a network with two roles runs once.

        Raises:
            FloatingPointError: a network's logits are not finite.
        """
        views: dict[str, View] = {}
        for role, network in self.networks.items():
            twin = next((views[other] for other in views if self.networks[other] is network), None)
            views[role] = twin or self._private_view(network)
        return views

    def _private_view(self, network: Network) -> View:
        none: tuple[Tensor | None, Tensor | None] = (None, None)
        features, logits = network.outputs(self.private.images)
        held = none if self.private.held_images is None else network.outputs(self.private.held_images)
        for found in (logits, held[1]):
            if found is not None and not found.isfinite().all():
                raise FloatingPointError(
                    f"the network '{network.name}' gives NaN or infinite scores for private images; check its weights"
                )
        return View(network.name, features[:0], features, None, logits, *held)

    def described(self) -> dict[str, NetworkInfo]:
        """Return name and accuracy on held-out images of each network, by role."""
        found = {}
        for role, view in self.private_views.items():
            held, accuracy = view.held_logits, math.nan
            if role in ROLES[:2] and held is not None and self.private.held_labels is not None:
                accuracy = float(topk_correct(held, self.private.held_labels).mean())
            found[role] = NetworkInfo(view.name, accuracy)
        return found

    def utility(self) -> list[Measure]:
        """Measure the target on images that it was not trained on."""
        held, labels = self.private_views["target"].held_logits, self.private.held_labels
        return [] if held is None or labels is None else utility(held, labels)

    def other_threats(self) -> list[Measure]:
        """Measure membership inference, and what depends on the target but not on reconstructions."""
        found: list[Measure] = []
        view = self.private_views["target"]
        if view.private_logits is not None and view.held_logits is not None and self.private.held_labels is not None:
            found += membership(view.private_logits, self.private.labels, view.held_logits, self.private.held_labels)
        chosen = {name: metric for name, metric in self.metrics.items() if metric.about_target}
        if chosen:
            identities = self.private.labels.unique()
            latents, images = self.samples(identities)
            evidence = dataclasses.replace(self.evidence(images, identities, latents), **self._questions())
            found += measured(chosen, evidence)
        return found

    def results(self, attacks: Sequence[tuple[NamedAttack, Reconstruction]]) -> list[AttackResult]:
        """Measure the reconstructions of every attack, with their chance levels."""
        by_chance: dict[int, list[Measure]] = {}  # by the number of images: more tries succeed more often by chance
        results = []
        for attack, found in attacks:
            count = len(found.labels)
            if count not in by_chance:
                latents, images = self.samples(found.labels)
                by_chance[count] = self.measure(self.evidence(images, found.labels, latents))
            evidence = self.evidence(found.images, found.labels, found.latents)
            chance_levels = {PRIOR: by_chance[count]}
            identities = found.labels.unique()
            if len(identities) > 1:
                other = dict(zip(identities.tolist(), identities.roll(1).tolist(), strict=True))
                wrong = torch.tensor([other[label] for label in found.labels.tolist()])
                chance_levels[OTHERS] = self.measure(self._relabeled(evidence, wrong), by_image=True)
            results.append(
                AttackResult(
                    name=attack.name,
                    attack=attack.kind,
                    settings=attack.attack.config.to_dict(),
                    prior=self.prior.name,
                    prior_settings=self.prior.config.to_dict(),
                    cost=found.cost,
                    adaptive=attack.attack.adaptive,
                    measures=self.measure(evidence) + of_parts(evidence, attack.attack.parts),
                    chance_levels=chance_levels,
                    target_confidence=float(found.scores.double().mean()),
                    parts=list(attack.attack.parts),
                )
            )
        return results

    def measure(self, evidence: Evidence, by_image: bool = False) -> list[Measure]:
        """Compute the metrics of reconstructions; with ``by_image`` those alone that are means over images."""
        chosen = {n: m for n, m in self.metrics.items() if not m.about_target and (m.by_image or not by_image)}
        return measured(chosen, evidence)

    def evidence(self, images: Tensor, labels: Tensor, latents: Tensor) -> Evidence:
        """Collect what all networks compute from some images."""
        views: dict[str, Any] = {}
        for role, view in self.private_views.items():
            features, logits = self.networks[role].outputs(images)
            views[role] = dataclasses.replace(view, features=features, logits=logits)
        private, identity = self.private, self.prior.identity(latents)
        truth = None if identity is None or private.true_identity is None else private.true_identity[labels]
        return Evidence(
            images=images.float(),
            labels=labels,
            private_images=private.images.float() / 255,
            private_labels=private.labels,
            held_labels=private.held_labels,
            held_images=None if private.held_images is None else private.held_images.float() / 255,
            identity=identity,
            true_identity=truth,
            identity_names=private.identity_names,
            **views,
        )

    def _relabeled(self, evidence: Evidence, labels: Tensor) -> Evidence:
        """The same images, each compared with another identity."""
        order, truth = labels.argsort(stable=True), self.private.true_identity
        views: dict[str, Any] = {}
        for role in self.networks:
            view: View = getattr(evidence, role)
            logits = None if view.logits is None else view.logits[order]
            views[role] = dataclasses.replace(view, features=view.features[order], logits=logits)
        identity = None if evidence.identity is None else evidence.identity[order]
        return dataclasses.replace(
            evidence,
            images=evidence.images[order],
            labels=labels[order],
            identity=identity,
            true_identity=None if identity is None or truth is None else truth[labels[order]],
            **views,
        )

    @torch.no_grad()
    def samples(self, labels: Tensor, purpose: str = "chance level") -> tuple[Tensor, Tensor]:
        """Draw a latent and an image of the prior for each label; both on the CPU."""
        device, rng = self.target.device, named_rng(self.seed, "auditing/prior-samples", purpose)
        weights = next(iter(self.prior.parameters()), None)
        dtype = torch.float32 if weights is None else weights.dtype
        latents, images = [], []
        with frozen(self.prior):
            for some in labels.split(256):
                drawn = self.prior.sample_latents(len(some), rng).to(device, dtype)
                latents.append(drawn.cpu())
                images.append(self.prior(drawn, some.to(device)).clamp(0, 1).float().cpu())
        return torch.cat(latents), torch.cat(images)

    def _questions(self) -> dict[str, Any]:
        """Access to the target, and public images to learn from."""
        if self.public_images is None:
            identities = self.private.labels.unique()
            _, images = self.samples(identities[torch.arange(PUBLIC) % len(identities)], "public images")
        else:
            rng = named_rng(self.seed, "auditing/public-images")
            rows = rng.permutation(len(self.public_images))[:PUBLIC]  # type: ignore[arg-type]
            images = torch.stack([self.public_images[int(row)] for row in rows])
        return {"ask": partial(released, self.target), "public_images": images}


def measured(metrics: dict[str, Metric], evidence: Evidence) -> list[Measure]:
    """Compute metrics; those that lack evidence are left out, and one that fails has the reason as its note."""
    found: list[Measure] = []
    for name, metric in metrics.items():
        if metric.missing(evidence) is not None:
            continue
        try:
            found += metric.measure(evidence)
        except (ValueError, FloatingPointError) as error:
            logger.warning("metric %s: %s", name, error)
            identities = len(evidence.labels.unique())
            found.append(Measure(name, math.nan, "", "neither", len(evidence.labels), identities, note=str(error)))
    return found
