"""Frozen settings: dictionaries and back."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest

from calor_hf.core.config import MethodConfig, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(MethodConfig):
    strength: float
    steps: int = 3
    name: str | None = None

    def validate(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength must be >= 0, got {self.strength}")


def test_round_trip_through_json() -> None:
    settings = Settings(strength=0.1, steps=5)
    values = json.loads(json.dumps(settings.to_dict()))
    assert values == {"strength": 0.1, "steps": 5, "name": None}
    assert Settings.from_dict(values) == settings


def test_missing_keys_take_the_defaults() -> None:
    assert Settings.from_dict({"strength": 1.0}) == Settings(strength=1.0, steps=3, name=None)


def test_unknown_keys_are_named_beside_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no setting stepz, strenght \(did you mean steps\?\); known: name, steps, str"
    ):
        Settings.from_dict({"strenght": 1.0, "stepz": 2})


def test_values_are_checked_however_they_come() -> None:
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        Settings(strength=-1.0)
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        Settings.from_dict({"strength": -1.0})
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        dataclasses.replace(Settings(strength=1.0), strength=-1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ruled(MethodConfig):
    share: float = setting(0.5, "Share of the images.", gt=0, le=1)
    counts: tuple[int, ...] = setting((), "Numbers of images.", ge=1)
    weight: float | None = setting(None, "Weight.", lt=2)
    mode: str = setting("a", "Mode.", choices=("a", "b"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Redefined(Ruled):
    share: float = 1.0
    counts: tuple[int, ...] = setting((0,), ge=0)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Ruled, {"share": 0.0}, "share must be in (0, 1], got 0.0"),
        (Ruled, {"share": 1.5}, "share must be in (0, 1], got 1.5"),
        (Ruled, {"share": math.nan}, "share must be a finite number in (0, 1], got nan"),
        (Ruled, {"counts": (3, 0)}, "counts must be >= 1, got 0"),
        (Ruled, {"weight": 2.0}, "weight must be < 2, got 2.0"),
        (Ruled, {"weight": -math.inf}, "weight must be a finite number < 2, got -inf"),
        (Ruled, {"mode": "c"}, "unknown mode 'c'; pass one of a, b"),
        (Redefined, {"share": 0.0}, "share must be in (0, 1], got 0.0"),
        (Redefined, {"counts": (-1,)}, "counts must be >= 0, got -1"),
    ],
)
def test_rules_of_settings(kind: type[Ruled], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**values)


def test_redefined_settings_inherit_their_help() -> None:
    assert Redefined() == Redefined(share=1.0, counts=(0,), weight=None, mode="a")
    assert [field.metadata["help"] for field in dataclasses.fields(Redefined)] == [
        "Share of the images.", "Numbers of images.", "Weight.", "Mode.",
    ]  # fmt: skip


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(strength=1.0).steps = 4  # type: ignore[misc]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryKind(MethodConfig):
    number: float = 1.0
    count: int | None = 3
    switch: bool = False
    mixed: str | float = "mean"
    paths: tuple[str, ...] | None = None


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("number=1e-3", 0.001),
        ("number=2", 2.0),
        ("count=7", 7),
        ("count=none", None),
        ("switch=true", True),
        ("switch=False", False),
        ("mixed=0.5", 0.5),
        ("mixed=noise", "noise"),
        ("paths=a.b,c", ("a.b", "c")),
        ("paths=none", None),
    ],
)
def test_words_become_values_of_the_field(word: str, value: object) -> None:
    name = word.partition("=")[0]
    parsed = EveryKind.parse([word])
    assert parsed == {name: value}
    assert type(parsed[name]) is type(value)
    assert getattr(EveryKind.from_dict(parsed), name) == value


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("number=much", "number must be float, got 'much'"),
        ("count=1.5", "count must be int or none, got '1.5'"),
        ("switch=maybe", "switch must be bool, got 'maybe'"),
        ("number", "expected a setting as name=value, got 'number'"),
    ],
)
def test_words_of_another_kind_are_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EveryKind.parse([word])
