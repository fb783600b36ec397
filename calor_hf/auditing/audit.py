"""The audit: attacks, then judges, then a report."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from calor_hf.attacks._base import CHUNK_SIZE, check_labels
from calor_hf.auditing.networks import Network, SeenPictures, load_network
from calor_hf.auditing.parts import of_parts
from calor_hf.auditing.plan import PlannedAttack, plan_attacks
from calor_hf.auditing.private_pictures import PrivatePictures
from calor_hf.auditing.report import AttackResult, LeakageReport, anonymous
from calor_hf.auditing.run import run_attack
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.seeding import sample_rng
from calor_hf.core.target import Target
from calor_hf.generators import Generator, load_generator
from calor_hf.layers.frozen import frozen
from calor_hf.layers.hf_target import target_of
from calor_hf.metrics import METRICS, Evidence, Measure, Metric
from calor_hf.metrics.attack_accuracy import hits
from calor_hf.metrics.decoder_inversion import released
from calor_hf.metrics.membership import membership
from calor_hf.metrics.utility import utility

logger = logging.getLogger(__name__)

REPORT = "report.json"
PRIOR, OTHERS = "samples of the prior", "reconstructions of other people"
ROLES = ("judge", "second_judge", "embedding", "extractor")
PUBLIC = 1000  # public pictures that a metric may learn from, at most
_FLOOR, _PUBLIC = 99, 98  # draws of their own


def audit(
    target: "Target | nn.Module | str",
    attacks: Sequence[str | PlannedAttack] | None = None,
    generator: "Generator[Any] | str" = "renderer",
    evaluation_model: "Network | Target | nn.Module | str | None" = None,
    private_data: PrivatePictures | None = None,
    *,
    output_dir: str | Path = "outputs/audit",
    second_judge: "Network | Target | nn.Module | str | None" = None,
    embedding: "Network | Target | nn.Module | str | None" = None,
    extractor: "Network | Target | nn.Module | str | None" = None,
    classes: Sequence[int] | None = None,
    num_classes: int = 100,
    images_per_class: int = 5,
    seed: int = 0,
    budget: str | float = "paper",
    metrics: Sequence[str] | None = None,
    public_images: Dataset[Tensor] | None = None,
    target_name: str = "",
    chunk_size: int = CHUNK_SIZE,
    anonymize_labels: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> LeakageReport:
    """Attack a model, judge what comes out, and report it; under ``accelerate launch`` shared by the processes.

    No attack sees the judges or the private pictures; they come in when the attacks are done.

    Args:
        target: Model under attack: a target, a classifier of transformers, or where one is saved.
        attacks: As :func:`~calor_hf.auditing.plan.plan_attacks`; None: the default set, one adaptive attack in it.
        generator: The prior, or where one is saved, or ``renderer``.
        evaluation_model: The judge: another network than the target, trained on the same people.
        private_data: Pictures of these people.
        output_dir: Folder for ``report.json``, and a sub-folder an attack.
        second_judge: Another judge of another kind; success is then counted where both agree, too.
        embedding: A network that tells any people apart, for verification.
        extractor: A network for image quality.
        classes: Classes to attack; None: the first ``num_classes``.
        num_classes: How many, at most.
        images_per_class: Reconstructions of each.
        seed: Of every draw.
        budget: ``paper``, ``demo``, or a factor of the published effort.
        metrics: Names; None: all that the networks allow, but the slow ones.
        public_images: For attacks and metrics that learn about the target first; None: samples of the prior.
        target_name: As the report prints it.
        chunk_size: Images attacked at a time.
        anonymize_labels: Put numbers in the place of class names, which are people's.
        resume: Go on with what is missing.
        overwrite: Delete earlier results of these attacks first.

    Returns:
        The report, in every process; saved as ``report.json``.

    Raises:
        ValueError: no judge or no private data, parts that do not fit, unknown names.
        FileExistsError: results are there, and neither to be resumed nor overwritten.
    """
    if evaluation_model is None or private_data is None:
        raise ValueError(
            "an audit needs a judge and the private pictures it was trained on; pass evaluation_model= and "
            "private_data=, or use run_attack for reconstructions alone"
        )
    plans = plan_attacks(attacks, budget=budget)
    chosen_metrics = {name: METRICS.get(name)() for name in metrics or METRICS.names()}
    if metrics is None:
        chosen_metrics = {name: metric for name, metric in chosen_metrics.items() if not metric.slow}
    state = process_state()
    seen = target_of(target, state.device)
    prior = load_generator(generator, image_size=seen.image_size[0]) if isinstance(generator, str) else generator
    prior = prior.to(state.device)
    labels = check_labels(
        list(classes) if classes is not None else list(range(min(num_classes, seen.num_classes))), seen.num_classes
    )
    private = private_data.of(labels)
    networks = {
        role: load_network(source)
        for role, source in zip(ROLES, (evaluation_model, second_judge, embedding, extractor), strict=True)
        if source is not None
    }
    networks["target"] = Network.of_target(seen, target_name or type(seen.module).__name__)
    if networks["judge"].module is seen.module:
        raise ValueError("the target cannot judge itself: it believes every attack; pass another network")

    folder, found = Path(output_dir), {}
    for plan in plans:
        found[plan.name] = run_attack(
            plan.attack, seen, prior, labels, folder / plan.name, name=plan.kind, target_name=target_name,
            images_per_class=images_per_class, seed=seed, chunk_size=chunk_size, public_images=public_images,
            resume=resume, overwrite=overwrite,
        )  # fmt: skip

    text: list[str | None] = [None]
    if state.is_main_process:
        judges = _Judges(networks, private, prior, chosen_metrics, seen, public_images)
        results = judges.results(plans, found, seed)
        report = LeakageReport(
            target=describe(seen, target_name),
            data={
                "name": private.name,
                "people": len(private_data.labels.unique()),
                "pictures": len(private_data.labels),
                "held_pictures": 0 if private.held_labels is None else len(private.held_labels),
            },
            networks=judges.described(),
            labels=labels,
            label_names=[private.label_names[n] if private.label_names else str(n) for n in labels],
            images_per_class=images_per_class,
            seed=seed,
            budget=_budget(budget),
            attacks=results,
            utility=judges.utility(),
            neighbours=judges.neighbours(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        report = anonymous(report) if anonymize_labels else report
        report.save(folder / REPORT)
        text[0] = report.to_json()
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(text)
    return LeakageReport.from_json(text[0] or "")


class _Judges:
    """What every network sees in the private pictures, once; then reconstructions beside it."""

    def __init__(
        self, networks: dict[str, Network], private: PrivatePictures, prior: Generator[Any], metrics: dict[str, Metric],
        target: Target, public_images: Dataset[Tensor] | None,
    ) -> None:  # fmt: skip
        self.networks, self.private, self.prior, self.metrics = networks, private, prior, metrics
        self.target, self.public_images = target, public_images
        self.asked: dict[str, Any] = {}
        held = private.held_images
        self.pictures = {
            role: SeenPictures(network.look(private.images), None if held is None else network.look(held))
            for role, network in networks.items()
        }

    def described(self) -> dict[str, Any]:
        """Names by role, and how well the judges know the people on pictures that nobody was trained on."""
        found: dict[str, Any] = {role: network.name for role, network in self.networks.items()}
        for role in ("judge", "second_judge"):
            held = self.pictures[role].held if role in self.pictures else None
            if held is not None and held[1] is not None and self.private.held_labels is not None:
                found[f"{role}_accuracy"] = float(hits(held[1], self.private.held_labels).mean())
        return found

    def utility(self) -> list[Measure]:
        """What the target is good for, on pictures that it was not trained on."""
        held, labels = self.pictures["target"].held, self.private.held_labels
        return [] if held is None or held[1] is None or labels is None else utility(held[1], labels)

    def neighbours(self) -> list[Measure]:
        """Whether the target gives away who was in its training data."""
        train, held = self.pictures["target"].train[1], self.pictures["target"].held
        if train is None or held is None or held[1] is None or self.private.held_labels is None:
            return []
        return membership(train, self.private.labels, held[1], self.private.held_labels)

    def results(
        self, plans: Sequence[PlannedAttack], found: dict[str, Reconstruction], seed: int
    ) -> list[AttackResult]:
        """Numbers of every attack, with their floors."""
        results = []
        known: dict[int, list[Measure]] = {}  # floors by number of tries: with more of them, more hit by chance
        self.asked = self.questions(seed)
        for plan in plans:
            reconstruction = found[plan.name]
            count = len(reconstruction.labels)
            if count not in known:
                latents, images = self.samples(reconstruction.labels, seed)
                known[count] = self.measure(self.evidence(images, reconstruction.labels, latents))
            evidence = self.evidence(reconstruction.images, reconstruction.labels, reconstruction.latents)
            measures = self.measure(evidence) + of_parts(evidence, plan.attack.parts)
            floors = {PRIOR: known[count]}
            people = reconstruction.labels.unique()
            if len(people) > 1:
                other = dict(zip(people.tolist(), people.roll(1).tolist(), strict=True))
                wrong = torch.tensor([other[label] for label in reconstruction.labels.tolist()])
                floors[OTHERS] = self.measure(self.relabelled(evidence, wrong), by_image=True)
            results.append(
                AttackResult(
                    plan.name,
                    plan.kind,
                    plan.attack.config.to_dict(),
                    {"generator": self.prior.name, **self.prior.config.to_dict()},
                    dataclasses.asdict(reconstruction.cost),
                    plan.adaptive,
                    measures,
                    floors,
                    float(reconstruction.scores.double().mean()),
                    list(plan.attack.parts),
                )
            )
        return results

    def questions(self, seed: int) -> dict[str, Any]:
        """The target to be asked, and public pictures, where a metric wants to learn from them."""
        if not any("ask" in metric.needs for metric in self.metrics.values()):
            return {}
        if self.public_images is None:
            people = self.private.labels.unique()
            _, pictures = self.samples(people[torch.arange(PUBLIC) % len(people)], seed, _PUBLIC)
        else:
            rows = sample_rng(seed, _PUBLIC).permutation(len(self.public_images))[:PUBLIC]  # type: ignore[arg-type]
            pictures = torch.stack([self.public_images[int(row)] for row in rows])
        return {"ask": partial(released, self.target), "public_images": pictures}

    @torch.no_grad()
    def samples(self, labels: Tensor, seed: int, draw: int = _FLOOR) -> tuple[Tensor, Tensor]:
        """Latents and images of the prior as they are drawn, as many as there are reconstructions."""
        device = self.networks["target"].module
        place = next((weight.device for weight in device.parameters()), torch.device("cpu"))
        rng, latents, images = sample_rng(seed, draw), [], []
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
            **self.asked,
            **views,
        )

    def relabelled(self, evidence: Evidence, labels: Tensor) -> Evidence:
        """The same pictures, each held against somebody else."""
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
        """All metrics that the networks allow; one that fails costs its own numbers alone, and says why."""
        found: list[Measure] = []
        for name, metric in self.metrics.items():
            if metric.missing(evidence) is not None or (by_image and not metric.by_image):
                continue
            try:
                found += metric.measure(evidence)
            except (ValueError, FloatingPointError) as error:
                logger.warning("metric %s: %s", name, error)
                people = len(evidence.labels.unique())
                found.append(Measure(name, math.nan, "", "neither", len(evidence.labels), people, note=str(error)))
        return found


def describe(target: Target, name: str) -> dict[str, Any]:
    """What the report says of the attacked model."""
    module: Any = target.module
    config = getattr(module, "config", None)
    defense = getattr(module, "defense", None)
    return {
        "name": name,
        "model": type(module).__name__,
        "defense": getattr(config, "defense", None) or ("none" if defense is None else type(defense).__name__),
        "settings": {} if defense is None else defense.config.to_dict(),
        "classes": target.num_classes,
        "parameters": sum(weight.numel() for weight in module.parameters()),
    }


def _budget(budget: str | float) -> float:
    from calor_hf.attacks._base import BUDGETS

    return BUDGETS[budget] if isinstance(budget, str) and budget in BUDGETS else float(budget)
