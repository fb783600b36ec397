"""Options of an audit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from calor_hf.attacks.base import CHUNK_SIZE, attacked_classes
from calor_hf.attacks.specs import DEFAULT_ATTACKS, NamedAttack, parse_attacks
from calor_hf.auditing.networks import ROLES, Network, load_network
from calor_hf.core.label_names import class_number
from calor_hf.generators import Generator
from calor_hf.metrics import METRICS
from calor_hf.targets.base import Target


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """Options of :func:`audit`; the metadata of each field say what it means."""

    second_evaluation_model: "Network | Target | nn.Module | str | None" = field(
        default=None, metadata={"help": "Another evaluation model; images that both recognize are then counted too"}
    )
    embedding: "Network | Target | nn.Module | str | None" = field(
        default=None,
        metadata={
            "help": "Network for verification: inception_resnet_vggface2 (of facenet-pytorch), folder or Hub id, or"
            " package.module:function that returns an nn.Module of images in [0, 1] to features"
        },
    )
    extractor: "Network | Target | nn.Module | str | None" = field(
        default=None,
        metadata={
            "help": "Network for image quality (FID, KID, PRDC): inception_fid (of pytorch-fid), or as --embedding;"
            " only the first gives what is called FID"
        },
    )
    control: "Target | str | None" = field(
        default=None,
        metadata={
            "help": "Undefended model that is attacked like the target, so that both are compared person by person:"
            " folder or Hub id; or auto, to train one with the target's own recipe"
        },
    )
    control_prior: "Generator[Any] | None" = field(
        default=None, metadata={"flags": (), "help": "Prior of the attacks on the control; default: the target's"}
    )
    skip_power: bool = field(
        default=False, metadata={"help": "Do not measure whether the audit could have found anything"}
    )
    attacks: Sequence[str] = field(
        default=DEFAULT_ATTACKS,
        metadata={
            "nargs": "+", "metavar": "ATTACK", "known": "calor_hf.attacks",
            "help": "Attacks: gmi, plg@calor (a preset) or plg:objective=ce,steps=300 (settings); see calor-hf list",
        },
    )  # fmt: skip
    classes: Sequence[int | str] | str | None = field(
        default=None,
        metadata={
            "help": "Classes to attack, by numbers from 0 on or by names, such as 0-99 or 3,anna,bob; name:3 is the"
            " class named 3, number:3 the class with that number; one of these is needed if they differ; default: the"
            " first 100 (synthetic faces: 16)"
        },
    )
    images_per_class: int = field(default=5, metadata={"help": "Reconstructions of each class"})
    preset: str = field(
        default="original",
        metadata={"help": "original, or calor: settings that the paper's tables most likely used"},
    )
    budget: str | float | None = field(
        default=None,
        metadata={
            "help": "paper, demo (a twentieth), or a factor of the published effort; default: paper (synthetic faces:"
            " 0.25)"
        },
    )
    settings: Sequence[str] = field(
        default=(), metadata={"metavar": "NAME=VALUE", "help": "Settings of the attacks (calor-hf list ATTACK)"}
    )
    metrics: Sequence[str] | None = field(
        default=None,
        metadata={
            "nargs": "+", "metavar": "NAME", "known": "calor_hf.metrics",
            "help": "Metrics (calor-hf list metrics); default: all that the networks allow, except slow ones",
        },
    )  # fmt: skip
    public_images: "Dataset[Tensor] | None" = field(
        default=None,
        metadata={"flags": (), "help": "Public images, for attacks and metrics that learn about the target first"},
    )
    target_name: str = field(default="", metadata={"flags": (), "help": "Name of the target in the report"})
    anonymize_labels: bool = field(
        default=False, metadata={"help": "Numbers instead of class names, which may be names of people"}
    )
    chunk_size: int = field(default=CHUNK_SIZE, metadata={"help": "Images attacked at a time"})
    seed: int = field(default=0, metadata={"help": "Seed of every draw"})
    output_dir: str = field(
        default="outputs/audit", metadata={"help": "Folder of the report, the page, and a sub-folder for each attack"}
    )
    resume: bool = field(default=False, metadata={"help": "Continue an earlier audit"})
    overwrite: bool = field(default=False, metadata={"help": "Delete earlier results of these attacks first"})

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for contradictory options, unknown metrics and unknown attacks."""
        if min(self.images_per_class, self.chunk_size) < 1 or self.seed < 0:
            raise ValueError(
                "expected images_per_class and chunk_size >= 1 and seed >= 0, got "
                f"{self.images_per_class}, {self.chunk_size} and {self.seed}"
            )
        if self.control_prior is not None and self.control is None:
            raise ValueError("control_prior is the prior of the attacks on the control; pass control, too")
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

    def labels(self, num_classes: int, class_names: Sequence[str] = ()) -> list[int]:
        """Return the numbers of the classes to attack.

        Raises:
            ValueError: no such list, no class, an unknown name, a number out of range, or a class twice.
        """
        chosen: Sequence[int | str] = range(min(100, num_classes)) if self.classes is None else self.classes
        if isinstance(chosen, str):
            return attacked_classes(parse_classes(chosen, class_names), num_classes)
        numbers = [class_number(one, class_names) if isinstance(one, str) else one for one in chosen]
        return attacked_classes(numbers, num_classes)


