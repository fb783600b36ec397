"""Leakage report: the numbers of an audit with their uncertainty and caveats, as a versioned JSON file."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from calor_hf._version import __version__
from calor_hf.core.files import parse_json, read_text, write_whole
from calor_hf.core.plain_text import without_paths
from calor_hf.core.reconstruction import Cost
from calor_hf.core.validation import MAX_NUMBER

SCHEMA = 3
REPORT = "report.json"
HEADLINE, IDENTITIES = "attack_accuracy@1", "identities_recognized"
"""Names of the two measures that summarize an attack: share of images, and share of identities, recognized."""
MATCH, MATCHED = "identity_match@1", "identities_matched"
"""Names of their exact counterparts for drawn faces, which need no evaluation model."""
EMBEDDING = "embedding_accuracy@1"
"""Name of the share of images recognized by the embedding, which did not learn the private images."""
LEADING = (MATCH, EMBEDDING, HEADLINE)
"""Measures of single images that can carry the verdict, the most trusted first; power is measured by the same."""
_RECOGNIZERS = {MATCH: "identity_match", EMBEDDING: "embedding", HEADLINE: "evaluation_model"}
SYNTHETIC = "synthetic faces"
"""Name that reports give to the embedded data set; whether images were drawn is :attr:`DataInfo.drawn`."""
_STRICT = ConfigDict(extra="forbid", strict=True)


MODE_RANKING = "mode_ranking"
"""Name of the share of classes whose private identity is ranked first among the k of a model with decoys."""
POOL, GALLERY, FULL_GALLERY = "pool", "gallery", "gallery_with_decoys"
"""Names of the shares of classes whose private identity is named by an attacker who holds photographs."""
LEAST_PUBLISHED = 20
"""Classes from which shares of a model with decoys may be published."""


def guesses(leading: str, count: int = 1) -> str:
    """Return the name of the share of people recognized in the first ``count`` images that an attacker would submit.

    ``leading`` is the measure of :data:`LEADING` that decides whether an image is recognized.
    """
    return f"{'best_guess' if count == 1 else f'guesses@{count}'}/{_RECOGNIZERS[leading]}"


def decoy_hits(leading: str) -> str:
    """Return the name of the share of images that show any identity of the class, private or decoy."""
    return f"decoy_hits/{_RECOGNIZERS[leading]}"


def false_matches(leading: str) -> str:
    """Return the name of the share of real images of decoys that are taken for the private identity of their class."""
    return f"false_matches/{_RECOGNIZERS[leading]}"


def _finite_or_nan(value: Any) -> Any:
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        raise ValueError(f"must be at most {MAX_NUMBER:g} in absolute value")
    return math.nan if value is None else value


def _folder_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise ValueError("not a valid attack name: it must be usable as the name of a folder")
    return name


Number = Annotated[float, BeforeValidator(_finite_or_nan)]  # null in JSON is NaN
Count = Annotated[int, Field(ge=0, lt=2**63)]
Direction = Literal["leakage", "privacy", "neither"]
AttackName = Annotated[str, AfterValidator(_folder_name)]
Kind = Literal["leaks", "found nothing", "inconclusive"]


@dataclass(frozen=True)
class Measure:
    """One number with its uncertainty.

    Attributes:
        name: As in the tables, such as ``attack_accuracy@1``.
        value: The number; NaN if it could not be computed, and :attr:`note` says why.
        unit: ``share`` in [0, 1], or another unit.
        direction: Meaning of larger values: more ``leakage``, more ``privacy``, or ``neither``.
        images: Number of reconstructions it is computed from.
        identities: Number of identities these are meant to show.
        low: Lower end of the 95 % interval over identities, or NaN; ``high`` is the upper one.
        std: Standard deviation over restart slots (the ± of published tables), or NaN.
        by_identity: The number for each identity, by label.
        note: Remark for the reader.
        caveat: Sentence for the report's caveats, if the number misleads; without paths and names.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    value: Number
    unit: str
    direction: Direction
    images: Count
    identities: Count
    low: Number = math.nan
    high: Number = math.nan
    std: Number = math.nan
    by_identity: dict[Count, Number] = field(default_factory=dict)
    note: str = ""
    caveat: str = ""

    def failed(self, reason: str) -> "Measure":
        """Return the same measure without a number; ``reason`` becomes its note."""
        nan = math.nan
        return replace(self, value=nan, low=nan, high=nan, std=nan, by_identity={}, note=reason, caveat="")


