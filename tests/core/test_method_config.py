"""Frozen settings: dictionaries and back."""

import dataclasses
import json

import pytest

from calor_hf.core.config import MethodConfig


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
    with pytest.raises(ValueError, match="Settings has no setting stepz, strenght; known: name, steps, strength"):
        Settings.from_dict({"strenght": 1.0, "stepz": 2})


def test_values_are_checked_however_they_come() -> None:
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        Settings(strength=-1.0)
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        Settings.from_dict({"strength": -1.0})
    with pytest.raises(ValueError, match="strength must be >= 0, got -1"):
        dataclasses.replace(Settings(strength=1.0), strength=-1.0)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(strength=1.0).steps = 4  # type: ignore[misc]
