"""A leakage report worked out by hand: two attacks on three people."""

import math
from typing import Any

import torch

from calor_hf.auditing.verdict import concluded
from calor_hf.core.reconstruction import Cost
from calor_hf.core.report import AttackResult, DataInfo, LeakageReport, NetworkInfo, TargetInfo
from calor_hf.metrics import Measure, mean_over_identities, mean_over_images


def accuracy(topk_correct: list[int], labels: list[int]) -> Measure:
    values = torch.tensor(topk_correct, dtype=torch.float64)
    return mean_over_images("attack_accuracy@1", "share", "leakage", values, torch.tensor(labels))


def attack(name: str, topk_correct: list[int], **changes: Any) -> AttackResult:
    labels = [0, 0, 1, 1, 2, 2]
    identities = {label: float(max(topk_correct[2 * label : 2 * label + 2])) for label in range(3)}
    measures = [
        accuracy(topk_correct, labels),
        mean_over_identities("identities_recognized", "share", "leakage", identities, 6, "a note"),
        Measure("fid", math.nan, "", "neither", 6, 3, note="one image is too few"),
    ]
    cost = Cost(generator_passes=60, target_passes=66, target_gradients=60, seconds=1.5)
    chance_levels = {"samples of the prior": [accuracy([0, 1, 0, 0, 0, 0], labels)]}
    known = {"name": name, "attack": "plg", "settings": {"steps": 10}, "prior": "renderer", "prior_settings": {},
             "cost": cost, "adaptive": name == "adaptive", "measures": measures, "chance_levels": chance_levels,
             "target_confidence": 0.9, "effort": 0.25}  # fmt: skip
    return AttackResult(**{**known, **changes})


def network(name: str, value: float, low: float = math.nan, high: float = math.nan) -> NetworkInfo:
    """A network with this accuracy on held-out images."""
    return NetworkInfo(name, Measure("accuracy", value, "share", "neither", 40, 4, low, high))


def small_report(**changes: Any) -> LeakageReport:
    known = {
        "target": TargetInfo("me/model", "ResNet", "CALoR", {"rank": 4}, classes=4, parameters=1234),
        "data": DataInfo("synthetic faces", identities=4, images=80, held_out_images=40, drawn=True),
        "networks": {"evaluation_model": network("RegNet", 0.997)},
        "labels": [0, 1, 2],
        "label_names": ["Ada", "Bob", "Cem"],
        "images_per_class": 2,
        "seed": 0,
        "attacks": [attack("weak", [0, 0, 0, 1, 0, 0]), attack("adaptive", [1, 1, 1, 0, 1, 1])],
        "utility": [Measure("accuracy", 0.9, "share", "neither", 40, 4)],
        "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    report = LeakageReport(**{**known, **changes})
    return report if "caveats" in changes else concluded(report)


def reports_with_every_caveat() -> list[LeakageReport]:
    """Two reports that have most caveats together."""
    poor = {"evaluation_model": network("my/models/a", 0.5), "second_evaluation_model": network("b", 0.4)}
    untested = {"evaluation_model": NetworkInfo("my/models/a")}
    attacks = [attack("weak", [0] * 6, settings={"fast": True}, changed=["lr"])]
    return [small_report(networks=networks, attacks=attacks) for networks in (poor, untested)]