@dataclass(frozen=True)
class AttackResult:
    """Results of one attack.

    Attributes:
        name: Attack with its settings, as in the tables; also the name of its folder.
        attack: Registered name.
        prior: Name of the generator.
        adaptive: Whether the attack knows the defense, beyond the model's weights.
        effort: Least ratio of a setting that sets the effort (steps, candidates) to that of the attack's source.
        changed: Names of other settings that differ from the source's.
        prior_digest: SHA-256 of the weights and configuration of the generator.
        chance_levels: Numbers of the same kind for images that know nothing of the identity, by their source.
        target_confidence: Mean probability given by the target itself, which every attack maximizes.
        parts: Names of the attacks in an ensemble; empty for other attacks.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: AttackName
    attack: str
    settings: dict[str, Any]
    prior: str
    prior_settings: dict[str, Any]
    cost: Cost
    adaptive: bool
    measures: list[Measure]
    chance_levels: dict[str, list[Measure]] = field(default_factory=dict)
    target_confidence: Number = math.nan
    parts: list[str] = field(default_factory=list)
    effort: Number = 1.0
    changed: list[str] = field(default_factory=list)
    prior_digest: str | None = None

    def get(self, name: str) -> Measure | None:
        """Return the measure of this name that has a value, or None."""
        return next((one for one in self.measures if one.name == name and not math.isnan(one.value)), None)

    def chance_level(self, name: str) -> float:
        """Return the highest chance level of a measure, or NaN."""
        values = [one.value for measures in self.chance_levels.values() for one in measures if one.name == name]
        return max((value for value in values if not math.isnan(value)), default=math.nan)


@dataclass(frozen=True)
class TargetInfo:
    """The attacked model.

    Attributes:
        name: As given by the user; may be a path.
        model: Class of the model.
        defense: Name of the defense, or ``none``; ``settings`` are its settings.
        weights: SHA-256 of the weight files when they were loaded, or None for a model in memory.
        processor: The same of the settings of its image processor.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    model: str
    defense: str
    settings: dict[str, Any]
    classes: Count
    parameters: Count
    weights: str | None = None
    processor: str | None = None


@dataclass(frozen=True)
class DataInfo:
    """The private data: name of the data set, numbers of identities, training images and held-out images.

    ``drawn`` tells whether the training images are faces drawn by this library, which was checked by drawing them
    again: the identities do not exist, and the truth about them is known. ``digest`` is a SHA-256 of the images with
    their class names, which is not to be published. With decoys, ``identities_per_class`` is above 1, and
    ``exchangeability`` is the statement of ``decoys check``, or empty.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    identities: Count
    images: Count
    held_out_images: Count
    drawn: bool = False
    digest: str | None = None
    identities_per_class: Count = 1
    exchangeability: str = ""


@dataclass(frozen=True)
class NetworkInfo:
    """A network that evaluated reconstructions.

    Attributes:
        name: Name, or folder or Hub id.
        accuracy: Share of held-out images of the attacked people that it assigns to the right one; None if unknown.
        same_data: Whether it learned private images as the target did: it classifies the target's classes, or its
            folder says so.
        digest: SHA-256 of its weights and configuration.
        seen: Number of held-out images that it was trained on, as far as its folder says.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: str
    accuracy: Measure | None = None
    same_data: bool = True
    digest: str | None = None
    seen: Count = 0


