"""Evaluation of reconstructions: metrics on what networks compute from them and from the private images."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing.caveats import LEAST_FIT
from calor_hf.auditing.decoy_attackers import ranked_modes, with_photographs
from calor_hf.auditing.networks import ROLES, Network, check_different, load_network
from calor_hf.auditing.options import AuditOptions, load_networks
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.real_people import real_people
from calor_hf.core.digests import network_digest
from calor_hf.core.exact_interval import exact_interval
from calor_hf.core.fingerprints import trained_on
from calor_hf.core.processes import process_state
from calor_hf.core.progress import ProgressBar
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import AttackResult, DataInfo, NetworkInfo, false_matches
from calor_hf.core.report_text import percent
from calor_hf.core.seeding import named_rng
from calor_hf.generators import RENDERER, Generator
from calor_hf.metrics import METRICS, Evidence, Measure, View
from calor_hf.metrics.agreement import nearest_mean_correct
from calor_hf.metrics.attack_accuracy import topk_correct
from calor_hf.metrics.base import mean_over_images, measured
from calor_hf.metrics.decoder_inversion import released
from calor_hf.metrics.identification_game import log_odds, recognized
from calor_hf.metrics.membership import membership
from calor_hf.metrics.parts import of_parts
from calor_hf.metrics.utility import training_fit, utility
from calor_hf.targets.base import Target
from calor_hf.targets.frozen import frozen

logger = logging.getLogger(__name__)

PRIOR, OTHERS = "samples of the prior", "reconstructions of other people"
PUBLIC = 1000  # public images that a metric may learn from, at most
LEARNED = 500  # private images by which it is tested whether the target learned them, at most


class Evaluator:
    """Computes the numbers of a report. No network looks at private images before :meth:`check_target`.

    Args:
        target: The attacked model.
        private: Private images.
        prior: The generator of the attacks.
        labels: Attacked classes.
        evaluation_model: As for :func:`~calor_hf.auditing.audit.audit`.
        options: Other networks, metrics (None means all that networks and images allow, except slow ones), public
            images that metrics may learn from (None means samples of the prior), and seed of every draw.

    Raises:
        ValueError: a class without private images, a network is a copy of the target or of another one, the prior is
            the renderer and did not draw the images, a network is not available, a metric in ``options.metrics``
            lacks a network or held-out images, or the target was trained with decoys and the images have none.
    """

    def __init__(
        self, target: Target, private: PrivateImages, prior: Generator[Any], labels: list[int],
        evaluation_model: "Network | Target | nn.Module | str", options: AuditOptions,
    ) -> None:  # fmt: skip
        private.check_prior(prior)
        if target.describe("").defense == "decoys" and private.decoys is None:
            raise ValueError(
                f"the target was trained with decoys, and '{private.name}' has none, so it is not known which "
                "identities are private; pass the folder that calor-hf decoys deal wrote, with its secret next to it"
            )
        private, prior = private.for_classes(target.class_names), prior.for_classes(target.class_names)
        self.target, self.prior, self.labels = target, prior, labels
        self.public_images, self.seed, metrics = options.public_images, options.seed, options.metrics
        decoys = private.decoys
        numbers = None if decoys is None else decoys.numbers
        self.networks = networks = load_networks(target, evaluation_model, options, numbers)
        check_different(networks, *private.images.shape[-2:])
        self.private, names = private.of_classes(labels), private.label_names
        self.looked: Callable[[], object] = lambda: None  # called when a network has looked at a set of images
        self.label_names = [names[label] if names else str(label) for label in labels]
        self.data = DataInfo(
            name=private.name,
            identities=target.num_classes,
            images=len(private.labels),
            held_out_images=0 if private.held_labels is None else len(private.held_labels),
            drawn=private.drawn,
            digest=private.digest,
            identities_per_class=1 if decoys is None else decoys.k,
            exchangeability="" if decoys is None else decoys.exchangeability,
        )
        folders = {role: Path(one.folder) for role, one in networks.items() if one.folder is not None}
        self.learned = {role: trained_on(folder, private.files) for role, folder in folders.items()}
        self.seen = {role: trained_on(folder, private.held_files) for role, folder in folders.items()}
        for role, count in self.seen.items():
            if count:
                logger.warning(
                    "The %s was trained on %d of the %d held-out images that test it, so its accuracy says nothing. "
                    "Train it on the training split alone.",
                    *(role.replace("_", " "), count, len(private.held_files)),
                )
        independent = "embedding" in networks and not self.learned.get("embedding")
        if not independent and not (private.drawn and prior.name == RENDERER):
            logger.warning(
                "No independent --embedding: the verdict will rest on networks that learned the private images as the "
                "target did, and may recognize adversarial images. Pass one that never saw these people: for faces "
                "--embedding inception_resnet_vggface2, for other images the Hub id of an image encoder "
                "(docs/audit.md)."
            )
        self.metrics = {name: METRICS.get(name)() for name in metrics or METRICS.names()}
        if metrics is None:
            self.metrics = {name: metric for name, metric in self.metrics.items() if not metric.slow}
            return
        lacking = [role for role in ROLES if role not in networks]
        lacking += [name for name in ("held_images", "held_labels") if getattr(private, name) is None]
        lacking += ["identity_labels"] * (decoys is None)
        for name, metric in self.metrics.items():
            for need in metric.needs:
                if need in lacking:
                    raise ValueError(
                        f"metric '{name}' needs {need}, and the audit has none; pass one, or leave the metric out"
                    )

    def check_target(self) -> None:
        """Refuse a target that recognizes its training images no better than by chance; warn if its accuracy is low.

        In that case the images or the order of classes are not those of its training, and an audit is meaningless. With
        too few images to tell, nothing is refused.

        Raises:
            ValueError: it has not learned these images.
            FloatingPointError: its logits are not finite.
        """
        self._check_learned(self.networks["target"], "the target")

    def check_control(self, control: Target) -> None:
        """Refuse a control that has not learned the images either, or is a copy of a network of the audit.

        Raises:
            ValueError: the control is one of these.
            FloatingPointError: its logits are not finite.
        """
        network = load_network(control, "control")
        check_different({**self.networks, "control": network}, *self.private.images.shape[-2:])
        self._check_learned(network, "the control")

    def _check_learned(self, network: Network, who: str) -> None:
        network.module.to(process_state().device)
        rows = torch.arange(0, len(self.private.labels), -(-len(self.private.labels) // LEARNED))
        with torch.random.fork_rng(devices=[]):  # of stochastic heads
            logits = _finite(network, self.private.images[rows])[1]
        assert logits is not None  # of a target
        right, count = int(topk_correct(logits, self.private.labels[rows]).sum()), len(rows)
        chance, (low, high) = 1 / logits.shape[1], exact_interval(right, count)
        found = f"{who} recognizes {right} of {count} images that it is said to have learned"
        if low <= chance and high < (1 + chance) / 2:
            raise ValueError(
                f"{found}, no more than by chance ({percent(chance)}): they are not those of its training, or the "
                "classes are in another order; pass the data and class names that it was trained with"
            )
        if right < LEAST_FIT * count:
            logger.warning(
                "%s: unless this audit finds a leak, it will be inconclusive. Pass the data of its training.", found
            )

    @cached_property
    def private_views(self) -> dict[str, View]:
        """Outputs of each network for the private images, by role; a network with two roles runs once.

        Raises:
            FloatingPointError: a network's logits are not finite.
        """
        views: dict[str, View] = {}
        for role, network in self.networks.items():
            twin = next((views[other] for other in views if self.networks[other] is network), None)
            views[role] = twin or self._private_view(network)
            self.looked()
        return views

    def _private_view(self, network: Network) -> View:
        none: tuple[Tensor | None, Tensor | None] = (None, None)
        features, logits = _finite(network, self.private.images)
        held = none if self.private.held_images is None else _finite(network, self.private.held_images)
        decoys = None if self.private.decoys is None else _finite(network, self.private.decoys.images)[0]
        return View(network.name, features[:0], features, None, logits, *held, decoys)

    def numbers(self, attacks: Sequence[tuple[NamedAttack, Reconstruction]]) -> dict[str, Any]:
        """Measure reconstructions, networks and other threats; returns fields of the report."""
        # Each network looks at the private images, at each attack's, at their chance levels, at what the target is
        # asked about, and at held-out images of decoys.
        asked = any(metric.about_target for metric in self.metrics.values())
        sets = 1 + len(attacks) + len({len(found.labels) for _, found in attacks}) + asked
        sets += self.private.decoys is not None
        with ProgressBar(total=sets * len(self.networks), desc="evaluating", unit="set") as bar:
            self.looked = bar.update
            return self._numbers(attacks)

    def _numbers(self, attacks: Sequence[tuple[NamedAttack, Reconstruction]]) -> dict[str, Any]:
        about_target = {name: metric for name, metric in self.metrics.items() if metric.about_target}
        identities, asked = self.private.labels.unique(), None
        # All draws, then what the networks compute, then numbers.
        wanted: dict[str, tuple[Tensor, str]] = {}
        for _, found in attacks:
            wanted.setdefault(str(len(found.labels)), (found.labels, "chance level"))
        if about_target:
            wanted["asked"] = (identities, "chance level")
        compares = bool(about_target) or self.private.decoys is not None
        if compares and self.public_images is None:
            wanted["public"] = (identities[torch.arange(PUBLIC) % len(identities)], "public images")
        drawn = self.samples(wanted)
        others = self._others(drawn) if compares else torch.empty(0)
        if about_target:
            asked = self.evidence(drawn["asked"], identities)
            asked = dataclasses.replace(asked, ask=partial(released, self.target), public_images=others)
        by_chance: dict[int, list[Measure]] = {}  # by the number of images: more tries succeed more often by chance
        results = [self._result(attack, found, drawn[str(len(found.labels))], by_chance) for attack, found in attacks]
        views, private = self.private_views, self.private
        view, labels, networks = views["target"], private.held_labels, {}
        for role, one in views.items():
            logits = one.private_logits
            same = logits is not None and (role != "embedding" or logits.shape[1] == self.target.num_classes)
            same = same or self.learned.get(role, 0) > 0
            accuracy = None if role == "extractor" else self._accuracy(role, one)
            module = self.networks[role].module
            digest = network_digest(module) if module.state_dict() else None
            networks[role] = NetworkInfo(one.name, accuracy, same, digest, self.seen.get(role, 0))
        useful: list[Measure] = []
        threats: list[Measure] = []
        if view.held_logits is not None and labels is not None:
            useful = utility(view.held_logits, labels)
        if view.private_logits is not None:
            useful += training_fit(view.private_logits, private.labels)
            if view.held_logits is not None and labels is not None:
                threats = membership(view.private_logits, private.labels, view.held_logits, labels)
        if asked is not None:
            threats += measured(about_target, asked)
        network, public = self.networks["target"], None if self.public_images is None else others
        threats += self._false_matches() + with_photographs(private, view, others, self.target, network)
        threats += real_people(network, private, view.held_logits, public)
        return {"attacks": results, "networks": networks, "utility": useful, "other_threats": threats}

    def _others(self, drawn: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Images of other people: public ones, or the samples of the prior that were drawn for it."""
        if self.public_images is None:
            return drawn["public"][1]
        rng = named_rng(self.seed, "auditing/public-images")
        rows = rng.permutation(len(self.public_images))[:PUBLIC]  # type: ignore[arg-type]
        return torch.stack([self.public_images[int(row)] for row in rows])

    def _false_matches(self) -> list[Measure]:
        """Share of real held-out images of decoys that networks take for the private identity of their class."""
        decoys = self.private.decoys
        if decoys is None:
            return []
        labels = decoys.class_of[decoys.held_labels]
        rows = torch.isin(labels, self.private.labels)
        if not rows.any():
            return []
        images = decoys.held_images[rows].float() / 255
        note = "real images of decoys taken for the private identity of their class"
        return [
            mean_over_images(false_matches(name), "share", "neither", right, labels[rows], note, slots=False)
            for name, right in recognized(self.evidence((None, images), labels[rows])).items()
        ]

    def _accuracy(self, role: str, view: View) -> Measure | None:
        """Accuracy of a network on held-out images of the attacked identities; None without such images."""
        held = self.private.held_labels
        rows = None if held is None else torch.isin(held, self.private.labels)
        if held is None or rows is None or not rows.any():
            return None
        if view.held_logits is not None and role != "embedding":
            right = topk_correct(view.held_logits[rows], held[rows])
        elif view.held_features is not None and len(self.private.labels.unique()) > 1:
            right, _ = nearest_mean_correct(
                view.held_features[rows], held[rows], view.private_features, self.private.labels
            )
        else:
            return None
        return mean_over_images("accuracy", "share", "neither", right, held[rows], slots=False)

    def _result(
        self, attack: NamedAttack, found: Reconstruction, drawn: tuple[Tensor, Tensor],
        by_chance: dict[int, list[Measure]],
    ) -> AttackResult:  # fmt: skip
        metrics = {name: metric for name, metric in self.metrics.items() if not metric.about_target}
        evidence, count = self.evidence((found.latents, found.images), found.labels), len(found.labels)
        if attack.attack.access == "labels":  # which sees no scores
            evidence = dataclasses.replace(evidence, attacker_scores=found.scores)
        identities = found.labels.unique()
        other = dict(zip(identities.tolist(), identities.roll(1).tolist(), strict=True))
        wrong = self._relabeled(evidence, torch.tensor([other[label] for label in found.labels.tolist()]))
        if count not in by_chance:
            chance = self.evidence(drawn, found.labels)
            by_chance[count] = measured(metrics, chance)
        chance_levels = {PRIOR: by_chance[count]}
        if len(identities) > 1:
            by_image = {name: metric for name, metric in metrics.items() if metric.by_image}
            chance_levels[OTHERS] = measured(by_image, wrong)
        parts, decoys, ranked = attack.attack.parts(self.target, self.prior), self.private.decoys, list[Measure]()
        if decoys is not None:
            network = self.networks["target"]
            ranked = ranked_modes(attack, found, drawn[1], self.target, network, self.prior, decoys)
        return AttackResult(
            name=attack.name,
            attack=attack.kind,
            settings=attack.attack.config.to_dict(),
            prior=self.prior.name,
            prior_settings=self.prior.config.to_dict(),
            prior_digest=network_digest(self.prior),
            cost=found.cost,
            adaptive=attack.attack.adaptive_to(self.target),
            measures=measured(metrics, evidence) + of_parts(evidence, parts) + ranked,
            chance_levels=chance_levels,
            target_confidence=float(found.scores.double().mean()),
            parts=list(parts),
            effort=attack.effort,
            changed=list(attack.changed),
        )

    def evidence(self, drawn: tuple[Tensor | None, Tensor], labels: Tensor) -> Evidence:
        """Collect what all networks compute from some images; ``drawn`` are latents, if known, and images."""
        latents, images = drawn
        views: dict[str, Any] = {}
        for role, view in self.private_views.items():
            features, logits = self.networks[role].outputs(images)
            views[role] = dataclasses.replace(view, features=features, logits=logits)
            self.looked()
        private, seen = self.private, views["target"].logits
        identity = None if latents is None else self.prior.identity(latents)
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
            enrolled_identities=private.true_identity,
            identity_names=private.identity_names,
            attacker_scores=None if seen is None else log_odds(seen, labels),
            identity_labels=None if private.decoys is None else private.decoys.class_of,
            decoy_labels=None if private.decoys is None else private.decoys.labels,
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
    def samples(self, wanted: dict[str, tuple[Tensor, str]]) -> dict[str, tuple[Tensor, Tensor]]:
        """Draw latents and images of the prior, on the CPU, for labels and a purpose each."""
        device, drawn = self.target.device, {}
        weights = next(iter(self.prior.parameters()), None)
        dtype = torch.float32 if weights is None else weights.dtype
        for name, (labels, purpose) in wanted.items():
            rng, latents, images = named_rng(self.seed, "auditing/prior-samples", purpose), [], []
            if self.prior.num_classes is not None:  # a prior given the class may draw its person, so classes are random
                classes = named_rng(self.seed, "auditing/prior-samples/classes", purpose)
                labels = torch.from_numpy(classes.integers(0, self.prior.num_classes, len(labels)))
            with frozen(self.prior):
                for some in labels.split(256):
                    some_latents = self.prior.sample_latents(len(some), rng).to(device, dtype)
                    latents.append(some_latents.cpu())
                    images.append(self.prior(some_latents, some.to(device)).clamp(0, 1).float().cpu())
            drawn[name] = (torch.cat(latents), torch.cat(images))
        return drawn


def _finite(network: Network, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Outputs for private images; raises ``FloatingPointError`` if the logits are not finite."""
    features, logits = network.outputs(images)
    if logits is not None and not logits.isfinite().all():
        raise FloatingPointError(
            f"the network '{network.name}' gives NaN or infinite scores for private images; check its weights"
        )
    return features, logits
