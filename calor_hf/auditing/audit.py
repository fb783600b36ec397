"""Audits: run attacks, evaluate what they reconstruct, and report it."""

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn

from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import Network
from calor_hf.auditing.options import AuditOptions
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.run import run_attack
from calor_hf.auditing.verdict import concluded
from calor_hf.core.files import remove_parts
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import REPORT, LeakageReport
from calor_hf.generators import Generator
from calor_hf.targets.base import Target


def audit(
    target: Target,
    private: PrivateImages,
    prior: Generator[Any],
    evaluation_model: "Network | Target | nn.Module | str",
    options: AuditOptions | None = None,
) -> LeakageReport:
    """Attack a model, evaluate the reconstructions, and report it; ``accelerate launch`` shares the classes.

    No attack sees evaluation models or private images; they are used when all attacks are done.

    Args:
        target: The model under attack, such as ``HFTarget.from_pretrained("outputs/demo")``.
        private: Images that it was trained on, such as ``PrivateImages.from_dataset(train, test, image_size=224)``.
        prior: The generator of the attacks, such as ``load_generator("outputs/prior")``.
        evaluation_model: Classifier of the same classes that is another network than the target; or its folder or Hub
            id.
        options: Attacks, classes, metrics and files.

    Returns:
        The report, in every process; it is saved as ``report.json`` in the output folder.

    Raises:
        ValueError: parts that do not fit together, or a metric that lacks what it needs.
        FileExistsError: results exist, and neither ``resume`` nor ``overwrite`` is set.
        FloatingPointError: scores of the target or of an evaluation model are not finite.
    """
    options = options or AuditOptions()
    labels = options.labels(target.num_classes)
    evaluator = Evaluator(target, private, prior, labels, evaluation_model, options)
    return evaluate(evaluator, reconstruct(target, prior, labels, options), options)


def reconstruct(
    target: Target, prior: Generator[Any], labels: Sequence[int], options: AuditOptions
) -> list[tuple[NamedAttack, Reconstruction]]:
    """Run all attacks of an audit, without evaluating them.

    Args:
        target: The model under attack.
        prior: The generator.
        labels: Attacked classes.
        options: Attacks and files.

    Raises:
        ValueError: parts that do not fit together.
        FileExistsError: results exist, and neither ``resume`` nor ``overwrite`` is set.
    """
    folder, state = Path(options.output_dir), process_state()
    target.module.to(state.device)
    prior.to(state.device)
    if state.is_main_process:
        remove_parts(folder)
    state.wait_for_everyone()
    found = []
    for attack in options.named_attacks:
        rebuilt = run_attack(
            attack.attack,
            target,
            prior,
            labels,
            folder / attack.name,
            name=attack.kind,
            target_name=options.target_name,
            images_per_class=options.images_per_class,
            seed=options.seed,
            chunk_size=options.chunk_size,
            public_images=options.public_images,
            resume=options.resume,
            overwrite=options.overwrite,
        )
        found.append((attack, rebuilt))
    return found


def evaluate(
    evaluator: Evaluator, found: Sequence[tuple[NamedAttack, Reconstruction]], options: AuditOptions
) -> LeakageReport:
    """Evaluate what the attacks of an audit have rebuilt, and save the report; all processes get it."""
    state, text = process_state(), [""]
    if state.is_main_process:
        report = LeakageReport(
            **evaluator.numbers(found),
            target=evaluator.target.describe(options.target_name),
            labels=evaluator.labels,
            label_names=evaluator.label_names,
            images_per_class=options.images_per_class,
            seed=options.seed,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            data=evaluator.data,
        )
        report = concluded(report)
        report = report.anonymous() if options.anonymize_labels else report
        report.save(Path(options.output_dir) / REPORT)
        text = [report.to_json()]
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(text)
    return LeakageReport.from_json(text[0])