@dataclass(frozen=True)
class PowerCheck:
    """Measurement of whether the audit could have found anything.

    Attributes:
        name: ``resolution``: private images at the size of the prior. ``prior``: private images projected onto the
            prior. ``guided``: the attack guided by the truth. ``control``: the attack on an undefended model.
        images: Share of these images that is recognized, under the name of the measure: one of :data:`LEADING`.
        identities: Share of identities recognized in at least one of them.
        chance: Chance level of ``images``; ``chance_identities`` is that of ``identities``.
        note: Remark for the reader; without paths and class names.
        faults: Sentences on what the prior lacks, such as color, for the caveats.
        difference: For ``control``, its share minus the target's, paired by identity.
        digest: For ``control``, SHA-256 of its weights and configuration.
    """

    __pydantic_config__: ClassVar = _STRICT
    name: Literal["resolution", "prior", "guided", "control"]
    images: Measure
    identities: Measure
    chance: Number = math.nan
    chance_identities: Number = math.nan
    note: str = ""
    faults: list[str] = field(default_factory=list)
    difference: Measure | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Conclusion of an audit, computed from the rest of the report.

    Attributes:
        kind: ``leaks``; ``found nothing`` although it would have; or ``inconclusive``: the audit had no power.
        sentences: Text for readers who do not know the code, without paths and class names; the first is the headline.
        reasons: If inconclusive, what failed and what to do about it.
        attack: Name of the attack that it rests on; an empty string if no attack was evaluated.
        measure: Name of the measure that it rests on; an empty string if no attack was evaluated.
    """

    __pydantic_config__: ClassVar = _STRICT
    kind: Kind = "inconclusive"
    sentences: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    attack: str = ""
    measure: str = ""


@dataclass(frozen=True)
class LeakageReport:
    """The result of an audit.

    Attributes:
        networks: By role: ``target``, ``evaluation_model``, ``second_evaluation_model``, ``embedding``, ``extractor``.
        labels: Attacked classes.
        label_names: Their names; numbers if they were anonymized.
        images_per_class: Reconstructions of each class.
        utility: Accuracy, likelihood and calibration of the target on held-out images.
        other_threats: Measures of other threats, such as membership inference.
        power: Measurements of whether the audit could have found anything.
        verdict: The conclusion, as :func:`calor_hf.auditing.verdict.concluded` computes it.
        caveats: Sentences to know before relying on the numbers; without paths and class names.
        created: Date and time in UTC, ISO 8601.
        version: Version of this library.
    """

    __pydantic_config__: ClassVar = _STRICT
    target: TargetInfo
    data: DataInfo
    networks: dict[str, NetworkInfo]
    labels: list[Count]
    label_names: list[str]
    images_per_class: Count
    seed: Count
    attacks: list[AttackResult]
    utility: list[Measure] = field(default_factory=list)
    other_threats: list[Measure] = field(default_factory=list)
    power: list[PowerCheck] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    caveats: list[str] = field(default_factory=list)
    created: str = ""
    version: str = __version__

    @property
    def synthetic(self) -> bool:
        """Whether the attacked identities were drawn by this library and do not exist."""
        return self.data.drawn

    @property
    def effort(self) -> float:
        """The least effort of an attack, as a share of its source's; NaN without attacks."""
        return min((attack.effort for attack in self.attacks), default=math.nan)

    @property
    def strongest(self) -> AttackResult | None:
        """Attack that the verdict rests on, or None."""
        return next((attack for attack in self.attacks if attack.name == self.verdict.attack), None)

    def anonymous(self) -> "LeakageReport":
        """Return a copy with numbers instead of class names, and without names of model, data and networks.

        Class names may be names of people; the others may be paths, which name users, as may settings and notes.
        """
        roles = {one.name: role.replace("_", " ") for role, one in self.networks.items() if one.name}

        def nameless(measure: Measure) -> Measure:
            note = measure.note
            for name in sorted(roles, key=len, reverse=True):
                note = note.replace(name, f"the {roles[name]}")
            return replace(measure, note=without_paths(note))

        found = self._with_measures(nameless)
        return replace(
            found,
            label_names=[f"person {label}" for label in self.labels],
            target=replace(self.target, name="", settings=without_paths(self.target.settings)),
            data=replace(self.data, name=SYNTHETIC if self.synthetic else ""),
            networks={role: replace(one, name="") for role, one in found.networks.items()},
            attacks=[
                replace(one, settings=without_paths(one.settings), prior_settings=without_paths(one.prior_settings))
                for one in found.attacks
            ],
        )

    def publishable(self) -> "LeakageReport":
        """Return a copy without class names, per-identity numbers, paths, free text and the digest of the images.

        Numbers per class tell which identities of a model with decoys are private. Its copy has shares over
        :data:`LEAST_PUBLISHED` classes or more, rounded to 1 %, and no other number that depends on the private images.

        Raises:
            ValueError: a model with decoys, audited on fewer classes.
        """
        known = self.anonymous()
        if self.with_decoys:
            if len(self.labels) < LEAST_PUBLISHED:
                raise ValueError(
                    f"a report of a model with decoys may be published from {LEAST_PUBLISHED} classes on, and "
                    f"{len(self.labels)} were attacked: numbers of few classes tell which identities are private; "
                    "audit more classes, or publish without the report"
                )
            known = known.rounded()
            attacks = [
                replace(
                    one,
                    measures=_published(one.measures),
                    chance_levels={name: _published(some) for name, some in one.chance_levels.items()},
                )
                for one in known.attacks
            ]
            known = replace(
                known,
                attacks=attacks,
                power=[replace(one, note="", faults=[]) for one in known.power],
                utility=_published(known.utility),
                other_threats=list(filter(_over_many, known.other_threats)),
            )
        known = known._with_measures(lambda one: replace(one, by_identity={}, note=""))
        return replace(
            known,
            target=replace(known.target, settings={}),
            data=replace(known.data, digest=None),
            attacks=[replace(attack, settings={}, prior_settings={}) for attack in known.attacks],
        )

    @property
    def with_decoys(self) -> bool:
        """Whether the model learned decoys in addition to private identities."""
        return self.data.identities_per_class > 1

    @property
    def secret(self) -> bool:
        """Whether numbers for each class tell which identities of a model with decoys are private."""
        return self.with_decoys and any(one.by_identity for attack in self.attacks for one in attack.measures)

    def rounded(self) -> "LeakageReport":
        """Return a copy with all shares and their intervals rounded to 1 %, except those by identity."""

        def change(one: Measure) -> Measure:
            numbers = {name: round(getattr(one, name), 2) for name in ("value", "low", "high", "std")}
            return replace(one, **numbers) if one.unit == "share" else one

        found = self._with_measures(change)
        power = [
            replace(one, chance=round(one.chance, 2), chance_identities=round(one.chance_identities, 2))
            for one in found.power
        ]
        return replace(found, power=power)

    def _with_measures(self, change: Callable[[Measure], Measure]) -> "LeakageReport":
        """Return a copy with every measure of networks, attacks, power, utility and other threats changed."""

        def changed(measures: list[Measure]) -> list[Measure]:
            return [change(one) for one in measures]

        return replace(
            self,
            networks={
                role: replace(one, accuracy=one.accuracy and change(one.accuracy))
                for role, one in self.networks.items()
            },
            attacks=[
                replace(
                    attack,
                    measures=changed(attack.measures),
                    chance_levels={name: changed(measures) for name, measures in attack.chance_levels.items()},
                )
                for attack in self.attacks
            ],
            power=[
                replace(
                    one,
                    images=change(one.images),
                    identities=change(one.identities),
                    difference=one.difference and change(one.difference),
                )
                for one in self.power
            ],
            utility=changed(self.utility),
            other_threats=changed(self.other_threats),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with schema version and a checksum that detects edits."""
        content = plain(dataclasses.asdict(self))
        return {"schema": SCHEMA, "checksum": checksum(content), **content}

    def to_json(self) -> str:
        """Return :meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LeakageReport":
        """Read the result of :meth:`to_json`.

        Raises:
            ValueError: the text is cut off, was changed, has another schema, or is something else; the message says
                which.
        """
        whole = parse_json(text, "the leakage report", Any)
        if not isinstance(whole, dict) or "schema" not in whole or "checksum" not in whole:
            raise ValueError("not a leakage report: the fields schema and checksum are missing")
        schema, claimed = whole.pop("schema"), whole.pop("checksum")
        if schema != SCHEMA:
            older = isinstance(schema, int) and schema < SCHEMA
            raise ValueError(
                f"the report has schema {schema}, this version of calor_hf ({__version__}) reads schema {SCHEMA}; "
                + ("audit again" if older else "install a newer one")
            )
        if checksum(whole) != claimed:
            raise ValueError("the report was changed after it was written: its checksum does not match; audit again")
        report: LeakageReport = from_plain(cls, whole, "the report")
        if len(report.labels) != len(report.label_names):
            raise ValueError(
                f"the report is damaged: it has {len(report.labels)} labels and {len(report.label_names)} names"
            )
        return report

    def save(self, path: str | Path) -> None:
        """Write the report atomically."""
        write_whole(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "LeakageReport":
        """Read a report from its file, or from the folder of an audit.

        Raises:
            FileNotFoundError: there is no report.
            ValueError: as :meth:`from_json`, with the path.
        """
        file = Path(path) / REPORT if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no report at {file}; pass {REPORT} or the folder of an audit")
        try:
            return cls.from_json(read_text(file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def _published(measures: list[Measure]) -> list[Measure]:
    """Shares of a model with decoys that may be published: those over all images of enough classes.

    How many images or classes another share is over may tell which identities are private. A ranking of modes is over
    the images of one part of an ensemble, as many for each class.
    """
    images, people = (max((getattr(one, name) for one in measures), default=0) for name in ("images", "identities"))
    return [
        one
        for one in measures
        if _over_many(one) and ((one.images, one.identities) == (images, people) or one.name.startswith(MODE_RANKING))
    ]


def _over_many(measure: Measure) -> bool:
    return measure.unit == "share" and measure.identities >= LEAST_PUBLISHED


def plain(value: Any) -> Any:
    """Return a value as JSON has it: text keys, null for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a dictionary of plain values, independent of the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def from_plain(cls: Any, content: Any, name: str) -> Any:
    """Build a dataclass from plain values, checked against its annotations.

    Raises:
        ValueError: ``content`` does not fit; the message starts with ``name`` and says where.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, value = ".".join(map(str, first["loc"]))[:200], repr(first["input"])
        raise ValueError(
            f"{name} is damaged: {place}: {first['msg'].removeprefix('Value error, ')}, got {value[:80]}"
        ) from error
