"""The leakage report: every number of an audit with what is needed to believe it, as a versioned file."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calor_hf._version import __version__
from calor_hf.core.checksum import checksum, plain
from calor_hf.core.files import parse_json, read_text, write_whole
from calor_hf.core.report_shape import report_error
from calor_hf.metrics import Measure

SCHEMA = 1
HEADLINE = "attack_accuracy@1"
IDENTITIES = "identities_recognized"


@dataclass(frozen=True)
class AttackResult:
    """What one attack got.

    Attributes:
        name: Of this attack with its settings, as the tables print it.
        attack: Registered name.
        settings: All of them.
        generator: Name and settings of the prior.
        cost: Passes, seconds and processes.
        adaptive: Whether it knows the defense, beyond the model's weights.
        measures: Its numbers.
        chance levels: Numbers of the same kind for images that know nothing of the person, by what they are.
        target_confidence: Mean probability that the target itself gives, which every attack drives up.
        parts: Names of the attacks that it is made of; none for most.
    """

    name: str
    attack: str
    settings: dict[str, Any]
    generator: dict[str, Any]
    cost: dict[str, float]
    adaptive: bool
    measures: list[Measure]
    chance_levels: dict[str, list[Measure]] = field(default_factory=dict)
    target_confidence: float = math.nan
    parts: list[str] = field(default_factory=list)

    def get(self, name: str) -> Measure | None:
        """The measure of this name, if there is one."""
        return next((measure for measure in self.measures if measure.name == name), None)

    def floor(self, name: str) -> float:
        """Highest of the chance levels of a measure; NaN where there is none."""
        values = [m.value for measures in self.chance_levels.values() for m in measures if m.name == name]
        return max((value for value in values if not math.isnan(value)), default=math.nan)


@dataclass(frozen=True)
class LeakageReport:
    """The result of an audit.

    Attributes:
        target: ``name``, ``model``, ``defense``, ``settings``, ``classes`` and ``parameters`` of the attacked model; of
            a folder, ``weights``: the SHA-256 of its weights.
        data: ``name``, ``people``, ``images``, ``held_out_images`` of the private data.
        networks: Name of each evaluating network by its role, and the evaluation model's own accuracy on held-out
            images.
        labels: Classes that were attacked.
        label_names: Their names; numbers, where they were anonymized.
        images_per_class: Reconstructions of each.
        seed: Of every draw.
        budget: Share of the published effort, 1 for all of it.
        attacks: Results.
        utility: Accuracy, likelihood and calibration of the target on held-out images.
        neighbors: Numbers of other threats, marked so.
        created: Date and time in UTC, ISO 8601.
        version: Of this library.
    """

    target: dict[str, Any]
    data: dict[str, Any]
    networks: dict[str, Any]
    labels: list[int]
    label_names: list[str]
    images_per_class: int
    seed: int
    budget: float
    attacks: list[AttackResult]
    utility: list[Measure] = field(default_factory=list)
    other_threats: list[Measure] = field(default_factory=list)
    created: str = ""
    version: str = __version__

    # Reading

    def worst(self, name: str = HEADLINE) -> AttackResult:
        """The attack that got most, by a measure of which more is leakage.

        Raises:
            ValueError: no attack has a number of this name.
        """
        scored = [(m.value, index) for index, a in enumerate(self.attacks) if (m := a.get(name)) is not None]
        scored = [(value, index) for value, index in scored if not math.isnan(value)]
        if not scored:
            raise ValueError(f"no attack of this report has a number {name}")
        return self.attacks[max(scored, key=lambda item: (item[0], -item[1]))[1]]

    @property
    def ensemble(self) -> AttackResult | None:
        """The attack that is made of others, whose people are the worst case; None: there is none."""
        return next((attack for attack in self.attacks if attack.parts and attack.get(IDENTITIES) is not None), None)

    # Files

    def to_json(self) -> str:
        """The report as text; the checksum in it tells later whether someone changed a number."""
        content = plain(dataclasses.asdict(self))
        whole = {"schema": SCHEMA, "checksum": checksum(content), **content}
        return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LeakageReport":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is cut off, was changed, is of a newer schema, or is something else; the message says
                which.
        """
        whole = parse_json(text, "the leakage report", Any)
        if not isinstance(whole, dict) or "schema" not in whole or "checksum" not in whole:
            raise ValueError("no leakage report: the fields schema and checksum are missing")
        schema, claimed = whole.pop("schema"), whole.pop("checksum")
        if not isinstance(schema, int) or schema > SCHEMA:
            raise ValueError(
                f"the report has schema {schema}, this version of calor_hf ({__version__}) reads up to {SCHEMA}; "
                "install a newer one"
            )
        if checksum(whole) != claimed:
            raise ValueError("the report was changed after it was written: its checksum does not fit; audit again")
        if problem := report_error(whole):
            raise ValueError(f"the report is damaged: {problem}")
        try:
            whole["attacks"] = [_attack(entry) for entry in whole["attacks"]]
            for name in ("utility", "other_threats"):
                whole[name] = [_measure(entry) for entry in whole[name]]
            return cls(**whole)
        except TypeError as error:
            raise ValueError(f"the report has a field too many ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write the report; the file is whole or not there."""
        write_whole(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "LeakageReport":
        """Read a report.

        Args:
            path: The file, or the folder of an audit.

        Raises:
            FileNotFoundError: there is none.
            ValueError: as :meth:`from_json`, with the path.
        """
        file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"no report at {file}; pass report.json or the folder of an audit")
        try:
            return cls.from_json(read_text(file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error

    @classmethod
    def merge(cls, parts: Sequence["LeakageReport"]) -> "LeakageReport":
        """One report of several audits of the same model, people and seed, with all their attacks.

        Raises:
            ValueError: nothing to merge, the parts are of different audits, or an attack comes twice with other
                numbers.
        """
        if not parts:
            raise ValueError("no reports to merge")
        first = parts[0]
        for name in ("target", "data", "networks", "labels", "images_per_class", "seed", "budget", "version"):
            if any(plain(getattr(part, name)) != plain(getattr(first, name)) for part in parts):
                raise ValueError(f"the reports differ in {name}, so their attacks cannot stand in one table")
        attacks: dict[str, AttackResult] = {}
        for attack in (attack for part in parts for attack in part.attacks):
            known = attacks.setdefault(attack.name, attack)
            if plain(dataclasses.asdict(known)["measures"]) != plain(dataclasses.asdict(attack)["measures"]):
                raise ValueError(f"the attack {attack.name!r} comes twice, with other numbers")
        return dataclasses.replace(first, attacks=list(attacks.values()))


def anonymous(report: LeakageReport) -> LeakageReport:
    """The same report with numbers instead of class names, which are people's."""
    return dataclasses.replace(report, label_names=[f"person {label}" for label in report.labels])


def _measure(entry: dict[str, Any]) -> Measure:
    numbers = {name: math.nan if entry[name] is None else entry[name] for name in ("value", "low", "high", "std")}
    identities = {int(k): math.nan if v is None else v for k, v in entry["by_identity"].items()}
    return Measure(**{**entry, **numbers, "by_identity": identities})


def _attack(entry: dict[str, Any]) -> AttackResult:
    chance_levels = {name: [_measure(one) for one in measures] for name, measures in entry["chance_levels"].items()}
    confidence = math.nan if entry["target_confidence"] is None else entry["target_confidence"]
    measures = [_measure(one) for one in entry["measures"]]
    return AttackResult(
        **{**entry, "measures": measures, "chance_levels": chance_levels, "target_confidence": confidence}
    )
