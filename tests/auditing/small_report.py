"""A leakage report worked out by hand: two attacks on three people."""

import math
from typing import Any

import torch

from calor_hf.auditing import LeakageReport
from calor_hf.auditing.report import AttackResult
from calor_hf.metrics import Measure


def accuracy(hits: list[int], labels: list[int]) -> Measure:
    values = torch.tensor(hits, dtype=torch.float64)
    return Measure.of_images("attack_accuracy@1", "share", "leakage", values, torch.tensor(labels))


def attack(name: str, hits: list[int], **changes: Any) -> AttackResult:
    labels = [0, 0, 1, 1, 2, 2]
    people = {label: float(max(hits[2 * label : 2 * label + 2])) for label in range(3)}
    measures = [
        accuracy(hits, labels),
        Measure.of_people("people_recognised", "share", "leakage", people, 6, "a note"),
        Measure("fid", math.nan, "", "neither", 6, 3, note="one image is too few"),
    ]
    cost = {"generator_passes": 60, "target_passes": 66, "target_gradients": 60, "seconds": 1.5}
    floors = {"samples of the prior": [accuracy([0, 1, 0, 0, 0, 0], labels)]}
    known = {"name": name, "attack": "plg", "settings": {"steps": 10}, "generator": {"generator": "renderer"},
             "cost": cost, "adaptive": name == "adaptive", "measures": measures, "floors": floors,
             "target_confidence": 0.9}  # fmt: skip
    return AttackResult(**{**known, **changes})


def small_report(**changes: Any) -> LeakageReport:
    known = {
        "target": {"name": "me/model", "model": "ResNet", "defense": "CALoR", "settings": {"rank": 4}, "classes": 4,
                   "parameters": 1234},
        "data": {"name": "synthetic faces", "people": 4, "pictures": 80, "held_pictures": 40},
        "networks": {"judge": "RegNet", "judge_accuracy": 0.997},
        "labels": [0, 1, 2],
        "label_names": ["Ada", "Bob", "Cem"],
        "images_per_class": 2,
        "seed": 0,
        "budget": 0.25,
        "attacks": [attack("weak", [0, 0, 0, 1, 0, 0]), attack("adaptive", [1, 1, 1, 0, 1, 1])],
        "utility": [Measure("accuracy", 0.9, "share", "neither", 40, 4)],
        "created": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    return LeakageReport(**{**known, **changes})
