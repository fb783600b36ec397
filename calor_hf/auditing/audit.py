"""Audits: run attacks, evaluate what they reconstruct, and report it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from calor_hf.attacks.base import CHUNK_SIZE, budget_factor, check_labels
from calor_hf.attacks.specs import DEFAULT_ATTACKS, NamedAttack, parse_attacks
from calor_hf.auditing.evaluation import Evaluator
from calor_hf.auditing.networks import Network, load_networks
from calor_hf.auditing.private_data import PrivateImages
from calor_hf.auditing.run import run_attack
from calor_hf.core.files import remove_parts, weights_digest
from calor_hf.core.processes import process_state
from calor_hf.core.reconstruction import Reconstruction
from calor_hf.core.report import REPORT, DataInfo, LeakageReport, TargetInfo
from calor_hf.core.report_text import caveats
from calor_hf.generators import Generator
from calor_hf.metrics import METRICS
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Options of :func:`audit`; the metadata of each field say what it means."""

    second_evaluation_model: "Network | Target | nn.Module | str | None" = field(
        default=None, metadata={"help": "another evaluation model; success is then also counted where both agree"}
    )
    embedding: "Network | Target | nn.Module | str | None" = field(
        default=None,
        metadata={
            "help": "network for verification: inception_resnet_vggface2 (of facenet-pytorch), folder or Hub id, or"
            " package.module:function that returns an nn.Module of images in [0, 1] to features"
        },
    )
    extractor: "Network | Target | nn.Module | str | None" = field(
        default=None,
        metadata={
            "help": "network for image quality (FID, KID, PRDC): inception_fid (of pytorch-fid), or as --embedding;"
            " only the first gives what is called FID"
        },
    )
    attacks: Sequence[str] = field(
        default=DEFAULT_ATTACKS,
        metadata={
            "nargs": "+", "metavar": "ATTACK",
            "help": "such as gmi, plg@calor (a preset) or plg:objective=ce,steps=300 (settings); see calor-hf list",
        },
    )  # fmt: skip
    classes: Sequence[int] | str | None = field(
        default=None,
        metadata={"help": "classes to attack, such as 0-99 or 3,7,9; default: the first 100 (synthetic faces: 16)"},
    )
    images_per_class: int = field(default=5, metadata={"help": "reconstructions of each class"})
    preset: str = field(
        default="original", metadata={"help": "original, or calor: as the paper's tables were most likely made"}
    )
    budget: str | float | None = field(
        default=None,
        metadata={
            "help": "paper, demo (a twentieth), or a factor of the published effort; default: paper (synthetic faces:"
            " 0.25)"
        },
    )
    settings: Sequence[str] = field(
        default=(), metadata={"metavar": "NAME=VALUE", "help": "settings of the attacks (calor-hf list ATTACK)"}
    )
    metrics: Sequence[str] | None = field(
        default=None,
        metadata={
            "nargs": "+", "metavar": "NAME",
            "help": "metrics (calor-hf list metrics); default: all that the networks allow, except slow ones",
        },
    )  # fmt: skip
    public_images: "Dataset[Tensor] | None" = field(
        default=None,
        metadata={"flags": (), "help": "public images, for attacks and metrics that learn about the target first"},
    )
    target_name: str = field(default="", metadata={"flags": (), "help": "name of the target in the report"})
    anonymize_labels: bool = field(
        default=False, metadata={"help": "numbers instead of class names, which may be names of people"}
    )
    chunk_size: int = field(default=CHUNK_SIZE, metadata={"help": "images attacked at a time"})
    seed: int = field(default=0, metadata={"help": "seed of every draw"})
    output_dir: str = field(
        default="outputs/audit", metadata={"help": "folder of the report, the page, and a sub-folder for each attack"}
    )
    resume: bool = field(default=False, metadata={"help": "go on with what is missing"})
    overwrite: bool = field(default=False, metadata={"help": "delete earlier results of these attacks first"})

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for contradictory options, unknown metrics and unknown attacks."""
        if min(self.images_per_class, self.chunk_size) < 1 or self.seed < 0:
            raise ValueError(
                "expected images_per_class and chunk_size >= 1 and seed >= 0, got "
                f"{self.images_per_class}, {self.chunk_size} and {self.seed}"
            )
        if self.resume and self.overwrite:
            raise ValueError("resume goes on with earlier attacks, overwrite deletes them; pass one of them")
        for name in self.metrics or ():
            try:
                METRICS.get(name)
            except KeyError as error:
                raise ValueError(f"metrics: {error.args[0]}") from error
        _ = self.named_attacks  # refused before any work

    @cached_property
    def named_attacks(self) -> list[NamedAttack]:
        """The attacks, ready to run."""
        return parse_attacks(self.attacks, self.preset, self.budget or "paper", self.settings)

    def labels(self, num_classes: int) -> list[int]:
        """Return the classes to attack.

        Raises:
            ValueError: no such list, no class, one out of range, or one twice.
        """
        chosen: Sequence[int] = range(min(100, num_classes))
        if isinstance(self.classes, str):
            chosen = parse_classes(self.classes)
        elif self.classes is not None:
            chosen = self.classes
        return check_labels(chosen, num_classes)


def parse_classes(text: str) -> list[int]:
    """Read a list of classes such as ``0-99``, ``3,7,9`` or ``0-4,9``.

    Raises:
        ValueError: the text is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise ValueError(f"expected classes as 0-99 or 3,7,9, got {text!r}")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    return found


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
    attacked = private.of_classes(labels)
    networks = load_networks(
        target,
        options.target_name,
        evaluation_model,
        options.second_evaluation_model,
        options.embedding,
        options.extractor,
    )
    evaluator = Evaluator(target, prior, attacked, networks, options.metrics, options.public_images, options.seed)
    found = reconstruct(target, prior, labels, options)
    state, text = process_state(), [""]
    if state.is_main_process:
        report = LeakageReport(
            budget=budget_factor(options.budget or "paper"),
            attacks=evaluator.results(found),
            networks=evaluator.described(),
            utility=evaluator.utility(),
            other_threats=evaluator.other_threats(),
            labels=labels,
            label_names=[private.label_names[n] if private.label_names else str(n) for n in labels],
            images_per_class=options.images_per_class,
            seed=options.seed,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            data=DataInfo(
                name=private.name,
                identities=len(private.labels.unique()),
                images=len(private.labels),
                held_out_images=0 if private.held_labels is None else len(private.held_labels),
            ),
            target=describe(target, options.target_name),
        )
        report = replace(report, caveats=caveats(report))
        report = report.anonymous() if options.anonymize_labels else report
        report.save(Path(options.output_dir) / REPORT)
        text = [report.to_json()]
    if state.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(text)
    return LeakageReport.from_json(text[0])


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
