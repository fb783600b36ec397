"""`calor-hf plan audit`: what the attacks and the evaluating of an audit will take."""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import ROLES, Network, check_needs, load_network
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.cli.audit import Parts, check_options, evaluation_model_argv, load_private, parse, parts_of
from calor_hf.core.peak_memory import PeakMemory, peak_memory_bytes
from calor_hf.core.reconstruction import Cost, Reconstruction
from calor_hf.metrics import METRICS
from calor_hf.recipes.plan import Part, Plan, plan_attack

IMAGES = 512  # private ones and reconstructions that a trial judges, at most


def plan_audit(words: Sequence[str], processes: int = 1, seconds: float = 30.0) -> Plan:
    """What ``calor-hf audit`` with these options will take.

    Args:
        words: Options of ``calor-hf audit``.
        processes: That would share the classes.
        seconds: About how long the trials of all attacks may take.
    """
    options = parse(words)
    check_options(options)
    if options.images_per_class < 1 or options.chunk_size < 1:
        raise ValueError(
            f"--images-per-class and --chunk-size must be >= 1, got {options.images_per_class} and {options.chunk_size}"
        )
    begin = time.perf_counter()
    built = parts_of(options)
    loaded = time.perf_counter() - begin
    attacks: list[Part] = []
    memory = 0
    for plan in built.plans:
        part, peak = plan_attack(
            plan.attack, built.target, built.generator, built.labels, name=plan.name,
            images_per_class=options.images_per_class, seed=options.seed, chunk_size=options.chunk_size,
            processes=processes, public_images=built.public, seconds=seconds / len(built.plans),
        )  # fmt: skip
        attacks.append(part)
        memory = max(memory, peak)
    evaluating: list[Part] = []
    if not options.reconstructions_only:
        before, evaluating, own = _evaluating(built, options)
        loaded, memory = loaded + before, max(memory, own)
    parts = [
        Part("loading", loaded),
        *evaluating[:-1],
        *attacks,
        *evaluating[-1:],
    ]  # an evaluation model is trained before the attacks
    assumptions = ["attacks whose cost grows in proportion to classes and budget; some end early when they succeed"]
    if processes > 1:
        assumptions.append(f"{processes} processes with devices like this one share the classes; the first one judges")
    device = built.target.device.type
    peak = max(memory, peak_memory_bytes() if device == "cpu" else 0)
    return Plan("audit", parts, peak, _disk_bytes(built, options.images_per_class), device, processes, assumptions)


def _evaluating(built: Parts, options: argparse.Namespace) -> tuple[float, list[Part], int]:
    """Seconds of loading the images, the parts of evaluating, and the memory at its peak."""
    target = built.target
    begin = time.perf_counter()
    private = load_private(built, options.dataset).of(built.labels)
    loading = time.perf_counter() - begin
    sources = [options.evaluation_model, options.second_evaluation_model, options.embedding, options.extractor]
    parts: list[Part] = []
    words: list[str] = []
    if options.evaluation_model is None:
        evaluation_model = Path(options.output_dir) / "evaluation_model"
        sources[0], words = str(evaluation_model), evaluation_model_argv(evaluation_model, target)
    networks = {
        role: load_network(source)
        for role, source in zip(ROLES, sources, strict=True)
        if source is not None and not (role == "evaluation_model" and words)
    }
    if words:
        from calor_hf.cli._plan_train import plan_training

        training = plan_training(words, seconds=5.0)
        parts.append(Part("evaluation_model", training.seconds, note="trained once, and kept"))
        # Until there is one, the target stands in for it.
        networks["evaluation_model"] = Network("stand-in", target.module, target.features, target.head)
    networks["target"] = Network.of_target(target, "target")
    metrics = {name: METRICS.get(name)() for name in options.metrics or METRICS.names()}
    if options.metrics is None:
        metrics = {name: metric for name, metric in metrics.items() if not metric.slow}
    else:
        check_needs(metrics, networks, private)

    some = _some(private)
    identities = some.labels.unique()
    tries = {plan.name: options.images_per_class * max(1, len(plan.attack.parts)) for plan in built.plans}
    with PeakMemory(target.device) as memory:
        begin = time.perf_counter()
        evaluation_models = Evaluator(networks, some, built.generator, metrics, target, built.public)
        looking = time.perf_counter() - begin
        evaluated = 0.0
        for plan in built.plans:
            begin = time.perf_counter()
            few = identities[: max(2, IMAGES // tries[plan.name])]
            evaluation_models.results(
                [plan], {plan.name: _drawn(evaluation_models, few, tries[plan.name], options.seed)}, options.seed
            )
            evaluated += (time.perf_counter() - begin) * len(built.labels) / len(few)
        begin = time.perf_counter()
        evaluation_models.utility()
        evaluation_models.other_threats(options.seed)
        once = time.perf_counter() - begin
    every, looked = _count(private), _count(some)
    rebuilt = sum(tries.values()) * len(built.labels)
    distinct = len({id(network) for network in networks.values()})
    passes = {
        "evaluation_passes": every * distinct + (rebuilt + max(tries.values()) * len(built.labels)) * len(networks)
    }
    parts.append(Part("evaluating", looking * every / looked + evaluated + once, passes=passes))
    whole = sum(4 * images.numel() for images in (private.images, private.held_images) if images is not None)
    part = sum(4 * images.numel() for images in (some.images, some.held_images) if images is not None)
    return loading, parts, memory.peak + whole - part


def _some(private: PrivateImages) -> PrivateImages:
    """At most so many images of each split, of as many people as there are."""

    def rows(count: int) -> Tensor:
        return torch.arange(0, count, max(1, math.ceil(count / IMAGES)))

    train = rows(len(private.images))
    some = replace(private, images=private.images[train], labels=private.labels[train])
    if private.held_images is None or private.held_labels is None:
        return some
    held = rows(len(private.held_images))
    return replace(some, held_images=private.held_images[held], held_labels=private.held_labels[held])


def _count(private: PrivateImages) -> int:
    return len(private.images) + (0 if private.held_images is None else len(private.held_images))


def _drawn(evaluation_models: Evaluator, identities: Tensor, tries: int, seed: int) -> Reconstruction:
    """Samples of the prior instead of reconstructions."""
    labels = identities.repeat_interleave(tries)
    latents, images = evaluation_models.samples(labels, seed)
    return Reconstruction(images, labels, latents, torch.ones(len(labels)), Cost())


def _disk_bytes(built: Parts, images_per_class: int) -> int:
    """Reconstructions: images and latents in full precision."""
    numbers = 3 * built.generator.image_size**2 + built.generator.latent_dim
    images = sum(images_per_class * max(1, len(plan.attack.parts)) for plan in built.plans) * len(built.labels)
    return 4 * numbers * images
