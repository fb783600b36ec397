"""What the evaluation models see in private images and in reconstructions, and the numbers that come of it."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from calor_hf.auditing.networks import ROLES, Network, SeenImages
from calor_hf.auditing.parts import of_parts
from calor_hf.auditing.plan import PlannedAttack
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import AttackResult, NetworkInfo
from calor_hf.core.seeding import named_rng
from calor_hf.generators import Generator
from calor_hf.metrics import Evidence, Measure, Metric
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
    """What every network sees in the private images, once; then reconstructions beside it.

    Raises:
        FloatingPointError: a network's scores are not finite.
    """

    def __init__(
        self, networks: dict[str, Network], private: PrivateImages, prior: Generator[Any], metrics: dict[str, Metric],
        target: Target, public_images: Dataset[Tensor] | None,
    ) -> None:  # fmt: skip
        self.networks, self.private, self.prior, self.metrics = networks, private, prior, metrics
        self.target, self.public_images = target, public_images
        held = private.held_images
        known: dict[int, SeenImages] = {}  # a network may have several roles, and looks once
        for network in networks.values():
            if id(network) not in known:
                known[id(network)] = SeenImages(
                    _seen(network, private.images), None if held is None else _seen(network, held)
                )
        self.pictures = {role: known[id(network)] for role, network in networks.items()}

    def described(self) -> dict[str, NetworkInfo]:
        """Return name and accuracy on held-out images of each network, by role."""
        found = {}
        for role, network in self.networks.items():
            held, accuracy = self.pictures[role].held, math.nan
            is_judge = role in ("evaluation_model", "second_evaluation_model")
            if is_judge and held is not None and held[1] is not None and self.private.held_labels is not None:
                accuracy = float(topk_correct(held[1], self.private.held_labels).mean())
            found[role] = NetworkInfo(network.name, accuracy)
        return found

    def utility(self) -> list[Measure]:
        """What the target is good for, on images that it was not trained on."""
        held, labels = self.pictures["target"].held, self.private.held_labels
        return [] if held is None or held[1] is None or labels is None else utility(held[1], labels)

    def other_threats(self, seed: int) -> list[Measure]:
        """Other threats: who was in the training data, and metrics that are about the target whatever was rebuilt."""
        found: list[Measure] = []
        train, held = self.pictures["target"].train[1], self.pictures["target"].held
        if train is not None and held is not None and held[1] is not None and self.private.held_labels is not None:
            found += membership(train, self.private.labels, held[1], self.private.held_labels)
        chosen = {name: metric for name, metric in self.metrics.items() if metric.about_target}
        if chosen:
            identities = self.private.labels.unique()
            latents, images = self.samples(identities, seed)
            evidence = dataclasses.replace(self.evidence(images, identities, latents), **self.questions(seed))
            found += measured(chosen, evidence)
        return found

    def results(
        self, plans: Sequence[PlannedAttack], found: dict[str, Reconstruction], seed: int
    ) -> list[AttackResult]:
        """Numbers of every attack, with their chance levels."""
        results = []
        known: dict[int, list[Measure]] = {}  # chance levels by number of tries: with more of them, more hit by chance
        for plan in plans:
            reconstruction = found[plan.name]
            count = len(reconstruction.labels)
            if count not in known:
                latents, images = self.samples(reconstruction.labels, seed)
                known[count] = self.measure(self.evidence(images, reconstruction.labels, latents))
            evidence = self.evidence(reconstruction.images, reconstruction.labels, reconstruction.latents)
            measures = self.measure(evidence) + of_parts(evidence, plan.attack.parts)
            chance_levels = {PRIOR: known[count]}
            identities = reconstruction.labels.unique()
            if len(identities) > 1:
                other = dict(zip(identities.tolist(), identities.roll(1).tolist(), strict=True))
                wrong = torch.tensor([other[label] for label in reconstruction.labels.tolist()])
                chance_levels[OTHERS] = self.measure(self.relabeled(evidence, wrong), by_image=True)
            results.append(
                AttackResult(
                    plan.name,
                    plan.kind,
                    plan.attack.config.to_dict(),
                    self.prior.name,
                    self.prior.config.to_dict(),
                    reconstruction.cost,
                    plan.attack.adaptive,
                    measures,
                    chance_levels,
                    float(reconstruction.scores.double().mean()),
                    list(plan.attack.parts),
                )
            )
        return results

    def questions(self, seed: int) -> dict[str, Any]:
        """The target to be asked, and public images to learn from; samples of the prior, where there are none."""
        if self.public_images is None:
            identities = self.private.labels.unique()
            _, pictures = self.samples(identities[torch.arange(PUBLIC) % len(identities)], seed, "public images")
        else:
            rng = named_rng(seed, "auditing/public-images")
            rows = rng.permutation(len(self.public_images))[:PUBLIC]  # type: ignore[arg-type]
            pictures = torch.stack([self.public_images[int(row)] for row in rows])
        return {"ask": partial(released, self.target), "public_images": pictures}

    @torch.no_grad()
    def samples(self, labels: Tensor, seed: int, purpose: str = "chance level") -> tuple[Tensor, Tensor]:
        """Latents and images of the prior as they are drawn, as many as there are reconstructions."""
        device = self.networks["target"].module
        place = next((weight.device for weight in device.parameters()), torch.device("cpu"))
        rng, latents, images = named_rng(seed, "auditing/prior-samples", purpose), [], []
        with frozen(self.prior):
            for some in labels.split(256):
                drawn = self.prior.sample_latents(len(some), rng).to(place)
                weights = next(iter(self.prior.parameters()), None)
                drawn = drawn.float() if weights is None else drawn.to(weights.dtype)
                latents.append(drawn.cpu())
                images.append(self.prior(drawn, some.to(place)).clamp(0, 1).float().cpu())
        return torch.cat(latents), torch.cat(images)

    def evidence(self, images: Tensor, labels: Tensor, latents: Tensor) -> Evidence:
        """What all networks see in some images."""
        private = self.private
        views: dict[str, Any] = {
            role: network.view(images, self.pictures[role]) for role, network in self.networks.items()
        }
        identity = self.prior.identity(latents)
        truth = private.true_identity
        return Evidence(
            images=images.float(),
            labels=labels,
            private_images=private.images.float() / 255,
            private_labels=private.labels,
            held_labels=private.held_labels,
            held_images=None if private.held_images is None else private.held_images.float() / 255,
            identity=identity,
            true_identity=None if truth is None or identity is None else truth[labels],
            identity_names=private.identity_names,
            **views,
        )

    def relabeled(self, evidence: Evidence, labels: Tensor) -> Evidence:
        """The same images, each held against someone else."""
        truth = self.private.true_identity
        order = labels.argsort(stable=True)

        def sorted_rows(name: str) -> Any:
            view = getattr(evidence, name)
            if view is None:
                return None
            logits = None if view.logits is None else view.logits[order]
            return dataclasses.replace(view, features=view.features[order], logits=logits)

        known = evidence.identity is not None and truth is not None
        return dataclasses.replace(
            evidence,
            images=evidence.images[order],
            labels=labels[order],
            identity=evidence.identity[order] if evidence.identity is not None else None,
            true_identity=truth[labels[order]] if known and truth is not None else None,
            **{name: sorted_rows(name) for name in (*ROLES, "target")},
        )

    def measure(self, evidence: Evidence, by_image: bool = False) -> list[Measure]:
        """All metrics of reconstructions that the networks allow."""
        chosen = {n: m for n, m in self.metrics.items() if not m.about_target and (m.by_image or not by_image)}
        return measured(chosen, evidence)


def _seen(network: Network, images: Tensor) -> tuple[Tensor, Tensor | None]:
    features, logits = network.look(images)
    if logits is not None and not logits.isfinite().all():
        raise FloatingPointError(
            f"the network '{network.name}' gives NaN or infinite scores for private images; check its weights"
        )
    return features, logits


def measured(metrics: dict[str, Metric], evidence: Evidence) -> list[Measure]:
    """Numbers of metrics; one that lacks something says nothing, and one that fails says why in its number's place."""
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
