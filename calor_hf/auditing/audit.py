"""The audit: attacks, then judges, then a report."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from calor_hf.attacks.base import CHUNK_SIZE, check_labels
from calor_hf.auditing.caveats import caveats
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import ROLES, Network, check_needs, load_network
from calor_hf.auditing.plan import PlannedAttack, plan_attacks
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.run import run_attack
from calor_hf.core.files import remove_parts, weights_digest
from calor_hf.core.processes import process_state
from calor_hf.core.report import REPORT, DataInfo, LeakageReport, TargetInfo
from calor_hf.generators import Generator, load_generator
from calor_hf.metrics import METRICS
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import target_of


def audit(
    target: "Target | nn.Module | str",
    attacks: Sequence[str | PlannedAttack] | None = None,
    generator: "Generator[Any] | str" = "renderer",
    evaluation_model: "Network | Target | nn.Module | str | None" = None,
    private_data: PrivateImages | None = None,
    *,
    output_dir: str | Path = "outputs/audit",
    second_evaluation_model: "Network | Target | nn.Module | str | None" = None,
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

    No attack sees the evaluation models or the private images; they come in when the attacks are done.

    Args:
        target: Model under attack: a target, a classifier of transformers, or where one is saved.
        attacks: As :func:`~calor_hf.auditing.plan.plan_attacks`; None: the default set, one adaptive attack in it.
        generator: The prior, or where one is saved, or ``renderer``.
        evaluation_model: The evaluation model: another network than the target, trained on the same people.
        private_data: Images of these people.
        output_dir: Folder for ``report.json``, and a sub-folder an attack.
        second_evaluation_model: Another evaluation model of another kind; success is then counted where both agree,
            too.
        embedding: A network that tells any people apart, for verification.
        extractor: A network for image quality.
        classes: Classes to attack; None: the first ``num_classes``.
        num_classes: How many, at most.
        images_per_class: Reconstructions of each.
        seed: Of every draw.
        budget: ``paper``, ``demo``, or a factor of the published effort.
        metrics: Names; None: all that the networks and images allow, but the slow ones.
        public_images: For attacks and metrics that learn about the target first; None: samples of the prior.
        target_name: As the report prints it.
        chunk_size: Images attacked at a time.
        anonymize_labels: Put numbers instead of class names, which are people's.
        resume: Go on with what is missing.
        overwrite: Delete earlier results of these attacks first.

    Returns:
        The report, in every process; saved as ``report.json``.

    Raises:
        ValueError: no evaluation model or no private data, parts that do not fit, a metric that lacks what it needs.
        FileExistsError: results are there, and neither to be resumed nor overwritten.
        FloatingPointError: the target's scores, or an evaluation model's, are not finite.
    """
    if evaluation_model is None or private_data is None:
        raise ValueError(
            "an audit needs an evaluation model and the private images it was trained on; pass evaluation_model= and "
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
        for role, source in zip(ROLES, (evaluation_model, second_evaluation_model, embedding, extractor), strict=True)
        if source is not None
    }
    networks["target"] = Network.of_target(seen, target_name or type(seen.module).__name__)
    if networks["evaluation_model"].module is seen.module:
        raise ValueError("the target cannot judge itself: it believes every attack; pass another network")
    if metrics is not None:
        check_needs(chosen_metrics, networks, private)

    folder, found = Path(output_dir), {}
    if state.is_main_process:
        remove_parts(folder)
    state.wait_for_everyone()
    for plan in plans:
        found[plan.name] = run_attack(
            plan.attack, seen, prior, labels, folder / plan.name, name=plan.kind, target_name=target_name,
            images_per_class=images_per_class, seed=seed, chunk_size=chunk_size, public_images=public_images,
            resume=resume, overwrite=overwrite,
        )  # fmt: skip

    text: list[str | None] = [None]
    if state.is_main_process:
        evaluation_models = Evaluator(networks, private, prior, chosen_metrics, seen, public_images)
        results = evaluation_models.results(plans, found, seed)
        report = LeakageReport(
            target=describe(seen, target_name),
            data=DataInfo(
                name=private.name,
                identities=len(private_data.labels.unique()),
                images=len(private_data.labels),
                held_out_images=0 if private.held_labels is None else len(private.held_labels),
            ),
            networks=evaluation_models.described(),
            labels=labels,
            label_names=[private.label_names[n] if private.label_names else str(n) for n in labels],
            images_per_class=images_per_class,
            seed=seed,
            budget=_budget(budget),
            attacks=results,
            utility=evaluation_models.utility(),
            other_threats=evaluation_models.other_threats(seed),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        report = replace(report, caveats=caveats(report))
        report = report.anonymous() if anonymize_labels else report
        report.save(folder / REPORT)
        text[0] = report.to_json()
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(text)
    return LeakageReport.from_json(text[0] or "")


def describe(target: Target, name: str) -> TargetInfo:
    """Describe the attacked model for the report."""
    module: Any = target.module
    config = getattr(module, "config", None)
    defense = getattr(module, "defense", None)
    return TargetInfo(
        name=name,
        model=type(module).__name__,
        defense=getattr(config, "defense", None) or ("none" if defense is None else type(defense).__name__),
        settings={} if defense is None else defense.config.to_dict(),
        classes=target.num_classes,
        parameters=sum(weight.numel() for weight in module.parameters()),
        weights=weights_digest(Path(name)) if name and Path(name).is_dir() else None,
    )


def _budget(budget: str | float) -> float:
    from calor_hf.attacks.base import BUDGETS

    return BUDGETS[budget] if isinstance(budget, str) and budget in BUDGETS else float(budget)
