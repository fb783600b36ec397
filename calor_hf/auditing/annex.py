"""Annex for a data protection officer: an audit, and declarations of its operator, as numbered sections."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from calor_hf.attacks import ATTACKS
from calor_hf.auditing.html import rendered
from calor_hf.auditing.verdict import leading
from calor_hf.core.report import SCHEMA, AttackResult, LeakageReport, Measure
from calor_hf.core.report_text import POWER_HEAD, SHARES, percent, power_rows, with_interval

Source = Literal["audit", "declaration", "text"]
ACCESS = {
    "white_box": "the weights",
    "scores": "the scores of images of its choice",
    "labels": "the labels of images of its choice",
}
"""Access of an attacker, by that of an attack."""
RELEASES = {
    "internal": "", "labels": "labels", "scores": "scores", "open weights": "white_box",
}  # fmt: skip
"""Access that a declared release gives to everyone, by its name."""
QUOTE = (
    "EDPB Opinion 28/2024, paragraph 55: successful testing which covers widely known, state-of-the-art attacks can "
    "only be evidence for the resistance to those attacks."
)
NO_DETERMINATION = "This annex is no determination that the model is anonymous. That assessment is the controller's."
RETEST = (
    "a new attack or a stronger prior is published", "the model is fine-tuned, adapted, merged or distilled",
    "it is quantized, pruned or converted", "people join or leave its data", "the release becomes more open",
    "another model of the same people is released",
)  # fmt: skip
"""Events after which the audit no longer describes the model."""
_MEMBERSHIP = "membership_"
_IN_WORDS = {
    "membership_auc": "training images ranked above others (50 % by guessing):",
    "membership_tpr@FPR=1e-2": "training images found with 1 % of others taken for them (1 % by guessing):",
}


def _ask(text: str, **more: Any) -> Any:
    return field(default="", metadata={"help": text, **more})


@dataclass(frozen=True, kw_only=True)
class Declarations:
    """Answers of the operator, which an audit cannot determine; an empty one is shown as unanswered."""

    operator: str = _ask("Organization that is responsible for the model, with an address for questions.")
    purpose: str = _ask("Purpose of the model, and of its training on these people.")
    data_categories: str = _ask(
        "Categories of personal data in the training images. Faces are biometric data if they serve to identify."
    )
    release: Literal["", "internal", "labels", "scores", "open weights"] = _ask(
        "Access of others to the model: internal (no one else), labels, scores, or open weights."
    )
    prior_overlap: str = _ask("Whether the attacker's prior may know people of the model, and how that was checked.")
    other_tests: str = _ask("Tests against the other threats of section 4: tester, date, and place of the record.")
    next_test: str = _ask("Date of the next audit.")
    controls: str = _ask("Controls outside the model: limits of queries, rounding of scores, access, contracts.")
    residual_risk: str = _ask("Assessment of the risk that remains, and who accepts it.")
    information: str = _ask("Information that deployers and data subjects receive.")
    tester: str = _ask("Name and date of the tester.")
    reviewer: str = _ask("Name and date of the reviewer.")
    officer: str = _ask("Name and date of the data protection officer.")


@dataclass(frozen=True)
class Line:
    """A field of the annex.

    Attributes:
        name: Name of the field.
        text: Its content; empty if it is unanswered.
        source: ``audit``, ``declaration`` of the operator, or ``text`` that is the same in each annex.
    """

    name: str
    text: str
    source: Source = "audit"


@dataclass(frozen=True)
class Table:
    """A table: its head, then its rows."""

    title: str
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A numbered section: tables, then fields."""

    number: int
    title: str
    lines: Sequence[Line]
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Annex:
    """The annex of one audit.

    Attributes:
        sections: Sections 1 to 13.
        model: Class of the model.
        created: Date of the audit.
    """

    sections: Sequence[Section]
    model: str
    created: str

    @property
    def unanswered(self) -> list[str]:
        """Names of the fields without an answer."""
        return [line.name for section in self.sections for line in section.lines if not line.text]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; an unanswered field has a null text."""
        return {
            "sections": [
                {
                    "number": one.number,
                    "title": one.title,
                    "fields": [
                        {"name": line.name, "text": line.text or None, "source": line.source} for line in one.lines
                    ],
                    "tables": [{"title": some.title, "rows": some.rows} for some in one.tables],
                }
                for one in self.sections
            ],
        }

    def to_html(self) -> str:
        """Return one self-contained page, made to be printed."""
        return rendered("annex.html", annex=self)


def annex_of(report: LeakageReport, declared: Declarations, undefended: float = math.nan) -> Annex:
    """Write the annex of an audit.

    Names of people do not enter it. For a model with decoys, it holds only the publishable report, so it does not
    reveal which identities are private.

    Args:
        report: The report.
        declared: Answers of the operator.
        undefended: Test accuracy of an undefended model of the same people, or NaN.

    Raises:
        ValueError: the report is of a model with decoys, and of too few classes.
    """
    known = report.publishable() if report.with_decoys else report.anonymous()
    # With decoys, the checksum of the numbers for each class would confirm a guess of the assignment.
    checksum = (known if report.with_decoys else report).to_dict()["checksum"]
    parts = (
        ("Identification", _identification(known, checksum, declared)),
        ("Processing", _processing(known, declared)),
        ("Release", _release(known, declared)),
        ("Coverage: threats of EDPB Opinion 28/2024, paragraph 55", [_declared(declared, "other_tests")]),
        ("Threat model of each attack", [_declared(declared, "prior_overlap")]),
        ("Scope", _scope(known, declared)),
        ("Results", [*_conclusions(known), _worst(known)]),
        ("Defense", _defense(known, undefended)),
        ("Controls outside the model", [_declared(declared, "controls")]),
        ("Residual risk", _risk(known, declared)),
        ("When to test again", [Line(f"retest {n}", text, "text") for n, text in enumerate(RETEST, start=1)]),
        ("Signatures", [_declared(declared, name) for name in ("tester", "reviewer", "officer")]),
        ("Information for deployers and data subjects", [_declared(declared, "information")]),
    )
    power = power_rows(known)
    tables = {
        4: [Table("Threats and tests", _coverage(known))],
        5: [Table("Attackers", _threat_models(known))],
        7: [
            Table("Recognized people and images", _results(known)),
            *([Table("Whether the audit could have found anything", [POWER_HEAD, *power])] if power else []),
        ],
    }
    sections = [
        Section(number, title, lines, tables.get(number, ())) for number, (title, lines) in enumerate(parts, start=1)
    ]
    return Annex(sections, known.target.model, known.created)


def _declared(declared: Declarations, name: str) -> Line:
    return Line(name.replace("_", " "), str(getattr(declared, name)).strip(), "declaration")


def _identification(report: LeakageReport, checksum: str, declared: Declarations) -> list[Line]:
    return [
        Line("weights", f"SHA-256 {report.target.weights}" if report.target.weights else ""),
        Line("report", f"SHA-256 {checksum}, schema {SCHEMA}; calor-hf report AUDIT --verify MODEL checks both"),
        Line("tool", f"calor_hf {report.version}"),
        Line("date of the audit", report.created),
        _declared(declared, "operator"),
    ]


def _processing(report: LeakageReport, declared: Declarations) -> list[Line]:
    data, k = report.data, report.data.identities_per_class
    return [
        _declared(declared, "purpose"),
        _declared(declared, "data_categories"),
        Line("people", f"{report.target.classes} classes, one person each" + f", and {k - 1} decoys each" * (k > 1)),
        Line("images given to the audit", f"{data.images} for training, {data.held_out_images} held out"),
    ]


def _release(report: LeakageReport, declared: Declarations) -> list[Line]:
    lines = [_declared(declared, "release")]
    tried = {_access(one) for one in report.attacks}
    opened = RELEASES.get(declared.release, "")
    if opened and opened not in tried:
        lines.append(
            Line(
                "tested for this release",
                f"no: no attack had {ACCESS[opened]}, which this release gives to everyone. Attacks with less access "
                "are no evidence for it",
            )
        )
    return lines


def _access(attack: AttackResult) -> str:
    return str(ATTACKS.get(attack.attack).access)


def _coverage(report: LeakageReport) -> list[list[str]]:
    """Rows of threat, status, reason or result, and identifiers."""
    member = [one for one in report.other_threats if one.name.startswith(_MEMBERSHIP)]
    found = "; ".join(
        f"{_IN_WORDS.get(one.name, one.name)} {with_interval(one)}" for one in member if not math.isnan(one.value)
    )
    status = "executed in part" if found else "not run"
    inversion = ", ".join(one.name for one in report.attacks)
    return [
        ["threat", "status", "result, or reason", "known as"],
        ["(i) membership inference", status, found or "the audit had no held-out images", "AML.T0024.000, ML04:2023"],
        ["(i) attribute inference", *_attributes(report), ""],
        ["(ii) exfiltration", "not run", "a matter of systems and access, not of the weights", ""],
        ["(iii) regurgitation of training data", "not run", "a classifier puts out scores, and no images", ""],
        [
            "(iv) model inversion", "executed" if inversion else "not run", inversion or "no attack was run",
            "NISTAML.032, AML.T0024.001, ML03:2023, AITG-MOD-05",
        ],
        ["(v) reconstruction", "not run", "from gradients, which a release does not give", "NISTAML.032"],
    ]  # fmt: skip


def _attributes(report: LeakageReport) -> tuple[str, str]:
    found = [one for attack in report.attacks if (one := attack.get("attribute_accuracy"))]
    if not found:
        return "not run", "attributes of rebuilt images were not compared"
    return "executed in part", "attributes of rebuilt images: " + "; ".join(map(with_interval, found))


def _threat_models(report: LeakageReport) -> list[list[str]]:
    rows = [["attack", "has", "knows the defense", "prior", "images through the target", "with gradient"]]
    for one in report.attacks:
        cost = one.cost
        passes = f"{cost.target_passes:,}", f"{cost.target_gradients:,}"
        rows.append([one.name, ACCESS[_access(one)], "yes" if one.adaptive else "no", one.prior, *passes])
    return rows


def _scope(report: LeakageReport, declared: Declarations) -> list[Line]:
    people = f"{len(report.labels)} of {report.target.classes}, {report.images_per_class} images of each"
    lines = [Line("people attacked", people), Line("seed", str(report.seed))]
    for one in report.attacks:
        changed = f"; changed: {', '.join(one.changed)}" if one.changed else ""
        lines.append(Line(f"effort of {one.name}", f"{percent(one.effort)} of its source's{changed}"))
    return [*lines, _declared(declared, "next_test")]


def _conclusions(report: LeakageReport) -> list[Line]:
    texts = [*report.verdict.sentences, *report.verdict.reasons]
    lines = [Line(f"conclusion {n}", text) for n, text in enumerate(texts, start=1)]
    return [Line("verdict", report.verdict.kind), *lines]


def _results(report: LeakageReport) -> list[list[str]]:
    rows = [["share of", "attack", "value and 95 % interval", "by chance", "over"]]
    for attack in report.attacks:
        for one in attack.measures:
            meaning = SHARES.get(one.name, _verification(one))
            if meaning and not math.isnan(one.value):
                by, over = _recognizer(one), f"{one.images} images of {one.identities} people"
                chance = percent(attack.chance_level(one.name))
                rows.append([meaning + by, attack.name, with_interval(one), chance, over])
    return rows


def _recognizer(measure: Measure) -> str:
    """Name of the network that recognizes, for titles without it; ``best_guess/embedding`` has one."""
    _, _, name = measure.name.partition("/")
    return f" ({name.replace('_', ' ')})" if name else ""


def _verification(measure: Measure) -> str:
    name, _, rate = measure.name.partition("@FAR=")
    accepted = {"verified": "rebuilt", "genuine_accepted": "real"}.get(name)
    return f"{accepted} images accepted by face verification at {rate} false acceptances" if accepted else ""


def _worst(report: LeakageReport) -> Line:
    """Return the person with the most recognized images, by any attack, and the number of others with as many."""
    name = "worst single person"
    if report.with_decoys:
        return Line(name, "not stated: numbers of one class tell which of its identities is private")
    lead = leading(report)
    measures = [(one, attack) for attack in report.attacks if (one := attack.get(lead)) and one.by_identity]
    if not measures:
        return Line(name, "")
    worst, attack = max(measures, key=lambda pair: max(pair[0].by_identity.values()))
    share = max(worst.by_identity.values())
    people = [label for label, value in worst.by_identity.items() if value == share]
    levels = [one for some in attack.chance_levels.values() for one in some if one.name == lead]
    chance = max((value for one in levels for value in one.by_identity.values()), default=math.nan)
    others = f" and {len(people) - 1} others" if len(people) > 1 else ""
    return Line(
        name,
        f"class {people[0]}{others}: {percent(share)} of the images of {attack.name} are recognized; by chance "
        f"{percent(chance)} of the worst person's",
    )


def _defense(report: LeakageReport, undefended: float) -> list[Line]:
    target = report.target
    accuracy = next((one for one in report.utility if one.name == "accuracy"), None)
    settings = ", ".join(f"{name} = {value}" for name, value in target.settings.items())
    known = accuracy is not None and not math.isnan(accuracy.value)
    cost = math.nan if accuracy is None else 100 * (undefended - accuracy.value)
    lost = "" if math.isnan(cost) else f"{cost:.1f} points less than the undefended model"
    if target.defense == "none":
        lost = "not applicable: no defense"
    images, parameters = report.data.images, target.parameters
    ratio = (
        f"{images} images given to the audit, {parameters:,} parameters: {parameters / max(1, images):.0f} per image"
    )
    return [
        Line("defense", target.defense + (f" ({settings})" if settings else "")),
        Line("test accuracy", with_interval(accuracy) if known else ""),
        Line("accuracy cost", lost),
        Line("training images and parameters", ratio),
    ]


def _risk(report: LeakageReport, declared: Declarations) -> list[Line]:
    sentences = [QUOTE, NO_DETERMINATION, *dict.fromkeys(report.caveats)]
    texts = [Line(f"limit {n}", text, "text") for n, text in enumerate(sentences, start=1)]
    return [_declared(declared, "residual_risk"), *texts]


def form() -> str:
    """Return the form of :class:`Declarations` as YAML, to be filled in."""
    lines = ["# Answers for the annex. What stays empty is shown as unanswered. Write the annex again afterwards."]
    for one in fields(Declarations):
        lines += ["", f"# {one.metadata['help']}", f"{one.name}:"]
    return "\n".join(lines) + "\n"
