"""Audits: run attacks, evaluate what they reconstruct, and report it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import nn

from calor_hf.attacks.specs import NamedAttack
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import Network
from calor_hf.auditing.options import AuditOptions
from calor_hf.auditing.power import Power
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.run import run_attack
from calor_hf.auditing.verdict import concluded
from calor_hf.core.digests import network_digest
from calor_hf.core.files import remove_parts
from calor_hf.core.label_names import class_order
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import REPORT, LeakageReport
from calor_hf.generators import Generator
from calor_hf.targets.base import Target
from calor_hf.targets.hf_target import HFTarget

Found = Sequence[tuple[NamedAttack, Reconstruction]]
"""Reconstructions by attack."""
CONTROL = "control"
"""Sub-folder of an audit with the attacks on the control."""


def audit(
    target: Target,
    private: PrivateImages,
    prior: Generator[Any],
    evaluation_model: "Network | Target | nn.Module | str",
    options: AuditOptions | None = None,
) -> LeakageReport:
    """Attack a model, evaluate the reconstructions, and report it; ``accelerate launch`` shares the classes.

    No attack sees evaluation models or private images; they are used when all attacks are done. Before that, only
    target and control are tested on private images.

    Args:
        target: The model under attack, such as ``HFTarget.from_pretrained("outputs/demo/calor")``.
        private: Images that it was trained on, such as ``PrivateImages.from_dataset(train, test, image_size=224)``.
        prior: The generator of the attacks, such as ``load_generator("outputs/prior")``.
        evaluation_model: Classifier of the same classes that is another network than the target; or its folder or Hub
            id.
        options: Attacks, classes, metrics and files.

    Returns:
        The report, in every process; it is saved as ``report.json`` in the output folder.

    Raises:
        ValueError: parts that do not fit together, a target that has not learned the images, or a metric that lacks
            what it needs.
        FileExistsError: results exist, and neither ``resume`` nor ``overwrite`` is set.
        FloatingPointError: scores of the target or of an evaluation model are not finite.
    """
    options = options or AuditOptions()
    labels = options.labels(target.num_classes, target.class_names)
    evaluator = Evaluator(target, private, prior, labels, evaluation_model, options)
    control = load_control(target, options)
    evaluator.check_target()
    if control is not None:
        evaluator.check_control(control)
    found = reconstruct(target, prior, labels, options)
    return evaluate(evaluator, found, options, control, attack_control(control, prior, labels, options))


def load_control(target: Target, options: AuditOptions) -> Target | None:
    """Load the undefended model that is attacked like the target; return None if no control was asked for.

    Raises:
        ValueError: it is defended, has other classes than the target, or is not a model.
    """
    if options.control is None:
        return None
    check_defended(target)
    if options.control == "auto":
        raise ValueError("control=auto trains a model, which calor-hf audit does; pass a model, or its folder")
    control = HFTarget.from_pretrained(options.control) if isinstance(options.control, str) else options.control
    if (defense := control.describe("").defense) != "none":
        raise ValueError(f"the control is defended ({defense}); pass an undefended model of the same classes")
    if class_order(control.class_names, target.class_names, "the control") is not None:
        raise ValueError("the control has the target's classes in another order; pass a model of the same data")
    return control


def check_defended(target: Target) -> None:
    """Raise ``ValueError`` for an undefended target, to which a control adds nothing."""
    if target.describe("").defense == "none":
        raise ValueError("the target is undefended itself, so a control shows nothing new; leave it out")


def attack_control(
    control: Target | None, prior: Generator[Any], labels: Sequence[int], options: AuditOptions
) -> Found:  # fmt: skip
    """Attack the control as the target was, with the same settings and seeds, in a sub-folder; nothing without one."""
    if control is None:
        return []
    folder, own = Path(options.output_dir) / CONTROL, options.control_prior
    options = replace(options, output_dir=str(folder), target_name=CONTROL)
    return reconstruct(control, prior if own is None else own, labels, options)


def reconstruct(target: Target, prior: Generator[Any], labels: Sequence[int], options: AuditOptions) -> Found:
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
            anonymous=options.anonymize_labels,
            resume=options.resume,
            overwrite=options.overwrite,
        )
        found.append((attack, rebuilt))
    return found


def evaluate(
    evaluator: Evaluator, found: Found, options: AuditOptions, control: Target | None = None, from_control: Found = ()
) -> LeakageReport:  # fmt: skip
    """Evaluate what the attacks of an audit have rebuilt, and save the report; all processes get it.

    Args:
        evaluator: Computes the numbers.
        found: Reconstructions from the target.
        options: Options of the audit.
        control: The undefended model, if there is one.
        from_control: Reconstructions from it by the same attacks.
    """
    state, text = process_state(), [""]
    if state.is_main_process:
        numbers, power = evaluator.numbers(found), Power(evaluator, options.images_per_class, options.chunk_size)
        checks = [] if options.skip_power else power.checks()
        if control is not None:
            digest = network_digest(control.module)
            checks.append(power.control(found, from_control, digest, options.control_prior))
        report = LeakageReport(
            **numbers,
            target=evaluator.target.describe(options.target_name),
            labels=evaluator.labels,
            label_names=evaluator.label_names,
            images_per_class=options.images_per_class,
            seed=options.seed,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            data=evaluator.data,
            power=checks,
        )
        report = concluded(report)
        report = report.anonymous() if options.anonymize_labels else report
        report.save(Path(options.output_dir) / REPORT)
        text = [report.to_json()]
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(text)
    return LeakageReport.from_json(text[0])
