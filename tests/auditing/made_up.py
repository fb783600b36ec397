"""Made-up reports: any shares of recognized images for any number of people, and an audit that had power."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from calor_hf.auditing.verdict import concluded
from calor_hf.core.reconstruction import Cost
from calor_hf.core.report import (
    EMBEDDING,
    FULL_GALLERY,
    GALLERY,
    HEADLINE,
    IDENTITIES,
    MODE_RANKING,
    POOL,
    AttackResult,
    DataInfo,
    LeakageReport,
    NetworkInfo,
    PowerCheck,
    TargetInfo,
    decoy_hits,
    false_matches,
    guesses,
)  # fmt: skip
from calor_hf.metrics import Measure, mean_over_identities, mean_over_images

PEOPLE, TRIES = 20, 10


def images(shares: Sequence[float], tries: int = TRIES, name: str = HEADLINE) -> Measure:
    """Share of images that are recognized, from that of each person."""
    return _images(tuple(shares), tries, name)


@cache
def _images(shares: tuple[float, ...], tries: int, name: str) -> Measure:
    hits = torch.tensor([[k < round(share * tries) for k in range(tries)] for share in shares])
    labels = torch.arange(len(shares)).repeat_interleave(tries)
    return mean_over_images(name, "share", "leakage", hits.flatten().double(), labels)


def people(shares: Sequence[float], tries: int = TRIES) -> Measure:
    """Share of people with at least one recognized image."""
    return _people(tuple(shares), tries)


@cache
def _people(shares: tuple[float, ...], tries: int) -> Measure:
    once = {label: float(round(share * tries) > 0) for label, share in enumerate(shares)}
    return mean_over_identities(IDENTITIES, "share", "leakage", once, tries * len(shares))


def attack(
    name: str, shares: Sequence[float], chance: Sequence[float], tries: int = TRIES, lead: str = HEADLINE, **more: Any
) -> AttackResult:
    known = {
        "attack": name, "settings": {}, "prior": "dcgan", "prior_settings": {}, "cost": Cost(1, 1, 1, 1.0),
        "adaptive": True, "measures": [images(shares, tries, lead), people(shares, tries)],
        "chance_levels": {"samples of the prior": [images(chance, tries, lead), people(chance, tries)]},
        "target_confidence": 0.9,
    }  # fmt: skip
    return AttackResult(name=name, **{**known, **more})


def network(share: float = 0.99, same_data: bool = True, count: int = PEOPLE) -> NetworkInfo:
    measure = images([share] * count, 100, "accuracy")
    return NetworkInfo("J", measure, same_data)


def check(name: Any, share: float, chance: float = 0.01, lead: str = HEADLINE) -> PowerCheck:
    shares = [share] * PEOPLE
    return PowerCheck(name, images(shares, 100, lead), people(shares), chance, 0.1)


def share(name: str, value: float) -> Measure:
    return Measure(name, value, "share", "neither", 640, 64, value, value)


POWER = [check("resolution", 0.95), check("prior", 0.4), check("guided", 0.8)]
FIT = [share("accuracy", 0.9), share("train_accuracy", 1.0), share("train_confidence", 0.95)]


def report(attacks: Sequence[AttackResult] | None = None, **more: Any) -> LeakageReport:
    """The report of an audit with power; without attacks, of one that recovers as much as chance does."""
    attacks = attacks or [attack("ppa", [0.0] * PEOPLE, [0.0] * PEOPLE)]
    count = max(one.measures[0].identities for one in attacks)
    known = {
        "target": TargetInfo("m", "X", "calor", {}, classes=64, parameters=1),
        "data": DataInfo("d", identities=64, images=100, held_out_images=640),
        "networks": {"evaluation_model": network(), "target": network()},
        "labels": list(range(count)), "label_names": [f"identity_{label:03d}" for label in range(count)],
        "images_per_class": 5, "seed": 0, "attacks": list(attacks), "utility": FIT, "power": POWER, "created": "2026",
    }  # fmt: skip
    return concluded(LeakageReport(**{**known, **more}))


def with_embedding(shares: Sequence[float], seen: Sequence[float], accuracy: float = 0.95) -> LeakageReport:
    """An audit with an evaluation model that sees ``shares`` and an embedding that sees ``seen``."""
    none = [0.0] * len(shares)
    one = attack("ppa", shares, none)
    level = one.chance_levels["samples of the prior"]
    one = attack(
        "ppa", shares, none,
        measures=[*one.measures, images(seen, name=EMBEDDING)],
        chance_levels={"samples of the prior": [*level, images(none, name=EMBEDDING)]},
    )  # fmt: skip
    networks = {"evaluation_model": network(), "embedding": network(accuracy, same_data=False)}
    return report([one], networks=networks)


def report_with_decoys(
    private: set[int], hit: float = 0.9, exchangeability: str = "", classes: int = 40
) -> LeakageReport:
    """A report on classes of two; the attacker's image shows the private identity in the classes ``private``."""

    def ranked(name: str, value: float) -> Measure:
        return Measure(name, value, "share", "leakage", 2 * classes, classes, value - 0.111, min(1.0, value + 0.111))

    alone = [hit if label in private else 0.0 for label in range(classes)]
    none, either = [0.0] * classes, [hit] * classes
    once = {label: float(label in private) for label in range(classes)}
    found = attack("plg", alone, none)
    more = [
        images(either, name=decoy_hits(HEADLINE)),
        mean_over_identities(guesses(HEADLINE), "share", "leakage", once, 10 * classes),
        mean_over_identities(guesses(HEADLINE, 2), "share", "leakage", dict.fromkeys(once, 1.0), 10 * classes),
        Measure("feature_distance", 0.1 * len(private) + min(private), "", "privacy", 10 * classes, classes),
        Measure("false_discovery", 0.0, "share", "neither", 9 * len(private), classes),
        ranked(MODE_RANKING, len(private) / classes),
        ranked(f"{MODE_RANKING}[weight_norm]", 0.404),
        ranked(f"{MODE_RANKING}[bias]", 0.496),
    ]
    by_chance = [images(none, name=decoy_hits(HEADLINE)), mean_over_identities(
        guesses(HEADLINE), "share", "leakage", dict.fromkeys(once, 0.0), 10 * classes)]  # fmt: skip
    levels = {"samples of the prior": [*found.chance_levels["samples of the prior"], *by_chance]}
    found = dataclasses.replace(found, measures=[*found.measures, *more], chance_levels=levels)
    return report(
        [found],
        target=dataclasses.replace(report().target, defense="decoys", settings={"k": 2}),
        data=DataInfo("d", classes, 800, 400, digest=str(private), identities_per_class=2,
                      exchangeability=exchangeability),
        other_threats=[
            Measure(false_matches(HEADLINE), 0.02, "share", "neither", 400, classes),
            *(ranked(name, value) for name, value in ((POOL, 1.0), (GALLERY, 0.974), (FULL_GALLERY, 0.512))),
        ],
        networks={"evaluation_model": network(count=classes)},
    )  # fmt: skip