def parse_classes(text: str, class_names: Sequence[str] = ()) -> list[int]:
    """Read a list of classes such as ``0-99``, ``3,7,9``, ``0-4,anna``, ``name:3`` or ``number:3``.

    Raises:
        ValueError: the text is not such a list, or a word is both a number and the name of another class.
    """
    found, words = list[int](), text.split(",")
    commas = max((name.count(",") for name in class_names), default=0)  # a name may have some
    while words:
        longest = (size for size in range(1 + commas, 1, -1) if ",".join(words[:size]).strip() in class_names)
        size = next(longest, 1)
        found += _classes(",".join(words[:size]).strip(), class_names)
        words = words[size:]
    return found


def _classes(word: str, class_names: Sequence[str]) -> list[int]:
    kind, _, rest = word.partition(":")
    match = re.fullmatch("([0-9]+)(?:-([0-9]+))?", rest if kind == "number" else word)
    numbers = list(range(int(match[1]), int(match[2] or match[1]) + 1)) if match else []
    if numbers and (kind == "number" or word not in class_names):
        return numbers
    named = class_number(rest if kind == "name" else word, class_names)
    if numbers and numbers != [named]:
        raise ValueError(f"{word!r} is a number and the name of the class {named}; pass number:{word} or name:{word}")
    return [named]


def load_networks(
    target: Target, evaluation_model: "Network | Target | nn.Module | str", options: AuditOptions,
    identities: Tensor | None = None,
) -> dict[str, Network]:  # fmt: skip
    """Load the networks of an audit, by role: ``ROLES`` and ``target``.

    Args:
        target: The attacked model.
        evaluation_model: As for :func:`~calor_hf.auditing.audit.audit`.
        options: The other networks.
        identities: For data with decoys, the (identities,) numbers of the identities in the data, in the order in which
            evaluation models shall give their scores.

    Raises:
        ValueError: an evaluation model has other classes, or a network is not available.
    """
    sources = (evaluation_model, options.second_evaluation_model, options.embedding, options.extractor)
    networks = {role: load_network(source) for role, source in zip(ROLES, sources, strict=True) if source is not None}
    for role in ROLES[:2]:
        if role in networks and identities is not None:
            networks[role] = networks[role].for_identities(identities, role.replace("_", " "))
        elif role in networks:
            networks[role] = networks[role].for_classes(target.class_names, role.replace("_", " "))
    networks["target"] = load_network(target, options.target_name)
    return networks
